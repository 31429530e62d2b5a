"""Charts, drawn by matplotlib: for the page, whose text colour and font show through, and as files that stand alone.

Lengths are CSS pixels. A chart is 340 wide, so that two stand side by side on a desk, one fills a telephone, and
12 px text is 12 px on both.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil, isfinite, log10
from typing import Any, NamedTuple, cast
from xml.etree import ElementTree as ET

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Affine2D, Transform

# Okabe and Ito's colours, which colour-blind readers tell apart; each means one thing in every chart.
BASE, TUNED, CHOSEN, REJECTED = "#999999", "#0072B2", "#009E73", "#D55E00"
OTHERS = ("#E69F00", "#CC79A7", "#56B4E9")
INK = "#1B1D21"
"""The text colour of a file; in the page it becomes the page's own, which is light or dark."""
MUTED, FAINT = 0.7, 0.2
WIDTH = 340
SHARPNESS = 3
"""Pixels of a PNG for each CSS pixel."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tiebreak",
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.family": "DejaVu Sans",  # matplotlib brings it, and it is wider than what the page shows: no overlaps
    "font.size": 12,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
_DASHED: dict[str, Any] = {"color": INK, "alpha": MUTED, "linewidth": 1, "linestyle": (0, (3, 3))}
_WHISKER: dict[str, Any] = {"ecolor": INK, "elinewidth": 1.5, "capsize": 4, "capthick": 1.5, "fmt": "none"}


class Estimate(NamedTuple):
    """A value with its 95 % interval, over `n` values; a rate is said in per cent."""

    value: float
    interval: tuple[float, float] | None
    n: int
    rate: bool = False
    change: bool = False
    """Whether it is a difference, which is said with its sign, and of rates in percentage points."""

    @classmethod
    def of(cls, raw: Mapping[str, Any] | None) -> Estimate | None:
        """Read an estimate of summary.json; None where nothing was measured."""
        raw = raw or {}
        value: Any = next((raw[key] for key in ("rate", "mean", "elo", "kappa") if key in raw), None)
        if not _finite(value):
            return None
        low, high = (raw.get(end) for end in ("low", "high"))  # a single prompt gives a mean without ends
        interval = (cast(float, low), cast(float, high)) if _finite(low) and _finite(high) else None
        return cls(value, interval, raw.get("n") or 0, "rate" in raw)

    @property
    def text(self) -> str:
        """The value, with the digits that its interval deserves."""
        sign = "+" if self.change and self.value > 0 else ""
        return sign + self._say(self.value) + self._unit

    @property
    def between(self) -> str:
        """The interval."""
        if self.interval is None:
            return "no interval"
        unit = self._unit if not self.change else ""
        return (" to " if self.interval[0] < 0 else "–").join(map(self._say, self.interval)) + unit

    @property
    def _unit(self) -> str:
        return ("\u00a0points" if self.change else "\u00a0%") if self.rate else ""

    def _say(self, number: float) -> str:
        times, digits = (100, 0) if self.rate else (1, 2)
        if self.interval and (half := times * (self.interval[1] - self.interval[0]) / 2) > 0:
            digits = min(4, max(0, ceil(-log10(half))))
        return f"{round(times * number, digits) + 0.0:,.{digits}f}".replace("-", "−")  # the sum has no −0


class Bar(NamedTuple):
    """One bar from zero, with a whisker."""

    label: str
    estimate: Estimate
    colour: str


class Curve(NamedTuple):
    """Points (step, value) of one line; `label` stands at its end."""

    label: str
    colour: str
    points: Sequence[tuple[float, float]]
    held_out: bool = False


class Drawing(NamedTuple):
    """A figure, the name that its ids and its files have, and what it is called."""

    name: str
    title: str
    figure: Figure

    @property
    def inline(self) -> Markup:
        """An element for the page: no prolog, no metadata, ids of its own, the page's colour and font."""
        root = ET.fromstring(self._saved("svg", {"Date": None}, transparent=True))  # noqa: S314  made here
        for parent in root.iter():
            for child in [child for child in parent if child.tag.endswith(("}metadata", "}style"))]:
                parent.remove(child)
        for element in root.iter():
            element.tag = element.tag.partition("}")[2]
            attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
            element.attrib.clear()
            for name, value in attributes.items():
                if name == "id":
                    element.set(name, f"{self.name}-{value}")
                elif name in ("href", "clip-path"):
                    element.set(name, value.replace("#", f"#{self.name}-"))
                else:
                    element.set(name, value.replace(INK.lower(), "currentColor"))
        del root.attrib["width"], root.attrib["height"]
        root.attrib |= {"role": "img", "aria-label": self.title}
        return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704  the serialiser escaped it

    def svg(self, caption: str) -> str:
        """Return a file of its own, on white, that carries its title and caption."""
        about = {"Title": self.title, "Description": caption, "Creator": "tiebreak", "Date": None}
        text = self._saved("svg", facecolor="white", bbox_inches="tight", pad_inches=0.15, about=about).decode()
        return text.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")

    def png(self, caption: str) -> bytes:
        """Return a file of its own, on white, that carries its title and caption."""
        about = {"Title": self.title, "Description": caption.replace("\u00a0", " "), "Software": None}
        return self._saved("png", facecolor="white", bbox_inches="tight", pad_inches=0.15, dpi=72 * SHARPNESS, about=about)

    def _saved(self, kind: str, about: dict[str, str | None], **how: Any) -> bytes:
        stream = io.BytesIO()
        with _style():
            self.figure.savefig(stream, format=kind, metadata=about, **how)
        return stream.getvalue()


