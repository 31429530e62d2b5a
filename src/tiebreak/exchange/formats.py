"""AlpacaEval's outputs and annotations as records, and records as its files (github.com/tatsu-lab/alpaca_eval)."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from tiebreak.files import write_json
from tiebreak.judges.tables import SURROGATE, Row, preferred, read_table
from tiebreak.metrics.agreement import WORTH
from tiebreak.models import plain
from tiebreak.records import Comparison, Completion, InputError, Prompt

ABOUT = ("input", "dataset", "datasplit")
"""What an annotation says of its prompt beside the instruction."""
TEXTS = ("instruction", "output_1", "output_2", *ABOUT)
"""What of an annotation is not the annotator's."""


class Outputs(NamedTuple):
    """A model's answers."""

    prompts: list[Prompt]
    completions: list[Completion]
    generator: str


class Annotations(NamedTuple):
    """An annotator's verdicts, one for each entry of a file."""

    prompts: list[Prompt]
    completions: list[Completion]
    comparisons: list[Comparison]

    @property
    def failed(self) -> int:
        """How many of the comparisons are errors."""
        return sum(comparison.error is not None for comparison in self.comparisons)


def read_outputs(path: Path) -> Outputs:
    """Read AlpacaEval's `model_outputs.json`, or rows of prompt and completion, all of one model.

    An entry's other fields become the prompt's `meta` where they are text, numbers or truth values; several answers to
    one prompt are its draws. Without a generator, the file's name stands for it. Raises InputError with file and entry.
    """
    prompts: dict[str, Prompt] = {}
    completions: list[Completion] = []
    draws = Counter[str]()
    generator = ""
    for row in read_table(path):
        ours = "instruction" not in row.cells and "prompt" in row.cells
        answer = "completion" if ours else "output"
        meta = scalars(row, without=("instruction", "prompt", answer, "generator"))
        prompt = Prompt.of(row.chat("prompt") if ours else row.instruction(), "test", meta)
        own = row.text("generator") if row.cells.get("generator") is not None else path.stem
        if own != (generator := generator or own):
            raise InputError(f"{row.where}: generator {own!r}, and {generator!r} above it; give each model a file of its own")
        prompts.setdefault(prompt.id, prompt)
        completions.append(given(prompt, row.text(answer), sampler=own, draw=draws[prompt.id]))
        draws[prompt.id] += 1
    return Outputs(list(prompts.values()), completions, generator)


def write_outputs(path: Path, prompts: Iterable[Prompt], completions: Iterable[Completion], generator: str) -> None:
    """Write a model's completions as AlpacaEval's `model_outputs.json`; what a prompt says beside is in every entry of it."""
    fields = {prompt.id: _fields(prompt) for prompt in prompts}
    write_json(path, [fields[each.prompt_id] | {"output": each.text, "generator": generator} for each in completions])


def read_annotations(path: Path) -> Annotations:
    """Read AlpacaEval's `annotations.json`, output_1 as the first.

    A preference between 1 and 2 is 1 and the probability that output_2 is better; 1.5, and 0 in early files, is a tie,
    and none at all a failed annotation, which is kept as an error. In which order the annotator saw the two is not said
    there. `raw` keeps, as JSON, all that an entry holds besides prompt and outputs. Two equal outputs are one completion.
    Raises InputError with file and entry.
    """
    prompts: dict[str, Prompt] = {}
    completions: dict[tuple[str, str], Completion] = {}
    comparisons = []
    draws = Counter[tuple[str, str]]()
    for row in read_table(path):
        about = {name: value for name, value in scalars(row).items() if name in ABOUT}
        prompt = Prompt.of(row.instruction(), "test", about)
        prompts.setdefault(prompt.id, prompt)
        sides = []
        for column, name in (("output_1", "generator_1"), ("output_2", "generator_2")):
            sampler = row.text(name) if row.cells.get(name) is not None else column
            side = given(prompt, row.text(column), sampler=sampler, draw=draws[prompt.id, sampler])
            draws[prompt.id, sampler] += (side.id, sampler) not in completions
            completions.setdefault((side.id, sampler), side)
            sides.append(side.id)
        comparisons.append(_comparison(row, prompt, sides[0], sides[1], path.stem))
    return Annotations(list(prompts.values()), list(completions.values()), comparisons)


