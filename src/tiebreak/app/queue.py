"""What people are asked next: what judges dispute, a random sample, or what other people dispute."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

from tiebreak.app import votes
from tiebreak.app.votes import About, Both, Said, Shown
from tiebreak.judges.human import Vote
from tiebreak.metrics.agreement import Agreement, Outcome, Two, Verdicts, agreement
from tiebreak.recipe import GIVEN, CascadeJudge, PanelJudge
from tiebreak.records import content_hash
from tiebreak.run import Run
from tiebreak.stages.twos import met, twos

Order = Literal["disputed", "random", "second opinion"]
Standing = Mapping[Both, Sequence[Vote]]
"""The votes that count, by the two that they are about."""
END = "end"
"""Name of the question where there is none left."""
CLAIM = 600.0
"""Seconds that others are asked something else."""


class Desk(NamedTuple):
    """What there is to judge, and what the judges of a run that decide for themselves said of it."""

    twos: dict[Both, Two]
    judges: dict[str, Verdicts]
    seed: int


@dataclass(frozen=True, eq=False)
class Sitting:
    """What one person does from Start on; no tuple, since Gradio goes through all of one at every event to see a change."""

    run: str
    labeller: str
    about: About
    order: Order
    began: float
    desk: Desk
    asked: list[Both]
    """All there is in this order, judged or not; of second opinions none, as there are others every moment."""
    shown: Shown | None = None
    """What is before them; None where nothing is left."""
    trail: tuple[tuple[Shown, str], ...] = ()
    """What they said, and `skip`, to be taken back from the end."""
    skipped: frozenset[Both] = frozenset()
    times: tuple[float, ...] = ()

    @property
    def question(self) -> str:
        """What tells a verdict on this from one on what stood here before."""
        return "-".join(self.shown[1:]) if self.shown else END


def desk(run: Run, about: About = "training") -> Desk:
    """Read every two completions that somebody can be asked about, each once, and the judges' verdicts."""
    training = about == "training"
    asked = {
        frozenset((one.id, other.id)): (prompt, one, other)
        for prompt, one, other in (twos(run) if training else met(run))
        if one.id != other.id and one.text.strip() and other.text.strip()
    }
    own = votes.judge_of(run)
    names = [judge.name for judge in run.recipe.judges if not isinstance(judge, PanelJudge | CascadeJudge) and judge.name != own]
    place = run.judgments if training else run.eval_judgments
    records = {name: run.verdicts(place(name)) for name in names + [GIVEN] * (run.ready_made and training)}
    return Desk(asked, {name: Verdicts(each) for name, each in records.items() if each}, run.recipe.seed)


def ordered(desk: Desk, order: Order, standing: Standing, labeller: str) -> list[Both]:
    """Return what there is to ask somebody, the most telling first.

    `disputed` and `random` go through all twos; see `dispute`. `second opinion` has those that others judged and this
    person did not, where people contradict each other, and then where they contradict a judge.
    """
    if order == "second opinion":
        levels = {
            both: _contested(desk, both, group)
            for both, group in standing.items()
            if both in desk.twos and all(vote.labeller != labeller for vote in group)
        }
        return sorted((both for both, level in levels.items() if level), key=lambda both: (-levels[both], sorted(both)))
    chance = {both: content_hash(desk.seed, *sorted(both)) for both in desk.twos}
    if order == "random":
        return sorted(desk.twos, key=chance.__getitem__)
    found = {both: dispute(desk, both) for both in desk.twos}
    ranked, nth, met = sorted(desk.twos, key=lambda both: (found[both], chance[both])), {}, Counter[tuple[object, ...]]()
    for both in ranked:  # not all of a prompt in a row, where others are as much in dispute
        place = (found[both], desk.twos[both][0].id)
        met[place] += 1
        nth[both] = met[place]
    return sorted(ranked, key=lambda both: (found[both], nth[both], chance[both]))


def dispute(desk: Desk, both: Both) -> tuple[float, float]:
    """Return how little the judges settle two completions, the least settled first: two numbers in tenths.

    The first is minus the entropy of the mean of the judges' distributions over first, tie and second, as a share of the
    most there can be: vote entropy (Dagan and Engelson 1995) with each judge's own doubt in it, so that judges who contradict
    each other or themselves come first, and what no judge has a verdict on before all. The second is the mean margin.
    """
    _, one, other = desk.twos[both]
    given = [outcome for judge in desk.judges.values() if (outcome := judge.outcome(one.id, other.id)).kind != "unreadable"]
    if not given:
        return -1.0, 0.0
    shares = [math.fsum(each) / len(given) for each in zip(*(_shares(outcome, one.id) for outcome in given), strict=True)]
    entropy = -math.fsum(share * math.log(share) for share in shares if share) / math.log(3)
    return -round(entropy, 1), round(math.fsum(outcome.margin for outcome in given) / len(given), 1)


def _shares(outcome: Outcome, one: str) -> tuple[float, float, float]:
    """Return how likely a judge is to say first, tie and second, `one` being the first."""
    if outcome.kind == "tie":
        return 0.0, 1.0, 0.0
    first = outcome.probability(one)  # of a contradiction one half
    return first, 0.0, 1 - first


def _contested(desk: Desk, both: Both, given: Sequence[Vote]) -> int:
    """Return 2 where people contradict each other, 1 where they contradict a judge, else 0."""
    said = {vote.winner for vote in given}
    if len(said) != 1:
        return 2 if said else 0
    outcomes = [judge.outcome(*both) for judge in desk.judges.values()]
    return int(any(outcome.kind != "unreadable" and outcome.vote(given[0].first) not in said for outcome in outcomes))