def bars(name: str, title: str, groups: Sequence[tuple[str, Sequence[Bar]]], *, half: bool = False) -> Drawing:
    """Draw horizontal bars in named groups; `half` marks 0.5, what a coin would reach."""
    every = [bar for _, group in groups for bar in group]
    ends = _ends(every)
    low, high = min(0.0, *ends), max(1.0, *ends)
    names = [textwrap.wrap(_printable(name), 46, max_lines=3, placeholder="…") for name, _ in groups]
    spans, y = [], 0.0
    for lines, (_, group) in zip(names, groups, strict=True):
        y += 18 * len(lines)
        spans.append((y, y + 22 * len(group)))
        y += 22 * len(group) + 8
    with _style():
        axes, scale = _ruler(y + 16, (low, high), spans, room=_room(every), percent=every[0].estimate.rate, half=half)
        for lines, (_, group), (top, _) in zip(names, groups, spans, strict=True):
            for row, line in enumerate(reversed(lines)):
                axes.text(0, top - 10 - 18 * row, line, va="center")
            for row, bar in enumerate(group):
                _bar(axes, scale, top + 11 + 22 * row, bar)
        return _drawing(axes, name, title)


def ladder(name: str, title: str, rungs: Sequence[Bar]) -> Drawing:
    """Draw dots with whiskers on a scale without a zero, the highest at the top."""
    rungs = sorted(rungs, key=lambda rung: -rung.estimate.value)
    ends, height = _ends(rungs), 24.0 * len(rungs)
    with _style():
        axes, scale = _ruler(height + 24, (min(ends), max(ends)), [(0, height)], room=_room(rungs), percent=False, half=False)
        for row, rung in enumerate(rungs):
            y = 12 + 24.0 * row
            axes.text(0, y, _short(rung.label), va="center", alpha=MUTED)
            _whisker(axes, scale, y, rung.estimate)
            axes.plot(scale(rung.estimate.value), y, "o", color=rung.colour, markersize=9, markeredgecolor=INK)
            axes.text(WIDTH, y, rung.estimate.text, ha="right", va="center", weight="bold")
        return _drawing(axes, name, title)


