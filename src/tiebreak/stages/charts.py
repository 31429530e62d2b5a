"""Charts as inline SVG: matplotlib draws them, the page's own text colour and font show through.

Lengths are CSS pixels. A chart is 340 wide, so that two stand side by side on a desk, one fills a telephone, and
12 px text is 12 px on both.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Sequence
from math import ceil, isfinite, log10
from typing import Any, NamedTuple, cast
from xml.etree import ElementTree as ET

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import IdentityTransform

# Okabe and Ito's colours, which colour-blind readers tell apart; each means one thing in every chart.
BASE, TUNED, CHOSEN, REJECTED = "#999999", "#0072B2", "#009E73", "#D55E00"
INK = "#010203"
"""Stands for the page's text colour, which is light or dark."""
MUTED, FAINT = 0.7, 0.2
WIDTH = 340

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tiebreak",
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.family": "DejaVu Sans",  # matplotlib brings it, and it is wider than what the page shows: no overlaps
    "font.size": 12,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
_DASHED: dict[str, Any] = {"color": INK, "alpha": MUTED, "linewidth": 1, "linestyle": (0, (3, 3))}


class Estimate(NamedTuple):
    """A value with its 95 % interval, over `n` values; a rate is said in per cent."""

    value: float
    interval: tuple[float, float] | None
    n: int
    rate: bool

    @classmethod
    def of(cls, raw: dict[str, Any] | None) -> Estimate | None:
        """Read an estimate of summary.json; None where nothing was measured."""
        raw = raw or {}
        value: Any = raw.get("rate", raw.get("mean"))
        if not _finite(value):
            return None
        interval = (raw["low"], raw["high"])  # a single prompt gives a mean without ends
        return cls(value, interval if all(map(_finite, interval)) else None, raw["n"], "rate" in raw)

    @property
    def text(self) -> str:
        """The value, with the digits that its interval deserves."""
        return self._say(self.value) + self._unit

    @property
    def between(self) -> str:
        """The interval."""
        if self.interval is None:
            return "no interval"
        return (" to " if self.interval[0] < 0 else "–").join(map(self._say, self.interval)) + self._unit

    @property
    def _unit(self) -> str:
        return "\u00a0%" if self.rate else ""

    def _say(self, number: float) -> str:
        times, digits = (100, 0) if self.rate else (1, 2)
        if self.interval and (half := times * (self.interval[1] - self.interval[0]) / 2) > 0:
            digits = min(4, max(0, ceil(-log10(half))))
        return f"{times * number:,.{digits}f}".replace("-", "−")


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


def bars(chart: str, title: str, groups: Sequence[tuple[str, Sequence[Bar]]], *, half: bool = False) -> Markup:
    """Draw horizontal bars in named groups; `half` marks 0.5, what a coin would reach."""
    estimates = [bar.estimate for _, group in groups for bar in group]
    ends = [end for estimate in estimates for end in (estimate.value, *(estimate.interval or ()))]
    low, high = min(0.0, *ends), max(1.0, *ends)
    names = [textwrap.wrap("".join(c if c.isprintable() else " " for c in name), 46) for name, _ in groups]
    spans, y = [], 0.0
    for name, (_, group) in zip(names, groups, strict=True):
        y += 18 * len(name)
        spans.append((y, y + 22 * len(group)))
        y += 22 * len(group) + 8
    with mpl.rc_context(_STYLE):
        axes, scale = _ruler(y + 16, low, high, spans, percent=estimates[0].rate, half=half)
        for name, (_, group), (top, _) in zip(names, groups, spans, strict=True):
            for row, line in enumerate(reversed(name)):
                axes.text(0, top - 10 - 18 * row, line, va="center")
            for row, bar in enumerate(group):
                _bar(axes, scale, top + 11 + 22 * row, bar)
        return _svg(axes, chart, title)


def outcome(chart: str, title: str, shares: Sequence[tuple[int, str]], rate: Bar) -> Markup:
    """Draw wins, ties and losses, each with its words, as one whole; under it the win rate with its whisker."""
    with mpl.rc_context(_STYLE):
        axes, scale = _ruler(112, 0, 1, [(52, 94)], percent=True, half=True)
        whole, left = sum(count for count, _ in shares), 0.0
        looks = ((0, "left", TUNED), (WIDTH / 2, "center", "none"), (WIDTH, "right", BASE))
        for (count, words), (x, side, colour) in zip(shares, looks, strict=True):
            axes.text(x, 8, words, ha=side, va="center", weight="bold" if colour == TUNED else "normal")
            axes.barh(28, WIDTH * count / whole, 18, left=left, color=colour)
            left += WIDTH * count / whole
        axes.barh(28, WIDTH - 1, 17, left=0.5, color="none", edgecolor=INK, alpha=0.5, linewidth=1)
        _bar(axes, scale, 73, rate)
        return _svg(axes, chart, title)


