"""What several verdicts on the same two completions come to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from tiebreak.records import Comparison, Rating

Kind = Literal["win", "tie", "inconsistent", "unreadable"]


class Outcome(NamedTuple):
    """The settled verdict on two completions; `winner` is an id where `kind` is win."""

    kind: Kind
    winner: str | None = None
    margin: float = 0.0
    flip_probability: float = 0.5
    reason: str = ""


def settle(comparisons: Sequence[Comparison]) -> Outcome:
    """Settle what one judge said of two completions, in one order or both.

    An error leaves the whole question open (`unreadable`): half an answer carries the judge's position bias. The
    margin is |2 s - 1| where s is the share of verdicts won, a tie counting half; the opposite verdict after a swap
    is `inconsistent`. `flip_probability` is (1 - margin) / 2.
    """
    if not comparisons or any(comparison.error is not None for comparison in comparisons):
        return Outcome("unreadable", reason=next((c.error for c in comparisons if c.error), "not judged"))
    one = comparisons[0].first
    shares = [
        0.5 if comparison.winner == "tie" else float((comparison.winner == "first") == (comparison.first == one))
        for comparison in comparisons
    ]
    share = sum(shares) / len(shares)
    reason = next((comparison.reason for comparison in comparisons if comparison.reason), "")
    if share == 0.5:
        return Outcome("tie" if all(each == 0.5 for each in shares) else "inconsistent", reason=reason)
    other = comparisons[0].second
    margin = abs(2 * share - 1)
    return Outcome("win", one if share > 0.5 else other, margin, (1 - margin) / 2, reason)


def settle_ratings(one: Rating | None, other: Rating | None) -> Outcome:
    """Settle two scores: the higher wins by their difference, equal scores tie."""
    if one is None or other is None or one.score is None or other.score is None:
        return Outcome("unreadable", reason=next((r.error for r in (one, other) if r and r.error), "not rated"))
    margin = abs(one.score - other.score)
    if margin < 1e-9:  # sums of weights that are equal on paper
        return Outcome("tie", reason=f"both {one.score:.2f}: {one.reason}")
    better, worse = (one, other) if one.score > other.score else (other, one)
    reason = f"{better.score:.2f} ({better.reason}) against {worse.score:.2f} ({worse.reason})"
    return Outcome("win", better.completion_id, margin, 0.0, reason)


class Verdicts:
    """One judge's verdicts, looked up by two completion ids in any order."""

    def __init__(self, records: Iterable[Comparison | Rating]) -> None:
        self.ratings: dict[str, Rating] = {}
        self.comparisons: dict[frozenset[str], list[Comparison]] = {}
        for record in records:
            if isinstance(record, Rating):
                self.ratings[record.completion_id] = record
            else:
                self.comparisons.setdefault(frozenset((record.first, record.second)), []).append(record)

    def outcome(self, one: str, other: str) -> Outcome:
        """Return the settled verdict on two completions."""
        if self.ratings:
            return settle_ratings(self.ratings.get(one), self.ratings.get(other))
        return settle(self.comparisons.get(frozenset((one, other)), ()))

    def outcomes(self) -> list[Outcome]:
        """Return the settled verdict of every two completions that were compared."""
        return [settle(comparisons) for comparisons in self.comparisons.values()]

    def score(self, one: str, others: Sequence[str]) -> float | None:
        """Return a completion's rating, or its share of wins against `others`; None where nothing is known."""
        if self.ratings:
            rating = self.ratings.get(one)
            return rating.score if rating else None
        met = [outcome for other in others if other != one and (outcome := self.outcome(one, other)).kind != "unreadable"]
        if not met:
            return None
        return sum(0.5 if o.kind != "win" else float(o.winner == one) for o in met) / len(met)
