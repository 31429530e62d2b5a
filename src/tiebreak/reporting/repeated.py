"""What a loop made of repeated stages, as the report of its run shows it: rounds, trials or variants side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from matplotlib.ticker import FuncFormatter, MaxNLocator
from pydantic import BaseModel, ConfigDict

from tiebreak.files import read_json
from tiebreak.records import InputError
from tiebreak.reporting.charts import _DASHED, _WHISKER, BASE, INK, TUNED, WIDTH, Drawing, Estimate, _axes, _drawing, _style
from tiebreak.reporting.figures import Cell, Chart, Table, Value
from tiebreak.reporting.trials import of_trials
from tiebreak.run import Run
from tiebreak.samplers.ledger import dollars

MEASURES = {
    "win_rate": "Win rate over base",
    "controlled": "at equal length",
    "over_last": "Win rate over the round before",
    "rating": "Rating beside base",
    "passing": "Passing every check",
    "score": "Mean score",
    "length": "Length in characters",
    "kl": "KL from base in nats, per completion",
    "chosen_change": "Log-prob of held-out chosen, change in nats",
    "accuracy": "Accuracy on held-out pairs",
}
"""The numbers of a row by key, in the order and the words of the report; a key that is none of these is its own word."""
COINS = ("win_rate", "controlled", "over_last", "accuracy")
"""Numbers that a coin would bring to a half."""
MOST_NAMED = 6
"""Points of a curve that have their values beside them; of more, the last one has."""
ABOUT = {
    "kl": " From its held-out completions as they were drawn: the model's own where temperature is 1, without top_p and top_k.",
    "chosen_change": " Beside the model that the round started from; below 0, training made them less likely.",
    "accuracy": " Share of a round's own held-out pairs that its training ranks the right way round.",
}
"""What must be known of a number beside its name."""


class Row(BaseModel):
    """One child of a loop: a round, a trial or a variant."""

    model_config = ConfigDict(frozen=True)
    name: str
    path: str = ""
    """Its run, from the loop's folder; empty for a model that no child made."""
    settings: dict[str, Any] = {}
    """The keys in which it differs from the others."""
    numbers: dict[str, dict[str, Any]] = {}
    """Estimates as summary.json has them: rate, mean or elo, low, high, n."""
    pairs: int | None = None
    """Pairs that it was trained on."""
    cost: float | None = None
    """US dollars that it spent; None where a price is not known."""
    notes: tuple[str, ...] = ()
    """What the monitor warned of, or why there is no number."""
    trained: float | None = None
    """When its training ended, in seconds since 1970: a model that is trained anew is measured anew."""


class Loop(BaseModel):
    """`loop.json`: what a loop did, and what came of each of its children."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["rounds", "trials", "variants"]
    sentence: str = ""
    """What the loop came to: why it stopped, and which child to take."""
    best: str | None = None
    """Name of the row to take."""
    settings: dict[str, Any] = {}
    """What its children have in common that their own recipes do not say."""
    rows: tuple[Row, ...] = ()


def read_loop(run: Run) -> Loop | None:
    """Return what a loop made in this run, None where none did. Raises InputError."""
    if not run.loop_json.exists():
        return None
    try:
        return Loop.model_validate(read_json(run.loop_json))
    except ValueError as error:
        why = str(error).partition(" [type=")[0]
        raise InputError(f"{run.loop_json}: cannot be read: {' '.join(why.split())}") from None


def repeated(run: Run) -> tuple[list[Chart], list[Table]]:
    """Return charts and tables of a loop's children; none where the run is no loop's. Raises InputError."""
    loop = read_loop(run)
    if loop is None or not loop.rows:
        return [], []
    charts = _courses(loop.rows) if loop.kind == "rounds" else _trials(loop) if loop.kind == "trials" else ()
    return list(charts), [_table(loop)]


def of_loop(loop: Loop) -> list[tuple[str, str, str]]:
    """Return how many children there are, and what the one that was taken came to, as (name, value, note)."""
    tried, taken = ([row for row in loop.rows if (row.path == row.name) == own] for own in (False, True))
    numbers: list[tuple[str, str, str]] = [(loop.kind, f"{len(tried):,}", f"the best is {loop.best}" if loop.best else "")]
    key = str(loop.settings.get("objective"))
    for row in taken:
        if found := Estimate.of(row.numbers.get(key)):
            note = f"95 % interval {found.between}, n = {found.n:,}, on prompts that no other saw"
            numbers.append((f"{MEASURES.get(key, key).lower()}, {row.name}", found.text, note))
    return numbers


def _trials(loop: Loop) -> Iterator[Chart]:
    """Yield the charts of a search, of its trials and not of the winner, which other prompts measure."""
    key = str(loop.settings.get("objective"))
    points = [(row.settings, found) for row in loop.rows if row.path != row.name and (found := Estimate.of(row.numbers.get(key)))]
    same = _same(loop.rows)
    points = [({name: value for name, value in settings.items() if name not in same}, found) for settings, found in points]
    importance = {name: share for name, share in (loop.settings.get("importance") or {}).items() if name not in same}
    if points:
        yield from of_trials(MEASURES.get(key, key), points, importance, half=key in COINS)


def _courses(rows: Sequence[Row]) -> Iterator[Chart]:
    """Yield a curve over the rounds for each number that two rounds have; no curve where all are the same model's."""
    for key, name in MEASURES.items():
        points = [(at, found) for at, row in enumerate(rows) if (found := Estimate.of(row.numbers.get(key)))]
        if len(points) < 2 or key in ("controlled", "rating"):
            continue
        counts = sorted({found.n for _, found in points})
        n = f"n\u00a0=\u00a0{counts[0]:,}" + (f" to {counts[-1]:,}" if len(counts) > 1 else "")
        half, first = key in COINS, points[0][0]
        names, points = [row.name for row in rows[first:]], [(at - first, found) for at, found in points]
        caption = f"{name}, with 95 % intervals.{' Dashed: a coin.' if half else ''}{ABOUT.get(key, '')} {n} for each."
        yield Chart(course(f"rounds_{key}", name, names, points, half=half), caption)


