"""Which two completions are put before a judge: of a prompt's own, or of two models that meet on held-out prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import TYPE_CHECKING

from tiebreak.files import read_jsonl
from tiebreak.metrics.agreement import Two
from tiebreak.recipe import Evaluate
from tiebreak.records import Comparison, Completion, Prompt, content_hash
from tiebreak.run import Run

if TYPE_CHECKING:
    from tiebreak.metrics.versus import Draws  # which loads scipy


def twos(run: Run) -> list[Two]:
    """Return every two distinct completions of a prompt; of ready-made pairs, the two of each pair."""
    prompts, draws = {prompt.id: prompt for prompt in run.prompts()}, run.draws()
    if run.recipe.prompts.pairs:
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


# --- models that meet ----------------------------------------------------------------------------------------------


def drawn_by(run: Run) -> dict[str, dict[str, Draws]]:
    """Read the answers to held-out prompts, by model, prompt and number."""
    settings = run.recipe.evaluate
    drawn: dict[str, dict[str, Draws]] = {name: {} for name in settings.names} if settings else {}
    for draw in sorted(read_jsonl(run.eval_completions_jsonl, Completion), key=lambda draw: draw.draw):
        if draw.sampler in drawn:  # a model that is not asked for any more keeps its draws
            drawn[draw.sampler].setdefault(draw.prompt_id, {})[draw.draw] = draw
    return drawn


def meeting_twos(
    settings: Evaluate, prompts: list[Prompt], drawn: dict[str, dict[str, Draws]]
) -> dict[tuple[str, str], list[Two]]:
    """Return (prompt, against, model) for each number of draw, by (model, against), the headline first."""
    return {(model, against): list(_meeting(prompts, drawn[model], drawn[against])) for model, against in settings.pairs}


def met(run: Run) -> list[Two]:
    """Return every two answers that the evaluating judge is asked about, the model's own last."""
    if run.recipe.evaluate is None:
        return []
    prompts = [prompt for prompt in run.prompts() if prompt.split == "test"]
    return [two for some in meeting_twos(run.recipe.evaluate, prompts, drawn_by(run)).values() for two in some]


def _meeting(prompts: list[Prompt], drawn: dict[str, Draws], against: dict[str, Draws]) -> Iterator[Two]:
    """Yield the answers of one number; who has fewer answers gives them again."""
    for prompt in prompts:
        one, other = drawn.get(prompt.id, {}), against.get(prompt.id, {})
        for at in range(max(len(one), len(other)) if one and other else 0):
            both = [list(draws.values())[at % len(draws)] for draws in (other, one)]
            yield prompt, both[0], both[1]


def turned(seed: int, prompt: Prompt, base: Completion, tuned: Completion) -> Two:
    """Return two completions in an order that has nothing to do with who wrote them: a judge may be shown one order only."""
    one, other = sorted((base, tuned), key=lambda each: content_hash(seed, each.id))
    return prompt, one, other
