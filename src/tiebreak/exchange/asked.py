"""What imported files come to: prompts with answers that somebody scored, and pairs of those."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import combinations
from typing import Any, NamedTuple

from tiebreak.exchange.sources import Chat, Row, content_of, scalars_of
from tiebreak.records import InputError, Message

PROMPTS = (
    *("prompt", "instruction", "question", "input", "query", "request", "user_input"),
    *("messages", "conversation", "conversations"),
)
"""Columns that hold what was asked, the likeliest first."""
NO_PROMPT = "rows without a prompt"
NOBODYS = ("id", "external_id", "_server_id", "status", "prompt_id")
"""Columns of tools that say nothing of a prompt."""


class Answer(NamedTuple):
    """An answer with its score, None where nobody gave it one; the higher score is the better answer."""

    text: str
    score: float | None
    model: str | None = None


class Asked(NamedTuple):
    """A prompt with its answers and what else its row says; `why_not` is why it can make no pair at all."""

    prompt: Chat
    answers: list[Answer]
    meta: dict[str, Any]
    why_not: str | None = None

    @classmethod
    def none(cls, why_not: str) -> Asked:
        """Return what makes no pair."""
        return cls((), [], {}, why_not)


def paired(asked: Iterable[Asked]) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Make a pair of every two answers of a prompt whose scores differ; count what makes none, by reason."""
    rows, left_out, seen = list[dict[str, Any]](), Counter[str](), set[str]()
    for one in asked:
        if one.why_not:
            left_out[one.why_not] += 1
            continue
        scored = [(answer, answer.score) for answer in one.answers if answer.score is not None]
        left_out["answers without a score"] += len(one.answers) - len(scored)
        left_out["rows with a single scored answer"] += len(scored) == 1
        for both in combinations(scored, 2):
            (better, _), (worse, _) = sorted(both, key=lambda each: -each[1])
            row = spoken(one, {"chosen": better, "rejected": worse})
            same = json.dumps([row["prompt"], better.text, worse.text])
            if reason := _why_not(better, worse) or ("repeated pairs" if same in seen else None):
                left_out[reason] += 1
            else:
                rows.append(row)
                seen.add(same)
    return rows, +left_out


def _why_not(better: Answer, worse: Answer) -> str | None:
    if better.text == worse.text:
        return "identical answers"
    if not better.text.strip() or not worse.text.strip():
        return "empty answers"
    return "ties" if better.score == worse.score else None


def spoken(one: Asked, sides: Mapping[str, Answer]) -> dict[str, Any]:
    """Return a row whose prompt and sides are turns, with the scores and models of the sides and what else is known."""
    row: dict[str, Any] = {"prompt": [turn.model_dump() for turn in one.prompt]}
    row |= {name: [{"role": "assistant", "content": answer.text}] for name, answer in sides.items()}
    for name, answer in sides.items():
        row |= {f"{name}_{key}": value for key, value in (("score", answer.score), ("model", answer.model)) if value is not None}
    return row | {name: value for name, value in one.meta.items() if name not in row}


# --- cells ---------------------------------------------------------------------------------------------------------


def find_column(known: Iterable[str], columns: Iterable[str]) -> str | None:
    """Return the first of the `known` names that is a column, in capitals or not."""
    there = {column.lower(): column for column in columns}
    return next((there[name] for name in known if name in there), None)


def need_one(known: tuple[str, ...], row: Row, what: str) -> str:
    """Return the column that is known to hold something. Raises InputError."""
    if (found := find_column(known, row.cells)) is None:
        there = ", ".join(row.cells) or "none"
        raise InputError(f"{row.where}: no column is known to hold {what}; call it {known[0]}; there is {there}")
    return found


def question(row: Row, column: str, system: str = "") -> Chat:
    """Return a cell as turns up to the last that is not the assistant's; no turns where nothing is asked."""
    content = content_of(row, column)
    turns: Chat = (Message(role="user", content=content),) if isinstance(content, str) else content
    end = max((at for at, turn in enumerate(turns, start=1) if turn.role != "assistant"), default=0)
    turns = turns[:end]
    if not turns or turns[-1].role != "user" or not turns[-1].content.strip():
        return ()
    return (Message(role="system", content=system), *turns) if system.strip() and turns[0].role != "system" else turns


def answer_in(row: Row, column: str) -> str:
    """Return a cell's text, of a chat its last turn where that is the assistant's."""
    content = content_of(row, column)
    if isinstance(content, str):
        return content
    return content[-1].content if content and content[-1].role == "assistant" else ""


def beside(row: Row, *used: str) -> dict[str, Any]:
    """Return what else a row says."""
    return {name: value for name, value in scalars_of(row, (*used, *NOBODYS)).items() if value != ""}


def number(value: Any) -> float | None:
    """Return a finite number, also of a text; None for anything else."""
    with suppress(TypeError, ValueError):
        if not isinstance(value, bool) and math.isfinite(found := float(value)):
            return found
    return None


def part(each: Any, name: str) -> Any:
    """Return a field of an object, and anything else as it is."""
    return each.get(name) if isinstance(each, dict) else each


def listed(value: Any) -> Iterator[Any]:
    """Yield the entries of a list, and none of anything else."""
    if isinstance(value, list):
        yield from value
