"""sft: teach the model completions before it learns to prefer some; what it is then is the reference of what follows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from tiebreak.exchange.sources import Chat, Row, columns_of, content_of, need_column, read_rows
from tiebreak.recipe import Sft
from tiebreak.records import Message
from tiebreak.run import Counts, Run
from tiebreak.stages import fitting


def sft(run: Run) -> Counts:
    """Train on the source's completions, or on those that the pairs chose, and save the model. Raises InputError.

    What answers a prompt that the run holds out is evaluated on and never trained on.
    """
    settings = cast("Sft", run.recipe.sft)  # a run without it never comes here
    given = list(_chosen(run) if settings.source is None else _read(run, settings))
    chats = [chat for chat in dict.fromkeys(given) if chat and chat[-1].content.strip()]
    test = {_turns(prompt.messages) for prompt in run.prompts() if prompt.split == "test"}
    rows: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for chat in chats:
        turns = _turns(chat)
        held_out = any(turns[:at] in test for at in range(1, len(turns)))
        row = {"messages": chat} if settings.messages else {"prompt": chat[:-1], "completion": chat[-1:]}
        rows[held_out].append(row)
    if not rows[False]:
        return {"skipped": "no completion to train on"}
    counts = fitting.fit_supervised(run, "sft", settings, rows[False], rows[True])
    return counts | {"held_out": len(rows[True]), "blank": len(dict.fromkeys(given)) - len(chats)}


def _turns(chat: Chat) -> Chat:
    """Return a chat without what the system is told, which says little about whether two prompts are one."""
    return tuple(turn for turn in chat if turn.role != "system")


def _chosen(run: Run) -> Iterator[Chat]:
    for path in (run.pairs_jsonl, run.held_out_pairs_jsonl):
        for pair in run.pairs(path):
            yield pair.prompt + pair.chosen


def _read(run: Run, settings: Sft) -> Iterator[Chat]:
    rows = read_rows(run, "sft")
    columns = [settings.messages] if settings.messages else [settings.prompt, settings.completion]
    for key, column in zip(["messages"] if settings.messages else ["prompt", "completion"], columns, strict=True):
        need_column(column, columns_of(rows), f"sft.{key}")
    for row in rows:
        turns = [_said(row, column, role) for column, role in zip(columns, ("user", "assistant"), strict=False)]
        yield tuple(turn for part in turns for turn in part)


def _said(row: Row, column: str, role: str) -> Chat:
    content = content_of(row, column)
    return (Message(role=role, content=content),) if isinstance(content, str) else content
