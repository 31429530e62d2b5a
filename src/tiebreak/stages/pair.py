"""pair: verdicts become preference pairs, and everything that does not is counted under its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations

from tiebreak.metrics.agreement import Outcome, Verdicts
from tiebreak.records import Comparison, Completion, InputError, Message, PreferencePair, Prompt
from tiebreak.recipe import GIVEN
from tiebreak.run import Counts, Run, write_jsonl

REASONS = ("identical", "repeated", "empty", "unreadable", "inconsistent", "tie", "too close")


def pair(run: Run) -> Counts:
    """Write the training pairs, and the held-out pairs apart from them so that no trainer meets them by mistake."""
    judge, strategy = run.recipe.labelling_judge, run.recipe.pair.strategy
    path = run.judgments(judge)
    if not path.exists():
        raise InputError(f"{path}: no verdicts of {judge!r}; run `tiebreak judge` first")
    verdicts = Verdicts(run.verdicts(path))
    draws: dict[str, list[Completion]] = {}
    for draw in run.draws():
        draws.setdefault(draw.prompt_id, []).append(draw)
    given: dict[str, list[tuple[str, str]]] = {}
    if run.ready_made:
        for verdict in run.verdicts(run.given_jsonl):
            if isinstance(verdict, Comparison):
                given.setdefault(verdict.prompt_id, []).append((verdict.first, verdict.second))
    kept: dict[str, list[PreferencePair]] = {"train": [], "test": []}
    attempted, dropped = Counter[str](), {"train": Counter[str](), "test": Counter[str]()}
    for prompt in run.prompts():
        texts = {draw.id: draw.text for draw in draws.get(prompt.id, [])}
        if run.ready_made:
            candidates = given.get(prompt.id, [])
        else:
            candidates = list(_candidates(draws.get(prompt.id, []), strategy, verdicts))
        seen: set[frozenset[str]] = set()
        for one, other in candidates:
            attempted[prompt.split] += 1
            outcome = verdicts.outcome(one, other)
            reason = _why_not(one, other, texts, seen, outcome, run.recipe.pair.min_margin)
            seen.add(frozenset((one, other)))
            if reason is not None:
                dropped[prompt.split][reason] += 1
                continue
            winner = outcome.winner or one
            kept[prompt.split].append(_pair(prompt, texts, winner, other if winner == one else one, outcome, judge, strategy))
    write_jsonl(run.held_out_pairs_jsonl, kept["test"])
    write_jsonl(run.pairs_jsonl, kept["train"])
    return {
        name: {
            "attempted": attempted[split],
            "usable": len(kept[split]),
            "dropped": {reason: dropped[split][reason] for reason in REASONS if dropped[split][reason]},
        }
        for name, split in (("train", "train"), ("held_out", "test"))
    }


def _candidates(draws: list[Completion], strategy: str, verdicts: Verdicts) -> Iterator[tuple[str, str]]:
    """Yield the pairs of ids that a strategy attempts; draws that came out equal are attempts too."""
    ids = [draw.id for draw in draws]
    if strategy == "all":
        yield from combinations(ids, 2)
        return
    distinct = list(dict.fromkeys(ids))
    if len(distinct) < 2:
        if len(ids) > 1:
            yield ids[0], ids[1]
        return
    scores = {each: verdicts.score(each, distinct) for each in distinct}
    ranked = sorted(distinct, key=lambda each: (scores[each] is None, -(scores[each] or 0.0)))
    known = [each for each in ranked if scores[each] is not None]
    if strategy == "best_worst":
        yield (known[0], known[-1]) if len(known) > 1 else (ranked[0], ranked[-1])
    else:
        yield from ((ranked[0], other) for other in ranked[1:])


def _why_not(  # noqa: PLR0911  one line a reason
    one: str, other: str, texts: dict[str, str], seen: set[frozenset[str]], outcome: Outcome, min_margin: float
) -> str | None:
    """Return why two completions make no pair, or None where they do."""
    if one == other:
        return "identical"
    if frozenset((one, other)) in seen:
        return "repeated"
    if not texts[one].strip() or not texts[other].strip():
        return "empty"
    if outcome.kind != "win":
        return outcome.kind
    if outcome.margin < min_margin:
        return "too close"
    return None


def _pair(
    prompt: Prompt, texts: dict[str, str], chosen: str, rejected: str, outcome: Outcome, judge: str, strategy: str
) -> PreferencePair:
    return PreferencePair(
        prompt=prompt.messages,
        chosen=(Message(role="assistant", content=texts[chosen]),),
        rejected=(Message(role="assistant", content=texts[rejected]),),
        margin=outcome.margin,
        flip_probability=outcome.flip_probability,
        provenance={
            "prompt_id": prompt.id,
            "chosen_id": chosen,
            "rejected_id": rejected,
            "judge": judge,
            "strategy": GIVEN if judge == GIVEN else strategy,
        },
    )
