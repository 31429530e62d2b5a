"""The trials of a search in the report: which key mattered, and what came of each of its values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from tiebreak.reporting.charts import (
    _DASHED,
    _WHISKER,
    BASE,
    INK,
    TUNED,
    WIDTH,
    Bar,
    Drawing,
    Estimate,
    _axes,
    _drawing,
    _short,
    _style,
    bars,
)
from tiebreak.reporting.figures import Chart

ORDERS = 30
"""How many times the smallest value the largest is where the axis shows orders of magnitude."""
MOST_PLACES = 6
"""Values that stand side by side, each with its name; more numbers are put on a scale."""
Point = tuple[Any, Estimate]
"""A trial's value of a key, and what came of the trial."""


def of_trials(
    objective: str, points: Sequence[tuple[Mapping[str, Any], Estimate]], importance: Mapping[str, float], *, half: bool
) -> Iterator[Chart]:
    """Yield a chart of what mattered, where that is known, and one for each key; `points` are settings and what came of them.

    `half` marks 0.5, what a coin would reach.
    """
    n = f"n\u00a0=\u00a0{len(points):,} trials"
    if importance:
        groups = [(key, [Bar("", Estimate(share, None, len(points), rate=True), TUNED)]) for key, share in importance.items()]
        caption = f"Share of the variance of {objective} that each key explains by itself (fANOVA). {n}; of few it says little."
        yield Chart(bars("trials_importance", "What mattered", groups), caption)
    for key in dict.fromkeys(key for settings, _ in points for key in settings):
        own = [(settings[key], found) for settings, found in points if key in settings]
        caption = (
            f"{objective} by {key}, with 95\u00a0% intervals; the other keys differ too. {n}.{' Dashed: a coin.' if half else ''}"
        )
        yield Chart(by_value(f"trials_{re.sub(r'[^A-Za-z0-9]+', '_', key)}", key, own, half=half), caption)


def by_value(name: str, title: str, points: Sequence[Point], *, half: bool = False) -> Drawing:
    """Draw a dot with a whisker for each trial over its value of one key; rates run from 0 to 1."""
    with _style():
        axes = _axes(196, (46, 12, WIDTH - 8, 158))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=3, labelsize=11)
        places = _places(axes, [value for value, _ in points])
        for at, (_, found) in zip(places, points, strict=True):
            low, high = found.interval or (found.value,) * 2
            ends = [[max(0.0, found.value - low)], [max(0.0, high - found.value)]]
            axes.errorbar(at, found.value, yerr=ends, clip_on=False, **{**_WHISKER, "ecolor": BASE, "capsize": 0})
            axes.plot(at, found.value, "o", color=TUNED, markersize=7, markeredgecolor=INK, clip_on=False, zorder=3)
        if points[0][1].rate:
            axes.set_ylim(0, 1)
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
        if half:
            axes.axhline(0.5, **_DASHED)
        return _drawing(axes, name, title)


def _places(axes: Axes, values: Sequence[Any]) -> list[float]:
    """Return where on the axis each value stands: few values and words side by side, equal ones a little apart, else to scale."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    kinds = sorted(set(values)) if numbers else list(dict.fromkeys(values))
    if numbers and len(kinds) > MOST_PLACES:
        if kinds[0] > 0 and kinds[-1] / kinds[0] >= ORDERS:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=all(isinstance(value, int) for value in values)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
        return list(values)
    room, seen, places = Counter(values), Counter[Any](), []
    for value in values:
        apart = 0.5 / max(room.values())
        places.append(kinds.index(value) + apart * (seen[value] - (room[value] - 1) / 2))
        seen[value] += 1
    axes.set_xlim(-0.5, len(kinds) - 0.5)
    axes.set_xticks(range(len(kinds)), [_plain(kind) if numbers else _short(str(kind)) for kind in kinds])
    return places


def _plain(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")
