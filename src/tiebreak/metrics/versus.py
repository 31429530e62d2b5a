"""What the meetings of two models come to, and those of several."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tiebreak.metrics.length_control import length_controlled
from tiebreak.metrics.power import prompts_needed
from tiebreak.metrics.ratings import ladder
from tiebreak.metrics.winrate import Estimate, bootstrap, paired_test, rate
from tiebreak.records import Completion, Prompt

WORTH = {"win": 1.0, "tie": 0.5, "inconsistent": 0.5, "loss": 0.0}
"""What a verdict counts for the model; an error counts nowhere but among the failures."""
Draws = dict[int, Completion]
"""A model's completions of one prompt, by their number."""


class Meeting(NamedTuple):
    """Two models on one draw of one held-out prompt; `verdict` is win, loss, tie, inconsistent or error."""

    prompt: Prompt
    model: Completion
    against: Completion
    verdict: str
    reason: str


def headline_of(summary: Mapping[str, Any]) -> tuple[str, str]:
    """Return the two models that the verdict of a summary is about, as (model, against)."""
    model, against = summary.get("headline") or ("tuned", "base")
    return model, against


def word(low: float, high: float) -> str:
    """Say what the interval of a win rate, not its mean, allows."""
    return "better" if low > 0.5 else "worse" if high < 0.5 else "no difference"


def versus(meetings: Sequence[Meeting]) -> dict[str, Any] | None:
    """Return a model's win rate over another with all that qualifies it; None where no verdict could be read."""
    groups = _by_prompt(meetings)
    shares = [[WORTH[meeting.verdict] for meeting in group if meeting.verdict in WORTH] for group in groups]
    wins, resampled, tested = rate(shares), bootstrap(shares), paired_test(shares)
    if wins is None or resampled is None or tested is None:
        return None
    tally = Counter(meeting.verdict for meeting in meetings)
    lengths = [
        [(WORTH[each.verdict], len(each.model.text), len(each.against.text)) for each in group if each.verdict in WORTH]
        for group in groups
    ]
    controlled = length_controlled(lengths)
    found = plain(wins) | {name: tally[name] for name in ("win", "tie", "loss", "inconsistent")} | {"failed": tally["error"]}
    found |= {
        "bootstrap": {"low": resampled.low, "high": resampled.high},
        "p_value": tested.p,
        "prompts_needed": prompts_needed(shares),
        "length_controlled": plain(controlled.estimate) | {"note": controlled.note} if controlled.estimate else None,
    }
    kinds = [_kind(group[0].prompt) for group in groups]
    found["categories"] = [
        {"name": name, **plain(own)}
        for name in sorted({kind for kind in kinds if kind is not None})
        if (own := rate([some for some, kind in zip(shares, kinds, strict=True) if kind == name]))
    ]
    return found


def _kind(prompt: Prompt) -> str | None:
    """Return what kind a prompt is of: its category, or the dataset that AlpacaEval has it from."""
    kind = prompt.meta.get("category", prompt.meta.get("dataset"))
    return None if kind is None else str(kind)


def ratings_of(meetings: Mapping[tuple[str, str], Sequence[Meeting]], baseline: str) -> list[dict[str, Any]]:
    """Rate all models from all meetings, in Elo's points beside the baseline, the best first."""
    games: dict[str, list[tuple[str, str, float]]] = {}
    for (model, against), some in meetings.items():
        for meeting in some:
            if meeting.verdict in WORTH:
                games.setdefault(meeting.prompt.id, []).append((model, against, WORTH[meeting.verdict]))
    rows = []
    for rated in ladder(list(games.values()), baseline, {name for both in meetings for name in both}):
        elo = plain(rated.elo, "elo") if rated.elo else {"elo": None, "low": None, "high": None, "n": rated.games}
        rows.append({"model": rated.name, **elo})
    return rows


def _by_prompt(meetings: Sequence[Meeting]) -> list[list[Meeting]]:
    groups: dict[str, list[Meeting]] = {}
    for meeting in meetings:
        groups.setdefault(meeting.prompt.id, []).append(meeting)
    return list(groups.values())


def plain(estimate: Estimate, name: str = "rate") -> dict[str, Any]:
    """Return an estimate as JSON has it: one prompt gives a mean no interval, and there is no word for infinity."""
    low, high = (value if math.isfinite(value) else None for value in (estimate.low, estimate.high))
    return {name: estimate.value, "low": low, "high": high, "n": estimate.n, "prompts": estimate.prompts}
