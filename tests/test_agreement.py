"""What verdicts come to: two orders, errors, ties, scores."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripted import compared, completion, prompt, rated
from tiebreak.metrics.agreement import Outcome, Verdicts, settle, settle_ratings

P = prompt("p")
X, Y, Z = (completion(P, text).id for text in "xyz")

# What the judge says of (x, y) and then of (y, x); None where it was not asked the other way round.
SETTLED = [
    ("first", "second", "win", X, 1.0),
    ("second", "first", "win", Y, 1.0),
    ("tie", "tie", "tie", None, 0.0),
    ("first", "first", "inconsistent", None, 0.0),
    ("second", "second", "inconsistent", None, 0.0),
    ("first", "tie", "win", X, 0.5),
    ("tie", "second", "win", X, 0.5),
    ("second", "tie", "win", Y, 0.5),
    ("tie", "first", "win", Y, 0.5),
    ("first", None, "win", X, 1.0),
    ("second", None, "win", Y, 1.0),
    ("tie", None, "tie", None, 0.0),
    ("timed out", None, "unreadable", None, 0.0),
    ("timed out", "timed out", "unreadable", None, 0.0),
    ("first", "no verdict line", "unreadable", None, 0.0),
    ("no verdict line", "tie", "unreadable", None, 0.0),
]


@pytest.mark.parametrize(("there", "back", "kind", "winner", "margin"), SETTLED)
def test_settle(there: str, back: str | None, kind: str, winner: str | None, margin: float) -> None:
    comparisons = [compared(P, "x", "y", there)] + ([compared(P, "y", "x", back)] if back else [])
    for order in permutations(comparisons):
        outcome = settle(order)
        assert (outcome.kind, outcome.winner, outcome.margin) == (kind, winner, margin)
        assert outcome.flip_probability == (1 - margin) / 2
    assert settle(comparisons).reason == (
        next(said for said in (there, back) if said not in ("first", "second", "tie", None))
        if kind == "unreadable"
        else f"says {there}"
    )


def test_nothing_said_settles_nothing() -> None:
    assert settle([]) == Outcome("unreadable", reason="not judged")


@given(st.integers(2, 6))
def test_a_judge_that_always_says_first_contradicts_itself_every_time(n: int) -> None:
    texts = [str(at) for at in range(n)]
    records = [compared(P, one, other, "first") for one, other in permutations(texts, 2)]
    outcomes = Verdicts(records).outcomes()
    assert len(outcomes) == n * (n - 1) / 2
    assert {outcome.kind for outcome in outcomes} == {"inconsistent"}


@given(st.sampled_from(["first", "second", "tie", "broken"]), st.sampled_from(["first", "second", "tie", "broken", None]))
def test_exchanging_the_two_exchanges_the_winner(there: str, back: str | None) -> None:
    def outcome(one: str, other: str) -> Outcome:
        return settle([compared(P, one, other, there)] + ([compared(P, other, one, back)] if back else []))

    straight, exchanged = outcome("x", "y"), outcome("y", "x")
    assert (straight.kind, straight.margin) == (exchanged.kind, exchanged.margin)
    assert {straight.winner, exchanged.winner} == ({X, Y} if straight.kind == "win" else {None})


RATED = [
    (0.75, 0.5, "win", X, 0.25),
    (0.0, 1.0, "win", Y, 1.0),
    (0.5, 0.5, "tie", None, 0.0),
    (0.1 + 0.2, 0.3, "tie", None, 0.0),
    (None, 0.5, "unreadable", None, 0.0),
    (0.5, None, "unreadable", None, 0.0),
    (None, None, "unreadable", None, 0.0),
]


@pytest.mark.parametrize(("one", "other", "kind", "winner", "margin"), RATED)
def test_settle_ratings(one: float | None, other: float | None, kind: str, winner: str | None, margin: float) -> None:
    outcome = settle_ratings(rated(P, "x", one), rated(P, "y", other))
    assert (outcome.kind, outcome.winner, outcome.margin) == (kind, winner, margin)
    assert outcome.flip_probability == (0.0 if kind == "win" else 0.5)  # a score does not contradict itself
    reason = {"win": "0.75 (so it is) against 0.50 (so it is)", "tie": "both 0.50: so it is", "unreadable": "broke"}
    if (one, other) != (0.0, 1.0) and kind != "tie":
        assert outcome.reason == reason[kind]


def test_a_completion_without_a_rating_settles_nothing() -> None:
    assert settle_ratings(rated(P, "x", 1.0), None).reason == settle_ratings(None, None).reason == "not rated"


def test_verdicts_are_found_in_any_order() -> None:
    verdicts = Verdicts([compared(P, "x", "y", "first"), compared(P, "z", "x", "first"), compared(P, "y", "x", "second")])
    assert verdicts.outcome(X, Y) == verdicts.outcome(Y, X)
    assert verdicts.outcome(X, Y).winner == X
    assert verdicts.outcome(X, Z).winner == Z
    assert verdicts.outcome(Y, Z).reason == "not judged"
    rates = Verdicts([rated(P, "x", 0.2), rated(P, "y", 0.4)])
    assert rates.outcome(X, Y).winner == rates.outcome(Y, X).winner == Y
    assert rates.outcomes() == []


def test_the_score_of_a_completion() -> None:
    """x beats y, ties with z; y and z could not be read."""
    verdicts = Verdicts([compared(P, "x", "y", "first"), compared(P, "x", "z", "tie"), compared(P, "y", "z", "broken")])
    everyone = [X, Y, Z]
    assert [verdicts.score(each, everyone) for each in everyone] == [0.75, 0.0, 0.5]
    assert verdicts.score(X, [X]) is None
    assert Verdicts([compared(P, "y", "z", "broken")]).score(Y, everyone) is None
    rates = Verdicts([rated(P, "x", 0.2), rated(P, "y", None)])
    assert [rates.score(each, everyone) for each in everyone] == [0.2, None, None]