def columns(name: str, title: str, across: str, bins: Sequence[Bar]) -> Drawing:
    """Draw rates as columns from 0 to 1 in the order given, n under each; `across` says what they are ordered by."""
    with _style():
        axes = _axes(218, (42, 18, WIDTH, 160))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=0, labelsize=11)
        axes.set(xlim=(-0.5, len(bins) - 0.5), ylim=(0, 1))
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        axes.set_xticks(range(len(bins)), [f"{each.label}\nn = {each.estimate.n:,}" for each in bins])
        axes.set_xlabel(across, size=11, alpha=MUTED, labelpad=6)
        axes.axhline(0.5, **_DASHED)
        for at, each in enumerate(bins):
            value, interval = each.estimate.value, each.estimate.interval or (each.estimate.value,) * 2
            axes.bar(at, value, 0.6, color=each.colour)
            whisker = [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]
            axes.errorbar(at, value, yerr=whisker, clip_on=False, **_WHISKER)
            axes.annotate(
                each.estimate.text,
                (at, interval[1]),
                (0, 5),
                textcoords="offset points",
                ha="center",
                weight="bold",
                clip_on=False,
            )
        return _drawing(axes, name, title)


def outcome(name: str, title: str, shares: Sequence[tuple[int, str]], rate: Bar) -> Drawing:
    """Draw wins, ties and losses, each with its words, as one whole; under it the win rate with its whisker."""
    with _style():
        axes, scale = _ruler(112, (0, 1), [(52, 94)], room=_room([rate]), percent=True, half=True)
        whole, left = sum(count for count, _ in shares), 0.0
        looks = ((0, "left", TUNED), (WIDTH / 2, "center", "none"), (WIDTH, "right", BASE))
        for (count, words), (x, side, colour) in zip(shares, looks, strict=True):
            axes.text(x, 8, words, ha=side, va="center", weight="bold" if colour == TUNED else "normal")
            axes.barh(28, WIDTH * count / whole, 18, left=left, color=colour)
            left += WIDTH * count / whole
        axes.barh(28, WIDTH - 1, 17, left=0.5, color="none", edgecolor=INK, alpha=0.5, linewidth=1)
        _bar(axes, scale, 73, rate)
        return _drawing(axes, name, title)


def curves(name: str, title: str, lines: Sequence[Curve], *, half: bool = False) -> Drawing:
    """Draw lines over steps, named at their ends: held-out pairs bold with dots, training batches thin.

    `half` makes the axis run from 0 to 1 and marks 0.5.
    """
    with _style():
        axes = _axes(180, (42, 8, WIDTH - 74, 158))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=3, labelsize=11)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}".replace("-", "−")))
        for line in lines:
            marker = "o" if line.held_out else ""
            axes.plot(
                *zip(*line.points, strict=True), color=line.colour, clip_on=False, marker=marker, markersize=4, **_look(line)
            )
        axes.axhline(0, color=INK, alpha=FAINT, linewidth=1)  # also brings 0 into view
        if min(value for line in lines for _, value in line.points) >= 0:
            axes.set_ylim(bottom=0)
        if half:
            axes.set_ylim(0, 1)
            axes.axhline(0.5, **_DASHED)
        axes.text(WIDTH - 66, 9, "step", transform=_pixels(axes), va="center", size=11, alpha=MUTED)
        _name_ends(axes, lines)
        return _drawing(axes, name, title)


def _look(line: Curve) -> dict[str, Any]:
    return {"linewidth": 2} if line.held_out else {"linewidth": 1.2, "alpha": 0.7}


def _name_ends(axes: Axes, lines: Sequence[Curve]) -> None:
    """Write each line's name beside its last point, names at least 14 px apart and inside the axes."""
    height = axes.bbox.height
    ends = sorted((axes.transData.transform(line.points[-1])[1] - axes.bbox.y0, line) for line in lines if line.label)
    places: list[float] = []
    for wanted, _ in ends:
        places.append(max(wanted, places[-1] + 14 if places else 6))
    for index in reversed(range(len(places))):  # what was pushed out at the top comes down again
        places[index] = min(places[index], places[index + 1] - 14 if index + 1 < len(places) else height - 6)
    for place, (_, line) in zip(places, ends, strict=True):
        y = axes.bbox.y0 + place
        axes.plot([WIDTH - 66, WIDTH - 57], [y, y], color=line.colour, transform=_pixels(axes), clip_on=False, **_look(line))
        axes.text(WIDTH - 53, y, line.label, transform=_pixels(axes), va="center", size=11)