def curves(chart: str, title: str, lines: Sequence[Curve], *, half: bool = False) -> Markup:
    """Draw lines over steps, named at their ends: held-out pairs bold with dots, training batches thin.

    `half` makes the axis run from 0 to 1 and marks 0.5.
    """
    with mpl.rc_context(_STYLE):
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
        axes.text(WIDTH - 66, 9, "step", transform=IdentityTransform(), va="center", size=11, alpha=MUTED)
        _name_ends(axes, lines)
        return _svg(axes, chart, title)


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
        axes.plot(
            [WIDTH - 66, WIDTH - 57], [y, y], color=line.colour, transform=IdentityTransform(), clip_on=False, **_look(line)
        )
        axes.text(WIDTH - 53, y, line.label, transform=IdentityTransform(), va="center", size=11)


def _bar(axes: Axes, scale: Callable[[float], float], y: float, bar: Bar) -> None:
    end, interval = scale(bar.estimate.value), bar.estimate.interval
    axes.text(0, y, bar.label, va="center", alpha=MUTED)
    axes.barh(y, end - scale(0), 14, left=scale(0), color=bar.colour)
    if interval:
        whisker = [[end - scale(interval[0])], [scale(interval[1]) - end]]
        axes.errorbar(end, y, xerr=whisker, ecolor=INK, elinewidth=1.5, capsize=4, capthick=1.5)
    axes.text(WIDTH, y, bar.estimate.text, ha="right", va="center", weight="bold")


def _ruler(
    height: float, low: float, high: float, spans: Sequence[tuple[float, float]], *, percent: bool, half: bool
) -> tuple[Axes, Callable[[float], float]]:
    """Return axes in pixels, y downwards, and the map from value to x; faint rules at round values stand over `spans` of y."""
    axes = _axes(height, (0, 0, WIDTH, height))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.axis("off")
    ticks = MaxNLocator(4).tick_values(round(low, 6), round(high, 6))  # Wilson's interval ends at 1.0000000000000002
    left, right, first, last = 64.0, WIDTH - 58.0, ticks[0], ticks[-1]

    def scale(value: float) -> float:
        return float(left + (value - first) / (last - first) * (right - left))

    def rule(value: float, **look: Any) -> None:
        axes.vlines([scale(value)] * len(spans), *zip(*spans, strict=True), **look)

    for tick in ticks:
        rule(tick, color=INK, alpha=FAINT, linewidth=1, zorder=0)
        words = f"{tick * 100:g} %" if percent else f"{tick:g}".replace("-", "−")
        axes.text(scale(tick), height - 8, words, ha="center", va="center", size=11, alpha=MUTED)
    if half:
        rule(0.5, **_DASHED)
    return axes, scale


def _axes(height: float, box: tuple[float, float, float, float]) -> Axes:
    """Return the axes of a new figure, in pixels from its upper left corner: left, top, right, bottom."""
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    left, top, right, bottom = box
    return figure.add_axes((left / WIDTH, 1 - bottom / height, (right - left) / WIDTH, (bottom - top) / height))


def _svg(axes: Axes, chart: str, title: str) -> Markup:
    """Return the figure as an element for the page: no prolog, no metadata, ids of its own, the page's colour and font."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the reader's browser has the glyphs that DejaVu lacks
        cast(Figure, axes.figure).savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    root = ET.fromstring(stream.getvalue())  # noqa: S314  made in the line above
    for parent in root.iter():
        for child in [child for child in parent if child.tag.endswith(("}metadata", "}style"))]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.partition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.attrib.clear()
        for name, value in attributes.items():
            if name == "id":
                element.set(name, f"{chart}-{value}")
            elif name in ("href", "clip-path"):
                element.set(name, value.replace("#", f"#{chart}-"))
            else:
                element.set(name, value.replace(INK, "currentColor"))
    del root.attrib["width"], root.attrib["height"]
    root.attrib |= {"role": "img", "aria-label": title}
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704  the serialiser escaped it


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value)
