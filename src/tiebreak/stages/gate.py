"""Whether a run has shown enough to be released."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any

from tiebreak.files import read_json
from tiebreak.metrics.versus import WORTH, headline_of
from tiebreak.metrics.winrate import Estimate, rate
from tiebreak.records import InputError
from tiebreak.run import Run

LESS_IS_BETTER = {"perplexity"}


def gate(run: Run, win_rate: float | None, confidence: float, no_regression: Sequence[str]) -> tuple[bool, str]:
    """Return whether a run shows what is asked of it, and why in one line. Raises InputError where it cannot be told.

    It is about the two models of the verdict: tuned over base, or those that the recipe names first. The win rate is shown
    where the whole interval at this confidence lies above it. A measure has regressed where the 95 % interval of the paired
    difference between the two lies on the worse side of 0.
    """
    if win_rate is None and not no_regression:
        raise InputError("gate: nothing is asked; give --win-rate, or --no-regression with a measure")
    if not run.summary_json.exists():
        raise InputError(f"{run.path}: not evaluated yet; run `tiebreak evaluate` first")
    summary, shown, why = read_json(run.summary_json), True, []
    if win_rate is not None:
        wins = _wins(run, headline_of(summary), confidence)
        if wins is None:
            return False, f"not shown: {summary['verdict']['sentence']}"
        shown = wins.low > win_rate
        word = "above" if shown else "not shown above"
        why.append(
            f"win rate {wins.value:.3f} ({wins.low:.3f} to {wins.high:.3f} at {confidence:.0%}, n = {wins.n} on {wins.prompts} "
            f"prompts) is {word} {win_rate:g}".replace("%", " %")
        )
    for name in no_regression:
        change = _difference(summary, name)
        if change["low"] is None:
            fell, word = True, "cannot be told from one prompt"
        else:
            fell = change["low"] > 0 if name in LESS_IS_BETTER else change["high"] < 0
            word = "is worse" if fell else "is not shown to be worse"
        shown &= not fell
        between = "" if change["low"] is None else f" ({change['low']:+.3g} to {change['high']:+.3g})"
        why.append(f"{name} {word}: {change['mean']:+.3g}{between}, n = {change['n']}")
    return shown, f"{'shown' if shown else 'not shown'}: {'; '.join(why)}"


def _wins(run: Run, headline: tuple[str, str], confidence: float) -> Estimate | None:
    groups: dict[str, list[float]] = {}
    with run.head_to_head_csv.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if (row["model"], row["against"]) == headline and row["verdict"] in WORTH:
                groups.setdefault(row["prompt_id"], []).append(WORTH[row["verdict"]])
    return rate(list(groups.values()), confidence)


def _difference(summary: dict[str, Any], name: str) -> dict[str, Any]:
    known = summary.get("differences") or {}
    if name not in known:
        raise InputError(f"--no-regression {name}: was not measured; there is {', '.join(known) or 'nothing to compare'}")
    found: dict[str, Any] = known[name]
    return found