def write_annotations(
    path: Path,
    prompts: Iterable[Prompt],
    completions: Iterable[Completion],
    comparisons: Iterable[Comparison],
    baseline: str | None = None,
) -> None:
    """Write verdicts as AlpacaEval's `annotations.json`: one entry a verdict, a failed one with no preference.

    A completion of several samplers makes an entry for each. `baseline` names the sampler whose answers stand as
    output_1 whichever way round they were shown: AlpacaEval counts a preference for output_2 as the model's win. What
    was read from such a file is written as it was there. A probability on the other side of the verdict is left out, the
    format has one number for both.
    """
    fields = {prompt.id: _fields(prompt) for prompt in prompts}
    texts, samplers = by_id(completions)
    entries = []
    for one in comparisons:
        first, second = texts[one.first], texts[one.second]
        if (rest := _published(one)) is not None:
            entries.append(fields[one.prompt_id] | {"output_1": first, "output_2": second} | rest)
            continue
        preference = _preference(one)
        said = {"raw_completion": one.raw, "reason": one.reason, "error": one.error, "price_per_example": one.cost}
        for own, other in met(samplers[one.first], samplers[one.second]):
            sides, value = [(first, own), (second, other)], preference
            if baseline == other != own:
                sides, value = sides[::-1], None if preference is None else 3 - preference
            entries.append(
                fields[one.prompt_id]
                | {f"output_{at}": text for at, (text, _) in enumerate(sides, start=1)}
                | {f"generator_{at}": sampler for at, (_, sampler) in enumerate(sides, start=1)}
                | {"annotator": one.judge, "preference": value}
                | {name: each for name, each in said.items() if each not in (None, "")}
            )
    write_json(path, entries)


def _fields(prompt: Prompt) -> dict[str, Any]:
    """Return an entry's fields that are the prompt's, an `input` apart again."""
    text, meta = plain(prompt.messages), {name: value for name, value in prompt.meta.items() if is_scalar(value)}
    if below := meta.get("input"):
        text = text.removesuffix(f"\n\n{below}")
        if text == plain(prompt.messages):  # it stands elsewhere, and would be read as standing twice
            del meta["input"]
    return {"instruction": text} | meta | {"instruction": text}  # the source may have had a column of that name


def _comparison(row: Row, prompt: Prompt, first: str, second: str, default: str) -> Comparison:
    """Return the verdict of an entry; `default` is an annotator who is not named."""
    winner, probability = row.preference()
    rest = {name: value for name, value in row.cells.items() if name not in TEXTS}
    reply, cost = rest.get("raw_completion"), rest.get("price_per_example")
    reason = rest.get("reason") or (reply.get("concise_explanation") if isinstance(reply, dict) else "")
    return Comparison(
        prompt_id=prompt.id,
        first=first,
        second=second,
        judge=row.text("annotator") if rest.get("annotator") is not None else default,
        winner=winner,
        probability=probability,
        reason=_text(reason),
        raw=_text(json.dumps(rest, ensure_ascii=False)),
        error=None if winner else _text(rest.get("error")) or "the annotator gave no preference",
        cost=cost if isinstance(cost, int | float) and math.isfinite(cost) else None,
    )


def _preference(one: Comparison) -> float | None:
    if one.winner is None:
        return None
    worth, share = WORTH[one.winner], one.probability
    if share is not None and 0 <= share <= 1 and (share - 0.5) * (worth - 0.5) > 0:
        return 2 - share
    return 2 - worth


def _published(one: Comparison) -> dict[str, Any] | None:
    """Return what `read_annotations` kept of an entry, None for a verdict that comes from elsewhere."""
    try:
        rest = json.loads(one.raw)
    except ValueError:
        return None
    if not isinstance(rest, dict) or not {"annotator", "preference"} <= rest.keys() or str(rest["annotator"]) != one.judge:
        return None
    return rest if preferred(rest["preference"]) == (one.winner, one.probability) else None


def _text(value: Any) -> str:
    """Return a text as it can be written, and nothing for what is none."""
    return SURROGATE.sub("\ufffd", value) if isinstance(value, str) else ""


# --- what formats share -----------------------------------------------------------------------------------------------


def given(prompt: Prompt, text: str, **fields: Any) -> Completion:
    """Return a completion that a file gave."""
    return Completion.of(prompt.id, text, finish_reason="given", **fields)


def by_id(completions: Iterable[Completion]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return the text and the samplers of each completion id."""
    texts: dict[str, str] = {}
    samplers: dict[str, list[str]] = {}
    for completion in completions:
        texts[completion.id] = completion.text
        if completion.sampler not in (known := samplers.setdefault(completion.id, [])):
            known.append(completion.sampler)
    return texts, samplers


def met(own: Sequence[str], others: Sequence[str]) -> list[tuple[str, str]]:
    """Return the samplers that met in a verdict on two texts; one beside itself only where there is no other."""
    both = list(product(own, others))
    return [two for two in both if two[0] != two[1]] or both


def is_scalar(value: Any) -> bool:
    """Tell whether a cell is a text, a finite number, a truth value or nothing."""
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def scalars(row: Row, without: Sequence[str] = ()) -> dict[str, Any]:
    """Return the scalar cells of a row, as they can be written."""
    kept = {name: value for name, value in row.cells.items() if name not in without and is_scalar(value)}
    return {name: _text(value) if isinstance(value, str) else value for name, value in kept.items()}
