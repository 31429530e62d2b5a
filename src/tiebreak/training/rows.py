"""Preference rows as users have them, to token ids: text or chats, prompt given or implied, cut without losing an answer."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from tiebreak import models
from tiebreak.records import InputError, Message
from tiebreak.training.trees import PairIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenize(
    rows: Iterable[Any], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[list[PairIds], Counter[str]]:
    """Tokenize rows of `prompt`, `chosen`, `rejected`, as text or as lists of messages.

    A prompt that is not given is what `chosen` and `rejected` both begin with. A pair longer than `max_length` has its
    prompt cut from the left; its completions and their ends stay whole. A pair is dropped where a completion leaves no
    room for any prompt or has no token, and where both completions have equal ids. Returns the pairs and counts of
    "prompt cut", "too long", "empty", "identical". Raises InputError for rows of another shape.
    """
    pairs: list[PairIds] = []
    counts: Counter[str] = Counter()
    known: dict[Any, list[int]] = {}
    for number, row in enumerate(rows):
        prompt, chosen, rejected = _ids(row, number, tokenizer, known)
        if chosen == rejected:
            counts["identical"] += 1
            continue
        if not (chosen and rejected):
            counts["empty"] += 1
            continue
        if max_length is not None:
            room = max_length - max(len(chosen), len(rejected))
            if room < 1:
                counts["too long"] += 1
                continue
            if len(prompt) > room:
                counts["prompt cut"] += 1
                prompt = prompt[-room:]
        pairs.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    return pairs, counts


def _ids(
    row: Mapping[str, Any], number: int, tokenizer: PreTrainedTokenizerBase, known: dict[Any, list[int]]
) -> tuple[list[int], list[int], list[int]]:
    if not isinstance(row, Mapping) or not {"chosen", "rejected"} <= row.keys():
        raise InputError(f"dataset row {number}: not a mapping with chosen, rejected and, as a rule, prompt")
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str) and isinstance(prompt, str | None):
        if prompt is None:
            prompt = os.path.commonprefix([chosen, rejected]).removesuffix(" ")  # noqa: RUF071  by characters
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        if prompt not in known:
            known[prompt] = _text_prompt_ids(prompt, tokenizer)
        return known[prompt], _text_ids(chosen, tokenizer), _text_ids(rejected, tokenizer)
    if isinstance(chosen, str) or isinstance(rejected, str) or isinstance(prompt, str):
        raise InputError(f"dataset row {number}: prompt, chosen and rejected are all text, or all lists of messages")
    chats = [_messages(chat, number) for chat in (chosen, rejected)]
    if prompt is None:
        shared = next((at for at, turns in enumerate(zip(*chats, strict=False)) if turns[0] != turns[1]), min(map(len, chats)))
        asked = chats[0][: min(shared, len(chats[0]) - 1, len(chats[1]) - 1)]
        chats = [chat[len(asked) :] for chat in chats]
    else:
        asked = _messages(prompt, number)
    if not asked or any(len(chat) != 1 or chat[0].role != "assistant" for chat in chats):
        raise InputError(f"dataset row {number}: a prompt is one message or more, chosen and rejected one assistant message each")
    key = tuple((message.role, message.content) for message in asked)
    if key not in known:
        try:
            known[key] = models.prompt_ids(tokenizer, asked)
        except TemplateError as error:
            raise InputError(f"dataset row {number}: the chat template refuses its prompt: {error}") from None
    won, lost = (models.completion_ids(tokenizer, chat[0].content) for chat in chats)
    return known[key], won, lost


def _messages(chat: Sequence[Mapping[str, Any] | Message], number: int) -> list[Message]:
    try:
        return [turn if isinstance(turn, Message) else Message(role=turn["role"], content=turn["content"]) for turn in chat]
    except (TypeError, KeyError, ValueError):
        raise InputError(f"dataset row {number}: a chat is a list of messages with role and content (text)") from None


def _text_prompt_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return a prompt's ids with one BOS where the tokenizer has it so, and without the EOS that some add to any text."""
    ids: list[int] = list(tokenizer(text)["input_ids"])
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if ids[:2] == [bos, bos]:  # one in the text, one from the tokenizer
        ids = ids[1:]
    if ids[-1:] == [eos]:
        ids = ids[:-1]
    return ids or [eos if bos is None else bos]  # the answer's first token needs one to be predicted from


def _text_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids if tokenizer.eos_token_id in (None, *ids[-1:]) else [*ids, tokenizer.eos_token_id]
