"""judge: every judge of the recipe on every completion, or on every two of a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Literal

from tiebreak.judges import Answer, Comparer, Match, Rater
from tiebreak.judges.build import build_judge
from tiebreak.metrics.agreement import Verdicts
from tiebreak.progress import progress
from tiebreak.recipe import Judge, LlmJudge
from tiebreak.records import Comparison, Completion, Prompt, content_hash
from tiebreak.run import Counts, Run, appending

Orders = Literal["both", "random", "first"]


def judge(run: Run) -> Counts:
    """Append the verdicts that are owed, and ask again where the last answer was an error."""
    prompts = {prompt.id: prompt for prompt in run.prompts()}
    if run.ready_made:
        texts = {draw.id: draw for draw in run.draws()}
        twos = [
            (prompts[v.prompt_id], texts[v.first], texts[v.second])
            for v in run.verdicts(run.given_jsonl)
            if isinstance(v, Comparison)
        ]
    else:
        twos = [
            (prompts[group[0].prompt_id], one, other)
            for group in distinct_by_prompt(run.draws()).values()
            for one, other in combinations(group, 2)
        ]
    return {
        section.name: ask(run, section, build_judge(section, run), run.judgments(section.name), twos)
        for section in run.recipe.judges
    }


def ask(
    run: Run, section: Judge, asked: Comparer | Rater, path: Path, twos: list[tuple[Prompt, Completion, Completion]]
) -> Counts:
    """Have one judge decide between two and two completions, and append its verdicts to `path`."""
    have = run.verdicts(path) if path.exists() else []
    if isinstance(section, LlmJudge):
        done = {(verdict.first, verdict.second) for verdict in have if isinstance(verdict, Comparison) and verdict.error is None}
        matches = [
            match for match in _matches(twos, section.orders, run.recipe.seed) if (match.first.id, match.second.id) not in done
        ]
        assert not isinstance(asked, Rater.__class__)
        records = asked.compare(matches)  # type: ignore[union-attr]
        total = len(matches)
    else:
        rated = {verdict.completion_id for verdict in have if not isinstance(verdict, Comparison) and verdict.error is None}
        owed = {each.id: Answer(prompt, each) for prompt, *both in twos for each in both if each.id not in rated}
        records = asked.rate(owed.values())  # type: ignore[union-attr]
        total = len(owed)
    with appending(path) as append, progress(f"judge {section.name}", total, "verdicts") as advance:
        for record in records:
            append(record)
            advance(1)
    return count(run, section, path)


def count(run: Run, section: Judge, path: Path) -> Counts:
    """Count a judge's records, errors, ties, and the contradictions after a swap."""
    records = run.verdicts(path)
    counts: Counts = {
        "kind": section.type,
        "records": len(records),
        "errors": sum(record.error is not None for record in records),
    }
    if isinstance(section, LlmJudge):
        outcomes = [outcome.kind for outcome in Verdicts(records).outcomes()]
        counts |= {
            kind: outcomes.count(name)
            for kind, name in (("ties", "tie"), ("inconsistent", "inconsistent"), ("unreadable", "unreadable"))
        }
        counts["questions"] = len(outcomes)
    return counts


def distinct_by_prompt(draws: list[Completion]) -> dict[str, list[Completion]]:
    """Group draws by prompt, each text once."""
    groups: dict[str, dict[str, Completion]] = {}
    for draw in draws:
        groups.setdefault(draw.prompt_id, {}).setdefault(draw.id, draw)
    return {prompt: list(group.values()) for prompt, group in groups.items()}


def _matches(twos: list[tuple[Prompt, Completion, Completion]], orders: Orders, seed: int) -> Iterator[Match]:
    """Yield what is asked: nobody is asked about an empty answer or about two equal ones."""
    for prompt, one, other in twos:
        if one.id == other.id or not one.text.strip() or not other.text.strip():
            continue
        swap = orders == "random" and int(content_hash(seed, one.id, other.id), 16) % 2 == 1
        yield Match(prompt, other, one) if swap else Match(prompt, one, other)
        if orders == "both":
            yield Match(prompt, other, one)
