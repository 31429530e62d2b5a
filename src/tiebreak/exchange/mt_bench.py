"""MT-bench's questions, answers and judgments (arXiv 2306.05685) as records, and records as its files."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tiebreak.exchange.formats import by_id, given, is_scalar, met, scalars
from tiebreak.files import write_text
from tiebreak.judges.tables import SURROGATE, Row, read_table
from tiebreak.records import Comparison, Completion, InputError, Message, Prompt, Rating, Winner
from tiebreak.samplers.turns import transcript, turns


def read_mt_bench_questions(path: Path) -> list[Prompt]:
    """Read MT-bench's `question.jsonl`: prompts that ask the first turn, with all turns in `meta["turns"]`.

    `meta` has question_id, category and, where there is one, the reference, a text for each turn. Raises InputError with
    file and line.
    """
    prompts: list[Prompt] = []
    seen = set[str]()
    for row in read_table(path):
        lists = {"turns": _list(row, "turns")}
        if row.cells.get("reference") is not None:
            lists["reference"] = _list(row, "reference")
        prompt = Prompt.of((Message(role="user", content=lists["turns"][0]),), "test", scalars(row) | lists)
        own = {prompt.id, row.text("question_id")}
        if seen & own:
            raise InputError(f"{row.where}: its question_id or its first turn stands above already; leave one of the two out")
        seen |= own
        prompts.append(prompt)
    return prompts


def write_mt_bench_questions(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write prompts as MT-bench's `question.jsonl`, the id of a prompt from elsewhere as its question_id."""
    entries = []
    for prompt in prompts:
        kept = {name: value for name, value in prompt.meta.items() if name == "reference" or is_scalar(value)}
        entries.append(kept | {"question_id": _question_id(prompt), "turns": turns(prompt)})
    _write_lines(path, entries)


def read_mt_bench_answers(path: Path, prompts: Iterable[Prompt], *, others: bool = False) -> list[Completion]:
    """Read a model's answers to MT-bench's questions: every choice is a draw, with its turns in `sampling["turns"]`.

    Its text is what `transcript` makes of them. Answers to `others` are left out, or a mistake. Raises InputError with file
    and line.
    """
    asked = {str(_question_id(prompt)): prompt for prompt in prompts}
    completions = []
    for row in read_table(path):
        number = row.text("question_id")
        if (prompt := asked.get(number)) is None:
            if others:
                continue
            raise InputError(f"{row.where}: question_id {number:.40} is none of the {len(asked)} questions")
        choices = row.cells.get("choices")
        if not isinstance(choices, list) or not choices:
            raise InputError(f"{row.where}: choices is no list of answers")
        sampling = scalars(row, without=("question_id", "model_id"))
        for at, choice in enumerate(choices):
            answers = _list(Row(f"{row.where}, choice {at}", choice if isinstance(choice, dict) else {}), "turns")
            if len(answers) != len(turns(prompt)):
                raise InputError(f"{row.where}, choice {at}: {len(answers)} answers to {len(turns(prompt))} turns")
            text, own = transcript(prompt, answers), sampling | {"turns": answers}
            draw = index if isinstance(index := choice.get("index"), int) else at
            completions.append(given(prompt, text, sampler=row.text("model_id"), draw=draw, sampling=own))
    return completions


def write_mt_bench_answers(path: Path, prompts: Iterable[Prompt], completions: Iterable[Completion], model_id: str) -> None:
    """Write a model's completions as MT-bench's answers, one line a question, its draws as choices."""
    drawn: dict[str, list[Completion]] = {}
    for completion in completions:
        drawn.setdefault(completion.prompt_id, []).append(completion)
    entries = []
    for prompt in prompts:
        if draws := sorted(drawn.get(prompt.id, []), key=lambda each: each.draw):
            entries.append(
                {"answer_id": draws[0].id, "tstamp": time.time()}
                | {name: value for name, value in draws[0].sampling.items() if is_scalar(value)}
                | {"question_id": _question_id(prompt), "model_id": model_id}
                | {"choices": [{"index": each.draw, "turns": each.sampling.get("turns", [each.text])} for each in draws]}
            )
    _write_lines(path, entries)


def write_mt_bench_judgments(
    path: Path, prompts: Iterable[Prompt], completions: Iterable[Completion], records: Iterable[Comparison | Rating]
) -> None:
    """Write verdicts as MT-bench's pairwise judgments, both orders of a two in one line, and ratings as its single ones.

    A failed verdict is "error", a failed rating -1. Who was asked one way round is taken to say the same of the other, as
    FastChat does with scores; the second judgment is then empty. Ratings keep their scale, MT-bench's is 1 to 10.
    """
    asked = {prompt.id: prompt for prompt in prompts}
    _, samplers = by_id(completions)
    entries: list[dict[str, Any]] = []
    games: dict[tuple[str, str, frozenset[str]], dict[str, Comparison]] = {}
    for record in records:
        if isinstance(record, Comparison):
            key = record.judge, record.prompt_id, frozenset((record.first, record.second))
            games.setdefault(key, {})[record.first] = record
        else:
            score = -1 if record.score is None else record.score
            own = {"judgment": _judgment(record), "score": score, "user_prompt": ""}
            models = [{"model": sampler} for sampler in samplers[record.completion_id]]
            entries += [_about(asked[record.prompt_id], record.judge, "single") | model | own for model in models]
    for (judge, prompt_id, _), both in games.items():
        one, *rest = both.values()
        turned = rest[0] if rest else None
        said = {"g1_winner": _side(one.winner), "g1_judgment": _judgment(one), "g1_user_prompt": "", "g2_user_prompt": ""}
        said |= {"g2_winner": _side(turned.winner, turned=True) if turned else said["g1_winner"]}
        said |= {"g2_judgment": _judgment(turned) if turned else ""}
        for own_model, other in met(samplers[one.first], samplers[one.second]):
            entries.append(_about(asked[prompt_id], judge, "pair") | {"model_1": own_model, "model_2": other} | said)
    _write_lines(path, entries)


def _question_id(prompt: Prompt) -> Any:
    return prompt.meta.get("question_id", prompt.id)


def _about(prompt: Prompt, judge: str, kind: str) -> dict[str, Any]:
    return {"question_id": _question_id(prompt), "judge": [judge, kind], "turn": len(turns(prompt)), "tstamp": time.time()}


def _side(winner: Winner | None, *, turned: bool = False) -> str:
    if winner is None or winner == "tie":
        return winner or "error"
    return "model_2" if (winner == "first") == turned else "model_1"


def _judgment(one: Comparison | Rating) -> str:
    return one.raw or one.reason or one.error or ""


def _list(row: Row, column: str) -> list[str]:
    """Return a cell that has to hold texts, at least one; raises InputError."""
    value = row.cells.get(column)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise InputError(f"{row.where}: {column} is no list of texts")
    return [SURROGATE.sub("\ufffd", text) for text in value]


def _write_lines(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(f"{json.dumps(entry)}\n" for entry in entries))
