"""Which comparisons to read, and what length has to do with winning."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import groupby

from tiebreak.metrics.versus import WORTH
from tiebreak.metrics.winrate import rate
from tiebreak.reporting.charts import TUNED, Bar, Estimate
from tiebreak.reporting.meetings import Met

MOST = 20
"""Examples of each kind."""
BINS, FEWEST = 5, 8
"""Columns of the chart of lengths at most, and comparisons in each at least."""


def to_read(rows: Sequence[Met], seed: int) -> list[tuple[str, list[Met]]]:
    """Return the biggest wins, the biggest losses and random others, one per prompt in each."""
    ordered = sorted(rows, key=lambda row: row.gain)
    losses = _one_per_prompt(row for row in ordered if row.verdict == "loss")
    wins = _one_per_prompt(row for row in reversed(ordered) if row.verdict == "win")
    shown = {id(row) for row in wins + losses}
    others = [row for row in rows if id(row) not in shown]
    random.Random(seed).shuffle(others)  # noqa: S311  a draw to read, not a secret
    size = ("Biggest wins", "Biggest losses") if any(row.gain for row in rows) else ("Wins", "Losses")
    groups = [*zip(size, (wins, losses), strict=True), ("Drawn at random from the others", _one_per_prompt(others))]
    return [(name, group) for name, group in groups if group]


def _one_per_prompt(rows: Iterable[Met]) -> list[Met]:
    chosen: dict[str, Met] = {}
    for row in rows:
        chosen.setdefault(row.prompt_id, row)
    return list(chosen.values())[:MOST]


def by_length(rows: Sequence[Met]) -> list[Bar]:
    """Return the share that the model won by how much longer its completions are, in bins of about equal size.

    Completions of one difference stay in one bin. Nothing where they are too few for two bins, or all differ alike.
    """
    known = sorted((row for row in rows if row.verdict in WORTH), key=lambda row: row.longer)
    wanted = min(BINS, len(known) // FEWEST)
    bins: list[list[Met]] = [[]]
    for _, alike in groupby(known, key=lambda row: row.longer):
        if wanted > 1 and len(bins[-1]) >= len(known) / wanted:
            bins.append([])
        bins[-1].extend(alike)
    if len(bins) > 1 and len(bins[-1]) < FEWEST:
        bins[-2:] = [bins[-2] + bins[-1]]
    return [bar for group in bins if (bar := _bin(group))] if len(bins) > 1 else []


def _bin(rows: Sequence[Met]) -> Bar | None:
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row.prompt_id, []).append(WORTH[row.verdict])
    share = rate(list(groups.values()))
    ends = [f"{end:+,}".replace("-", "−") if end else "0" for end in (rows[0].longer, rows[-1].longer)]
    label = ends[0] if ends[0] == ends[1] else f"{ends[0]}\nto {ends[1]}"
    return Bar(label, Estimate(share.value, (share.low, share.high), share.n, rate=True), TUNED) if share else None
