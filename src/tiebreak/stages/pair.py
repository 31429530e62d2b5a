"""pair: verdicts become preference pairs, and everything that does not is counted under its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations, islice
from typing import NamedTuple

from tiebreak.files import write_jsonl
from tiebreak.metrics.agreement import Outcome, Verdicts
from tiebreak.recipe import GIVEN
from tiebreak.records import Comparison, Completion, InputError, Message, PreferencePair, Prompt
from tiebreak.run import Counts, Run

REASONS = ("identical", "repeated", "empty", "unreadable", "inconsistent", "tie", "too close")


class Attempt(NamedTuple):
    """Two completions that the strategy would make a pair of; `why_not` is one of REASONS, None where they are one."""

    prompt: Prompt
    one: Completion
    other: Completion
    outcome: Outcome
    why_not: str | None

    @property
    def ranked(self) -> tuple[Completion, Completion]:
        """Chosen and rejected."""
        return (self.other, self.one) if self.outcome.winner == self.other.id else (self.one, self.other)


def pair(run: Run) -> Counts:
    """Write the training pairs, and the held-out pairs apart from them so that no trainer meets them by mistake."""
    provenance = {
        "judge": run.recipe.labelling_judge,
        "strategy": GIVEN if run.recipe.prompts.pairs else run.recipe.pair.strategy,
    }
    kept: dict[str, list[PreferencePair]] = {"train": [], "test": []}
    dropped = {"train": Counter[str](), "test": Counter[str]()}
    for attempt in attempts(run):
        if attempt.why_not is None:
            kept[attempt.prompt.split].append(_pair(attempt, provenance))
        else:
            dropped[attempt.prompt.split][attempt.why_not] += 1
    write_jsonl(run.held_out_pairs_jsonl, kept["test"])
    write_jsonl(run.pairs_jsonl, kept["train"])
    return {
        name: {
            "attempted": len(kept[split]) + dropped[split].total(),
            "usable": len(kept[split]),
            "dropped": {reason: dropped[split][reason] for reason in REASONS if dropped[split][reason]},
        }
        for name, split in (("train", "train"), ("held_out", "test"))
    }


def attempts(run: Run) -> Iterator[Attempt]:
    """Yield every two completions that the strategy takes up, prompt by prompt. Raises InputError without verdicts."""
    settings, path = run.recipe.pair, run.judgments(run.recipe.labelling_judge)
    if not path.exists():
        raise InputError(f"{path}: no verdicts of {run.recipe.labelling_judge!r}; run `tiebreak judge` first")
    verdicts = Verdicts(run.verdicts(path))
    draws: dict[str, list[Completion]] = {}
    for draw in run.draws():
        draws.setdefault(draw.prompt_id, []).append(draw)
    given: dict[str, list[tuple[str, str]]] = {}
    if run.recipe.prompts.pairs:
        for verdict in run.verdicts(run.given_jsonl):
            if isinstance(verdict, Comparison):
                given.setdefault(verdict.prompt_id, []).append((verdict.first, verdict.second))
    for prompt in run.prompts():
        own = draws.get(prompt.id, [])
        texts = {draw.id: draw for draw in own}
        seen: set[frozenset[str]] = set()
        for both in given.get(prompt.id, []) if run.recipe.prompts.pairs else _candidates(own, settings.strategy, verdicts):
            one, other, outcome = texts[both[0]], texts[both[1]], verdicts.outcome(*both)
            yield Attempt(prompt, one, other, outcome, _why_not(one, other, outcome, seen, settings.min_margin))
            seen.add(frozenset(both))


def _candidates(draws: Sequence[Completion], strategy: str, verdicts: Verdicts) -> Iterator[tuple[str, str]]:
    """Yield the ids of the twos that a strategy takes up; draws that came out equal are attempts too."""
    ids = [draw.id for draw in draws]
    distinct = {draw.id: draw.text for draw in draws}
    if strategy == "all" or len(distinct) < 2:
        yield from islice(combinations(ids, 2), None if strategy == "all" else 1)
        return
    scores = {each: verdicts.score(each, list(distinct)) if text.strip() else None for each, text in distinct.items()}
    ranked = sorted(distinct, key=lambda each: (scores[each] is None, -(scores[each] or 0.0)))
    known = sum(score is not None for score in scores.values())
    if strategy == "best_worst":
        yield ranked[0], ranked[max(1, known - 1)]
    else:
        yield from ((ranked[0], other) for other in ranked[1:])


def _why_not(one: Completion, other: Completion, outcome: Outcome, seen: set[frozenset[str]], min_margin: float) -> str | None:
    """Return why two completions make no pair, or None where they do."""
    if one.id == other.id:
        return "identical"
    if frozenset((one.id, other.id)) in seen:
        return "repeated"
    if not one.text.strip() or not other.text.strip():
        return "empty"
    if outcome.kind != "win":
        return outcome.kind
    return "too close" if outcome.margin < min_margin - 1e-9 else None  # 0.7 - 0.4 is a margin of 0.3


def _pair(attempt: Attempt, provenance: dict[str, str]) -> PreferencePair:
    chosen, rejected = attempt.ranked
    return PreferencePair(
        prompt=attempt.prompt.messages,
        chosen=(Message(role="assistant", content=chosen.text),),
        rejected=(Message(role="assistant", content=rejected.text),),
        margin=attempt.outcome.margin,
        flip_probability=attempt.outcome.flip_probability,
        provenance={"prompt_id": attempt.prompt.id, "chosen_id": chosen.id, "rejected_id": rejected.id, **provenance},
    )
