"""Preference rows as users have them, to token ids: text or chats, prompt given or implied, cut without losing an answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from tiebreak import models
from tiebreak.records import InputError, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PairIds(TypedDict, total=False):
    """A tokenized pair; the reference's log-probs are added once they are known."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    ref_chosen_logps: float
    ref_rejected_logps: float


def tokenize(
    rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[list[PairIds], Counter[str]]:
    """Tokenize rows of `prompt`, `chosen`, `rejected`, as text or as lists of messages.

    A pair longer than `max_length` has its prompt cut from the left; its completions and their ends stay whole. A pair
    with a completion that leaves no room for any prompt is dropped, and so is one whose completions have equal ids.
    Returns the pairs and counts of "prompt cut", "too long", "identical". Raises InputError for rows of another shape.
    """
    pairs: list[PairIds] = []
    counts: Counter[str] = Counter()
    known: dict[Any, list[int]] = {}
    for number, row in enumerate(rows):
        prompt, chosen, rejected = _ids(row, number, tokenizer, known)
        if chosen == rejected:
            counts["identical"] += 1
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
    for name in ("chosen", "rejected"):
        if name not in row:
            raise InputError(f"dataset row {number}: no {name!r}; there is {', '.join(map(repr, row))}")
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str) and isinstance(prompt, str):
        if prompt not in known:
            known[prompt] = list(tokenizer(prompt)["input_ids"])
            if known[prompt][-1:] == [tokenizer.eos_token_id]:  # a tokenizer that ends every text would end it too soon
                known[prompt] = known[prompt][:-1]
        return _never_empty(known[prompt], tokenizer), _text_ids(chosen, tokenizer), _text_ids(rejected, tokenizer)
    if isinstance(chosen, str) or isinstance(rejected, str) or isinstance(prompt, str):
        raise InputError(f"dataset row {number}: prompt, chosen and rejected are all text, or all lists of messages")
    chats = [_messages(chat, number) for chat in (chosen, rejected)]
    if prompt is None:
        shared = next((at for at, turns in enumerate(zip(*chats, strict=False)) if turns[0] != turns[1]), min(map(len, chats)))
        asked = chats[0][: min(shared, len(chats[0]) - 1, len(chats[1]) - 1)]
        chats = [chat[len(asked) :] for chat in chats]
    else:
        asked = _messages(prompt, number)
    if any(len(chat) != 1 or chat[0].role != "assistant" for chat in chats):
        raise InputError(f"dataset row {number}: chosen and rejected are one assistant message each")
    key = tuple((message.role, message.content) for message in asked)
    if key not in known:
        known[key] = models.prompt_ids(tokenizer, asked)
    answers = [models.completion_ids(tokenizer, chat[0].content) for chat in chats]
    return _never_empty(known[key], tokenizer), answers[0], answers[1]


def _messages(chat: Sequence[Mapping[str, Any] | Message], number: int) -> list[Message]:
    try:
        return [turn if isinstance(turn, Message) else Message(role=turn["role"], content=turn["content"]) for turn in chat]
    except (TypeError, KeyError, ValueError):
        raise InputError(f"dataset row {number}: a chat is a list of messages with role and content (text)") from None


def _text_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids if ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id]


def _never_empty(prompt: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """An empty prompt still needs one token to predict the answer's first from."""
    if prompt:
        return prompt
    return [tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id]
