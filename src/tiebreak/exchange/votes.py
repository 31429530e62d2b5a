"""What people voted on in chats: thumbs up and down, and battles of two models, as prompts with scored answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import product, takewhile
from typing import Any, NamedTuple

from tiebreak.exchange.asked import (
    PROMPTS,
    Answer,
    Asked,
    answer_in,
    beside,
    find_column,
    listed,
    need_one,
    number,
    question,
    spoken,
)
from tiebreak.exchange.sources import Chat, Row, content_of, text_of
from tiebreak.records import InputError, Message

ANSWERS = ("completion", "response", "output", "answer", "generation", "bot_response")
THUMBS = ("label", "feedback", "rating", "thumbs", "thumb", "vote", "liked", "score")
UP = {"true", "1", "up", "thumbs_up", "thumbs up", "thumbsup", "thumb-up", "upvote", "like", "liked", "good", "positive", "👍"}
DOWN = {
    *("false", "0", "-1", "down", "thumbs_down", "thumbs down", "thumbsdown", "thumb-down", "downvote", "dislike"),
    *("disliked", "bad", "negative", "👎"),
}
UNDECIDED = "answers with as many thumbs up as down"
ONE_KIND = "answers whose prompt has no thumb of the other kind"
NO_THUMB = "rows without a thumb or a prompt"
WINNERS = {"model_a": "model_a", "model_b": "model_b", "tie": "ties", "": "battles without a verdict"} | dict.fromkeys(
    ("tie (bothbad)", "tie (both bad)", "bothbad", "both_bad", "both bad"), "ties (both bad)"
)
"""What a battle's verdict comes to: a winner, or why there is none."""


class Thumbs(NamedTuple):
    """The answers to one prompt, each with its thumbs up less those down."""

    tally: dict[str, int]
    meta: dict[str, Any]


def thumbs(rows: Iterable[Row]) -> Iterator[Asked]:
    """Put every answer with a thumb up beside every one with a thumb down to the same prompt. Raises InputError."""
    groups, bare = _tallied(rows)
    yield from [Asked.none(NO_THUMB)] * bare
    for prompt, (tally, meta) in groups.items():
        ups, downs = ([Answer(text, sign) for text, count in tally.items() if count * sign > 0] for sign in (1.0, -1.0))
        yield from (Asked(prompt, [up, down], meta) for up, down in product(ups, downs))
        yield from [Asked.none(UNDECIDED)] * (len(tally) - len(ups) - len(downs))
        yield from [Asked.none(ONE_KIND)] * (0 if ups and downs else len(ups) + len(downs))


def labelled(rows: Iterable[Row]) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Return every answer with its label, as TRL's unpaired preference format; count what has none. Raises InputError."""
    groups, bare = _tallied(rows)
    made, left_out = list[dict[str, Any]](), Counter({NO_THUMB: bare})
    for prompt, (tally, meta) in groups.items():
        for text, count in tally.items():
            if count and text.strip():
                made.append(spoken(Asked(prompt, [], meta), {"completion": Answer(text, None)}) | {"label": count > 0})
            else:
                left_out["empty answers" if count else UNDECIDED] += 1
    return made, +left_out


def _tallied(rows: Iterable[Row]) -> tuple[dict[Chat, Thumbs], int]:
    """Return the thumbs by prompt and answer, and how many rows have none."""
    groups: dict[Chat, Thumbs] = {}
    bare = 0
    for row in rows:
        marked = list(_marked(row))
        bare += not marked
        for prompt, text, up, meta in marked:
            tally = groups.setdefault(prompt, Thumbs({}, meta)).tally
            tally[text] = tally.get(text, 0) + (1 if up else -1)
    return groups, bare


def _marked(row: Row) -> Iterator[tuple[Chat, str, bool, dict[str, Any]]]:
    """Yield (prompt, answer, whether its thumb is up, what else is known) of every thumb in a row."""
    asked, label, answer = need_one(PROMPTS, row, "the prompt"), find_column(THUMBS, row.cells), find_column(ANSWERS, row.cells)
    meta = beside(row, *filter(None, (asked, label, answer)))
    if answer is not None:
        up, prompt = thumb(row.cells[need_one(THUMBS, row, "the thumb")], row.where), question(row, asked)
        if prompt and up is not None:
            yield prompt, answer_in(row, answer), up, meta
        return
    turns = content_of(row, asked)
    if isinstance(turns, str):
        need_one(ANSWERS, row, "the answer")  # there is none, which it says
        return
    marks = [
        turn.get(name) if isinstance(turn, dict) and (name := find_column(THUMBS, turn)) else None
        for turn in listed(row.cells[asked])
    ]
    if label is not None:
        marks = [*[None] * (len(turns) - 1), row.cells[label]]
    for at, (turn, mark) in enumerate(zip(turns, marks, strict=False)):
        up = thumb(mark, row.where)
        if up is not None and turn.role == "assistant" and at:
            yield turns[:at], turn.content, up, meta