# --- for one person ------------------------------------------------------------------------------------------------


def waiting(asked: Iterable[Both], order: Order, standing: Standing, labeller: str) -> Iterator[Both]:
    """Yield what is still to be asked: by anybody, and for a second opinion by this person."""
    for both in asked:
        given = standing.get(both, ())
        if all(vote.labeller != labeller for vote in given) if order == "second opinion" else not given:
            yield both


def blind(desk: Desk, both: Both, labeller: str) -> Shown:
    """Put two completions in an order that has nothing to do with who wrote them: each person has their own."""
    prompt, one, other = desk.twos[both]
    first, second = sorted((one.id, other.id), key=lambda each: content_hash(desk.seed, labeller, sorted(both), each))
    return Shown(prompt.id, first, second)


def agreements(desk: Desk, standing: Standing, labeller: str) -> dict[str, Agreement]:
    """Compare a person's blind verdicts with those of each judge, and of each other person, that decided the same twos."""
    given = [vote for both, group in standing.items() if both in desk.twos for vote in group]
    people = dict.fromkeys(vote.labeller for vote in given if vote.labeller != labeller)
    mine = votes.as_comparisons(given, labeller)
    asked = [desk.twos[frozenset((each.first, each.second))] for each in mine]
    others = desk.judges | {f"{name} (person)": Verdicts(votes.as_comparisons(given, name)) for name in people}
    own = Verdicts(mine)
    return {name: found for name, other in others.items() if (found := agreement([own, other], asked))}


# --- one person at work --------------------------------------------------------------------------------------------

_claims: dict[tuple[Path, Both], tuple[str, float]] = {}
"""Who has what before them, and since when."""


def begin(run: Run, name: str, labeller: str, order: Order, about: About = "training") -> Sitting:
    """Sit somebody down before the first question. Raises InputError."""
    known = {vote.labeller for group in standing(run, about).values() for vote in group}
    there = _read(run.path, about, _stamp(run, about))
    asked = ordered(there, order, {}, "") if order != "second opinion" else []
    sitting = Sitting(name, votes.named(labeller, known), about, order, time.time(), there, asked)
    return replace(sitting, shown=_next(run, sitting))


def answer(run: Run, sitting: Sitting, question: str, word: str) -> Sitting:
    """Do what somebody said to a question; what was said to one that is no longer there does nothing. Raises InputError."""
    if question != sitting.question:
        return sitting
    if word == "undo":
        return _undo(run, sitting)
    shown = sitting.shown
    if shown is None or word not in (*get_args(Said), "skip"):
        return sitting
    if word == "skip":
        sitting = replace(sitting, skipped=sitting.skipped | {shown.both})
    else:
        votes.vote(run, shown, cast(Said, word), sitting.labeller, sitting.about, via="label", order=sitting.order)
        sitting = replace(sitting, times=(*sitting.times, time.time()))
    sitting = replace(sitting, trail=(*sitting.trail, (shown, word)))
    return replace(sitting, shown=_next(run, sitting))


def left(run: Run, sitting: Sitting) -> list[Both]:
    """Return what is still to be asked of somebody, what they skipped included, in its order."""
    said, asked = standing(run, sitting.about), sitting.asked
    if sitting.order == "second opinion":  # which depends on what others said a moment ago
        asked = ordered(sitting.desk, sitting.order, said, sitting.labeller)
    return list(waiting(asked, sitting.order, said, sitting.labeller))


def standing(run: Run, about: About = "training") -> Standing:
    """Return the votes that count."""
    path = votes.place(run, about)
    return _said(run.path, about, (path.stat().st_mtime_ns, path.stat().st_size)) if path.exists() else {}


def _undo(run: Run, sitting: Sitting) -> Sitting:
    if not sitting.trail:
        return sitting
    *trail, (shown, word) = sitting.trail
    if word != "skip":
        votes.withdraw(run, shown, sitting.labeller, sitting.about)
        sitting = replace(sitting, times=sitting.times[:-1])
    return replace(sitting, shown=shown, trail=tuple(trail), skipped=sitting.skipped - {shown.both})


def _next(run: Run, sitting: Sitting) -> Shown | None:
    """Return what is asked next: what nobody else has before them, where there is any such."""
    there, now = [both for both in left(run, sitting) if both not in sitting.skipped], time.time()
    both = next((both for both in there if _free(run, both, sitting.labeller, now)), there[0] if there else None)
    if both is None:
        return None
    _claims[run.path, both] = sitting.labeller, now
    return blind(sitting.desk, both, sitting.labeller)


def _free(run: Run, both: Both, labeller: str, now: float) -> bool:
    who, since = _claims.get((run.path, both), (labeller, now))
    return who == labeller or now - since > CLAIM


def _stamp(run: Run, about: About) -> tuple[Any, ...]:
    """Return what changes when there is something else to ask, or judges said something else."""
    own, texts = votes.place(run, about), run.completions_jsonl if about == "training" else run.eval_completions_jsonl
    judges = sorted(path for path in own.parent.glob("*.jsonl") if path != own)
    files = (run.recipe_json, run.prompts_jsonl, texts, *judges)
    return tuple((file.name, stat.st_mtime_ns, stat.st_size) for file in files if file.exists() and (stat := file.stat()))


@lru_cache(2)
def _read(path: Path, about: About, stamp: tuple[Any, ...]) -> Desk:  # noqa: ARG001  by which it is remembered
    return desk(Run(path), about)


@lru_cache(2)
def _said(path: Path, about: About, stamp: tuple[int, int]) -> Standing:  # noqa: ARG001
    return votes.standing(Run(path), about)
