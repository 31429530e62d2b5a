"""judge: every judge of the recipe on every completion, or on every two of a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Literal, cast

from tiebreak.files import appending
from tiebreak.judges import Answer, Comparer, Match, Rater
from tiebreak.judges.build import build_judge
from tiebreak.metrics.agreement import Verdicts
from tiebreak.progress import progress
from tiebreak.recipe import Judge, LlmJudge
from tiebreak.records import Comparison, Completion, Prompt, Rating, content_hash
from tiebreak.run import Counts, Run

Orders = Literal["both", "random", "first"]
Two = tuple[Prompt, Completion, Completion]


def judge(run: Run) -> Counts:
    """Append the verdicts that are owed, and ask again where the last answer was an error."""
    asked = twos(run)
    return {section.name: ask(run, section, run.judgments(section.name), asked) for section in run.recipe.judges}


def twos(run: Run) -> list[Two]:
    """Return every two distinct completions of a prompt; of ready-made pairs, the two of each pair."""
    prompts, draws = {prompt.id: prompt for prompt in run.prompts()}, run.draws()
    if run.ready_made:
        texts = {draw.id: draw for draw in draws}
        given = (verdict for verdict in run.verdicts(run.given_jsonl) if isinstance(verdict, Comparison))
        return [(prompts[verdict.prompt_id], texts[verdict.first], texts[verdict.second]) for verdict in given]
    return [
        (prompts[prompt], one, other)
        for prompt, group in distinct_by_prompt(draws).items()
        for one, other in combinations(group, 2)
    ]


def distinct_by_prompt(draws: Iterable[Completion]) -> dict[str, list[Completion]]:
    """Group draws by prompt, each text once."""
    groups: dict[str, dict[str, Completion]] = {}
    for draw in draws:
        groups.setdefault(draw.prompt_id, {}).setdefault(draw.id, draw)
    return {prompt: list(group.values()) for prompt, group in groups.items()}


def ask(run: Run, section: Judge, path: Path, asked: list[Two]) -> Counts:
    """Have one judge decide between two and two completions, and append its verdicts to `path`."""
    have = [verdict for verdict in run.verdicts(path) if verdict.error is None]
    records: Iterator[Comparison] | Iterator[Rating]
    if isinstance(section, LlmJudge):
        matches = _matches(asked, section.orders, run.recipe.seed, have)
        total, records = len(matches), cast(Comparer, build_judge(section, run)).compare(matches)
    else:
        answers = _answers(asked, have)
        total, records = len(answers), cast(Rater, build_judge(section, run)).rate(answers)
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
        kinds: list[str] = [outcome.kind for outcome in Verdicts(records).outcomes()]
        counts |= {
            "ties": kinds.count("tie"),
            "inconsistent": kinds.count("inconsistent"),
            "unreadable": kinds.count("unreadable"),
        }
        counts["questions"] = len(kinds)
    return counts


def _matches(asked: list[Two], orders: Orders, seed: int, have: Iterable[Comparison | Rating]) -> list[Match]:
    """Return what is owed, each once; nobody is asked about an empty answer or about two equal ones."""
    done = {(verdict.first, verdict.second) for verdict in have if isinstance(verdict, Comparison)}
    owed: dict[tuple[str, str], Match] = {}
    for prompt, one, other in asked:
        if one.id == other.id or not one.text.strip() or not other.text.strip():
            continue
        shown = [(one, other), (other, one)]
        if orders == "random":  # the two alone decide, not the order in which they were drawn
            shown.sort(key=lambda both: content_hash(seed, both[0].id, both[1].id))
        for first, second in shown if orders == "both" else shown[:1]:
            if (first.id, second.id) not in done:
                owed.setdefault((first.id, second.id), Match(prompt, first, second))
    return list(owed.values())


def _answers(asked: list[Two], have: Iterable[Comparison | Rating]) -> list[Answer]:
    """Return the completions that no rating exists of, each once."""
    done = {verdict.completion_id for verdict in have if isinstance(verdict, Rating)}
    return list({each.id: Answer(prompt, each) for prompt, *both in asked for each in both if each.id not in done}.values())
