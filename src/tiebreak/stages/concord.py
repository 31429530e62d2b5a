"""How far the evaluating judge agrees with the one that made the labels, and with people."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tiebreak.judges import human
from tiebreak.metrics.agreement import Agreement, Outcome, Two, Verdicts, agreement
from tiebreak.metrics.versus import plain
from tiebreak.recipe import HumanJudge, Judge
from tiebreak.records import content_hash
from tiebreak.run import Run
from tiebreak.stages.judge import ask
from tiebreak.stages.twos import twos

MOST = 100
"""Held-out pairs that the evaluating judge is asked about."""


def concord(run: Run, section: Judge, met: Sequence[Two]) -> dict[str, Any]:
    """Return `with_labels`, on held-out pairs, and `with_people`, on all twos that they have a verdict on.

    `section` is the evaluating judge, `met` what it was asked in the evaluation. What it has not said of the held-out pairs
    when the labels were made it is asked now.
    """
    whole, name = run.recipe, section.name
    found: dict[str, Any] = {"with_labels": None, "with_people": []}
    if whole.makes_pairs and name != whole.labelling_judge:
        pairs = _held_out(run)
        own, label = _Several(_own(run, name)), whole.labelling_judge
        owed = [two for two in pairs if own.outcome(two[1].id, two[2].id).kind == "unreadable"]
        if owed and not isinstance(section, HumanJudge):
            ask(run, section, lambda each: _apart(run, each), owed)
        labels = Verdicts(run.verdicts(run.judgments(label)))
        with_labels = agreement([labels, _Several(_own(run, name))], pairs)
        found["with_labels"] = _plain(label, with_labels) | {"asked": len(pairs)} if pairs else None
    people = [other for other in whole.judges if isinstance(other, HumanJudge) and other.name != name]
    for other in people:
        both = agreement([_Several(_said(run, other, met)), _Several(_own(run, name))], [*twos(run), *met])
        found["with_people"] += [_plain(other.name, both)] if both else []
    return found


class _Several(Verdicts):
    """One judge's verdicts from several places; the first that can be read counts."""

    def __init__(self, places: Iterator[Verdicts]) -> None:
        super().__init__(())
        self._places = list(places)

    def outcome(self, one: str, other: str) -> Outcome:
        """Return the settled verdict on two completions."""
        outcomes = (place.outcome(one, other) for place in self._places)
        return next((each for each in outcomes if each.kind != "unreadable"), Outcome("unreadable", reason="not judged"))


def _own(run: Run, name: str) -> Iterator[Verdicts]:
    """Yield what a judge said of the completions that pairs are made of, of the evaluation's, and of held-out pairs alone."""
    for path in (run.judgments(name), run.eval_judgments(name), _apart(run, name)):
        yield Verdicts(run.verdicts(path))


def _apart(run: Run, name: str) -> Path:
    return run.eval_judgments(f"held-out-pairs/{name}")  # no judge's name holds a slash


def _said(run: Run, people: HumanJudge, met: Sequence[Two]) -> Iterator[Verdicts]:
    """Yield what people said: what the run holds of it, and what their file says of the evaluation's answers."""
    yield Verdicts(run.verdicts(run.judgments(people.name)))
    yield Verdicts(run.verdicts(run.eval_judgments(people.name)))
    if people.file is not None and os.path.isfile(path := run.resolve(people.file)):  # noqa: PTH113  of any length
        prompts = {prompt.id: prompt for prompt, _, _ in met}
        completions = {each.id: each for _, *both in met for each in both}
        yield Verdicts(human.verdicts(path, people.name, prompts.values(), completions.values())[0])


def _held_out(run: Run) -> list[Two]:
    """Return up to MOST held-out pairs as twos, the same ones in whatever order they stand."""
    prompts, draws = {prompt.id: prompt for prompt in run.prompts()}, {draw.id: draw for draw in run.draws()}
    made = [pair.provenance for pair in run.pairs(run.held_out_pairs_jsonl)]
    ids = sorted(
        ((pair["prompt_id"], pair["chosen_id"], pair["rejected_id"]) for pair in made),
        key=lambda each: content_hash(run.recipe.seed, "agreement", each),
    )
    return [(prompts[prompt], draws[chosen], draws[rejected]) for prompt, chosen, rejected in ids[:MOST]]


def _plain(judge: str, found: Agreement | None) -> dict[str, Any]:
    if found is None:
        return {"judge": judge, "rate": None, "low": None, "high": None, "n": 0, "prompts": 0, "kappa": None}
    return {"judge": judge, **plain(found.share), "kappa": plain(found.kappa, "kappa") if found.kappa else None}