def thumb(value: Any, where: str) -> bool | None:
    """Return whether a thumb is up, None where there is none. Raises InputError for a word that is neither."""
    said = str(value).strip().lower().removesuffix(".0")
    if value is None or said in ("", "none", "null", "nan", "neutral"):
        return None
    if said not in UP | DOWN:
        raise InputError(f"{where}: {value!r:.40} is no thumb; up is true, 1, up or good, down is false, -1, down or bad")
    return said in UP


# --- battles -------------------------------------------------------------------------------------------------------


def arena(rows: Iterable[Row]) -> Iterator[Asked]:
    """Read battles: conversation_a and conversation_b with a winner, or prompt, response_a and response_b with flags.

    A vote is on whole conversations: where their first answers differ already and more was said, nobody said which answer
    was the better one. Raises InputError.
    """
    for row in rows:
        flat = "conversation_a" not in row.cells
        sides = [_flat_turns(row, side) if flat else _turns(row, f"conversation_{side}") for side in "ab"]
        shared = tuple(one for one, _ in takewhile(lambda both: both[0] == both[1], zip(*sides, strict=False)))
        rests = [side[len(shared) :] for side in sides]
        winner = _winner(row, flat=flat)
        if winner not in ("model_a", "model_b"):
            yield Asked.none(winner)
        elif not all(turn.content.strip() for side in sides for turn in side):
            yield Asked.none("battles with images or empty turns")
        elif sides[0] == sides[1]:
            yield Asked.none("identical answers")
        elif not shared or shared[-1].role != "user" or any([turn.role for turn in rest] != ["assistant"] for rest in rests):
            yield Asked.none("battles of several turns")
        else:
            named = [row.cells.get(f"model_{side}") for side in "ab"]
            scores = [float(winner == f"model_{side}") for side in "ab"]
            answers = [Answer(rest[0].content, score, model) for rest, score, model in zip(rests, scores, named, strict=True)]
            yield Asked(shared, answers, beside(row, *USED))


USED = (
    *("conversation_a", "conversation_b", "full_conversation", "prompt", "response_a", "response_b"),
    *("winner", "winner_model_a", "winner_model_b", "winner_tie", "model_a", "model_b"),
)


def _winner(row: Row, *, flat: bool) -> str:
    """Return model_a or model_b, or why there is no winner. Raises InputError for a word that is none."""
    if flat:
        flags = [name for name in ("model_a", "model_b", "tie") if number(row.cells.get(f"winner_{name}")) == 1]
        said = flags[0] if len(flags) == 1 else ""
    else:
        said = text_of(row.cells.get("winner"), f"{row.where}, winner").strip().lower()
    if said not in WINNERS:
        raise InputError(f"{row.where}: winner {said!r:.40} is none of model_a, model_b, tie, tie (bothbad)")
    return WINNERS[said]


def _turns(row: Row, column: str) -> Chat:
    """Return a conversation whose turns are texts or lists of parts; a turn with an image is empty here."""
    value = row.cells.get(column)
    if isinstance(value, list):
        value = [turn | {"content": _joined(turn.get("content"))} if isinstance(turn, dict) else turn for turn in value]
    found = content_of(Row(row.where, {column: value}), column)
    if isinstance(found, str):
        raise InputError(f"{row.where}: {column} is no list of turns, each with role and content")
    return found


def _joined(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    if any(not isinstance(each, dict) or each.get("image") for each in content):
        return ""
    return "\n\n".join(str(each["text"]) for each in content if each.get("text"))


def _flat_turns(row: Row, side: str) -> Chat:
    """Return the turns of prompt and response_a or _b, each a text or a JSON list of a text for each turn."""
    both = zip(*(_texts(row, name) for name in ("prompt", f"response_{side}")), strict=False)
    return tuple(
        turn for asked, said in both for turn in (Message(role="user", content=asked), Message(role="assistant", content=said))
    )


def _texts(row: Row, column: str) -> list[str]:
    if column not in row.cells:
        raise InputError(f"{row.where}: no conversation_a and no {column}, so this is no battle; there is {', '.join(row.cells)}")
    value = row.cells[column]
    if isinstance(value, str) and value.strip().startswith("["):
        with suppress(ValueError):
            value = json.loads(value)
    return [text_of(each, f"{row.where}, {column}") for each in (value if isinstance(value, list) else [value])]