def course(
    name: str, title: str, across: Sequence[str], points: Sequence[tuple[int, Estimate]], *, half: bool = False
) -> Drawing:
    """Draw a line with a whisker at each point; `across` names the places that the first of each point counts.

    Rates run from 0 to 1, other values to where they end, 0 in view; `half` marks 0.5.
    """
    with _style():
        axes = _axes(196, (46, 18, WIDTH - 8, 158))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=3, labelsize=11)
        axes.set_xlim(-0.4, len(across) - 0.6)
        axes.set_xticks(range(len(across)), [label.removeprefix("round-") if len(across) > 4 else label for label in across])
        values = [found.value for _, found in points]
        intervals = [found.interval or (found.value,) * 2 for _, found in points]
        ends = [
            [max(0.0, value - low) for value, (low, _) in zip(values, intervals, strict=True)],
            [max(0.0, high - value) for value, (_, high) in zip(values, intervals, strict=True)],
        ]
        at = [place for place, _ in points]
        axes.errorbar(at, values, yerr=ends, clip_on=False, **_WHISKER)
        axes.plot(at, values, color=TUNED, linewidth=2, zorder=2)
        for place, value in zip(at, values, strict=True):
            colour = BASE if across[place] == "base" else TUNED
            axes.plot(place, value, "o", color=colour, markersize=8, markeredgecolor=INK, clip_on=False, zorder=3)
        rate = points[0][1].rate
        if rate:
            axes.set_ylim(0, 1)
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        else:
            axes.axhline(0, color=INK, alpha=0.2, linewidth=1)
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}".replace("-", "−")))
        if half:
            axes.axhline(0.5, **_DASHED)
        for (place, found), (_, high) in list(zip(points, intervals, strict=True))[0 if len(points) <= MOST_NAMED else -1 :]:
            axes.annotate(
                found.text, (place, high), (0, 6), textcoords="offset points", ha="center", weight="bold", clip_on=False
            )
        return _drawing(axes, name, title)


def _table(loop: Loop) -> Table:
    """Return the table of all children: in what they differ, what they were trained on, every number, cost and notes."""
    same = _same(loop.rows)
    keys = [key for key in dict.fromkeys(key for row in loop.rows for key in row.settings) if key not in same]
    known = list(dict.fromkeys([*MEASURES, *(key for row in loop.rows for key in row.numbers)]))
    measures = [key for key in known if any(Estimate.of(row.numbers.get(key)) for row in loop.rows)]
    told = {
        "pairs": any(row.pairs is not None for row in loop.rows),
        "cost": any(row.cost for row in loop.rows),
        "notes": any(row.notes for row in loop.rows),
    }
    heads = [loop.kind.removesuffix("s"), *keys, *(MEASURES.get(key, key) for key in measures)]
    rows: list[list[Value]] = []
    for row in loop.rows:
        line: list[Value] = [f"{row.name} (taken)" if row.name == loop.best else row.name]
        line += [_setting(row.settings, key) for key in keys]
        line += [Estimate.of(row.numbers.get(key)) for key in measures]
        line += [row.pairs] * told["pairs"]
        line += [None if row.cost is None else Cell(dollars(row.cost), value=row.cost)] * told["cost"]
        line += [", ".join(row.notes) or None] * told["notes"]
        rows.append(line)
    note = "In grey: 95 % intervals. " if measures else ""
    note += f"All have {', '.join(f'{key} {value}' for key, value in same.items())}. " if same else ""
    names = {"pairs": "training pairs", "cost": "cost", "notes": "notes"}
    return Table(loop.kind, [*heads, *(names[key] for key, shown in told.items() if shown)], rows, f"{note}{loop.sentence}")


def _same(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the settings that are the same in all of several rows, and so tell nothing apart."""
    first, others = rows[0].settings, [row.settings for row in rows[1:]]
    return {key: value for key, value in first.items() if others and all(key in own and own[key] == value for own in others)}


def _setting(settings: Mapping[str, Any], key: str) -> Value:
    value = settings.get(key)
    if isinstance(value, bool) or value is None:
        return None if value is None else str(value).lower()
    return Cell(f"{value:g}", value=value) if isinstance(value, int | float) else str(value)