def _bar(axes: Axes, scale: Callable[[float], float], y: float, bar: Bar) -> None:
    end = scale(bar.estimate.value)
    axes.text(0, y, _short(bar.label), va="center", alpha=MUTED)
    axes.barh(y, end - scale(0), 14, left=scale(0), color=bar.colour)
    _whisker(axes, scale, y, bar.estimate)
    axes.text(WIDTH, y, bar.estimate.text, ha="right", va="center", weight="bold")


def _whisker(axes: Axes, scale: Callable[[float], float], y: float, estimate: Estimate) -> None:
    if estimate.interval:
        low, end, high = map(scale, (estimate.interval[0], estimate.value, estimate.interval[1]))
        axes.errorbar(end, y, xerr=[[max(0.0, end - low)], [max(0.0, high - end)]], **_WHISKER)


def _ends(all_bars: Sequence[Bar]) -> list[float]:
    """Return every value and both ends of every interval."""
    return [end for bar in all_bars for end in (bar.estimate.value, *(bar.estimate.interval or ()))]


def _room(all_bars: Sequence[Bar]) -> float:
    """Return how wide the names beside bars are; a letter takes about 7.5."""
    return max(64.0, 10 + 7.5 * max(len(_short(bar.label)) for bar in all_bars))


def _short(label: str) -> str:
    label = _printable(label)
    return label if len(label) <= 17 else f"{label[:16]}…"


def _printable(text: str) -> str:
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _ruler(
    height: float,
    ends: tuple[float, float],
    spans: Sequence[tuple[float, float]],
    *,
    room: float,
    percent: bool,
    half: bool,
) -> tuple[Axes, Callable[[float], float]]:
    """Return axes in pixels, y downwards, and the map from value to x; faint rules at round values stand over `spans` of y."""
    axes = _axes(height, (0, 0, WIDTH, height))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.axis("off")
    ticks = MaxNLocator(4).tick_values(*(round(end, 6) for end in ends))  # Wilson's interval ends at 1.0000000000000002
    left, right, first, last = room, WIDTH - 58.0, ticks[0], ticks[-1]

    def scale(value: float) -> float:
        return float(left + (value - first) / (last - first) * (right - left))

    def rule(value: float, **look: Any) -> None:
        axes.vlines([scale(value)] * len(spans), *zip(*spans, strict=True), **look)

    for tick in ticks:
        rule(tick, color=INK, alpha=FAINT, linewidth=1, zorder=0)
        words = f"{tick * 100:g} %" if percent else f"{tick:,g}".replace("-", "−")
        axes.text(scale(tick), height - 8, words, ha="center", va="center", size=11, alpha=MUTED)
    if half:
        rule(0.5, **_DASHED)
    return axes, scale


def _axes(height: float, box: tuple[float, float, float, float]) -> Axes:
    """Return the axes of a new figure, in pixels from its upper left corner: left, top, right, bottom."""
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    left, top, right, bottom = box
    return figure.add_axes((left / WIDTH, 1 - bottom / height, (right - left) / WIDTH, (bottom - top) / height))


def _pixels(axes: Axes) -> Transform:
    """Return the transform of CSS pixels from the lower left corner, which holds in a sharper file and in one cut to size."""
    figure = cast(Figure, axes.figure)
    width, height = figure.get_size_inches() * 72
    return Affine2D().scale(1 / width, 1 / height) + figure.transFigure


def _drawing(axes: Axes, name: str, title: str) -> Drawing:
    return Drawing(name, title, cast(Figure, axes.figure))


@contextmanager
def _style() -> Iterator[None]:
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the reader's browser has the glyphs that DejaVu lacks
        yield


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value)
