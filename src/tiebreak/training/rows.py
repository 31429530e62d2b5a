"""Rows as users have them, to token ids: text or chats, prompt given or implied, cut without losing an answer."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from tiebreak import models
from tiebreak.records import InputError, Message
from tiebreak.training import spans
from tiebreak.training.trees import Example, Ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenize(
    rows: Iterable[Any], tokenizer: PreTrainedTokenizerBase, max_length: int | None, *, encoder_decoder: bool = False
) -> tuple[list[Example], Counter[str]]:
    """Tokenize rows of `prompt`, `chosen`, `rejected`, as text or as lists of messages, and `flip_probability` if given.

    A prompt that is not given is what `chosen` and `rejected` both begin with. A pair longer than `max_length` has its
    prompt cut from the left; its completions and their ends stay whole. For an encoder-decoder prompt and completion
    do not share that length: each may have as much. A pair is dropped where a completion leaves no room for any prompt
    or has no token, and where both completions have equal ids. Returns the pairs and counts of "prompt cut", "too
    long", "empty", "identical". Raises InputError for rows of another shape.
    """
    return _tokenize(rows, ("chosen", "rejected"), tokenizer, max_length, encoder_decoder)


def tokenize_unpaired(
    rows: Iterable[Any], tokenizer: PreTrainedTokenizerBase, max_length: int | None, *, encoder_decoder: bool = False
) -> tuple[list[Example], Counter[str]]:
    """Tokenize rows of `prompt`, `completion`, `label` (true where desirable) as `tokenize` does.

    A row with `chosen` and `rejected` is one of each. Without any label, all are desirable.
    """
    single: list[Any] = []
    for row in rows:
        if isinstance(row, Mapping) and {"chosen", "rejected"} <= row.keys():
            single += [
                {"prompt": row.get("prompt"), "completion": row[side], "label": side == "chosen"}
                for side in ("chosen", "rejected")
            ]
        else:
            single.append(row)
    return _tokenize(single, ("completion",), tokenizer, max_length, encoder_decoder)


def _tokenize(
    rows: Iterable[Any], sides: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, max_length: int | None, encoder_decoder: bool
) -> tuple[list[Example], Counter[str]]:
    examples: list[Example] = []
    counts: Counter[str] = Counter()
    read = _Reader(tokenizer, sides, encoder_decoder)
    for number, row in enumerate(rows):
        whole, *completions = read(row, number)
        if (prompt := _cut(whole, completions, max_length, encoder_decoder, counts)) is not None:
            flip = row.get("flip_probability") or 0.0
            examples.append(Example(number, prompt, tuple(completions), flip, bool(row.get("label", True))))
    return examples, counts


def _cut(
    prompt: Ids, completions: Sequence[Ids], max_length: int | None, encoder_decoder: bool, counts: Counter[str]
) -> Ids | None:
    """Return as much of a prompt's end as there is room for; None, and one more in `counts`, for what cannot be used."""
    if len(set(completions)) < len(completions):
        counts["identical"] += 1
        return None
    if not all(completions):
        counts["empty"] += 1
        return None
    if max_length is None:
        return prompt
    longest = max(map(len, completions))
    room = max_length - longest if not encoder_decoder else max_length if longest <= max_length else 0
    if room < 1:
        counts["too long"] += 1
        return None
    if len(prompt) > room:
        counts["prompt cut"] += 1
    return prompt[-room:]


def tokenize_supervised(
    rows: Iterable[Any],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    *,
    encoder_decoder: bool = False,
    completion_only_loss: bool | None = None,
    assistant_only_loss: bool = False,
) -> tuple[list[Example], Counter[str]]:
    """Tokenize rows of `prompt` and `completion`, of `messages`, or of `text`; what an example's completion holds is learned.

    Of prompt and completion that is the completion, or both where `completion_only_loss` is false; of messages all, or
    with `assistant_only_loss` the assistant's turns, each an example behind all that was said before it; of text all.
    What is learned whole is cut into pieces that share a token, so that none goes unlearned; the rest is cut as
    `tokenize` does. For an encoder-decoder, text becomes examples without completions, `spans.corrupt` gives them some.
    Returns the examples and counts of "prompt cut", "too long", "empty". Raises InputError.
    """
    examples: list[Example] = []
    counts: Counter[str] = Counter()
    read = _Reader(tokenizer, ("completion",), encoder_decoder)
    for number, row in enumerate(rows):
        kind = _kind(row, number)
        for option, given, wanted in (
            ("completion_only_loss", completion_only_loss is not None, "completion"),
            ("assistant_only_loss", assistant_only_loss, "messages"),
        ):
            if given and kind != wanted:
                raise InputError(f"dataset row {number}: holds {kind}, and {option} is for rows with {wanted}; leave it out")
        if kind == "text":
            found = _text_pieces(row["text"], tokenizer, max_length, encoder_decoder)
            counts["empty"] += not found
            examples += [Example(number, prompt, completions) for prompt, completions in found]
            continue
        whole = completion_only_loss is False or (kind == "messages" and not assistant_only_loss)
        if whole and encoder_decoder:
            option = "completion_only_loss: true" if kind == "completion" else "assistant_only_loss: true"
            raise InputError(f"dataset row {number}: an encoder-decoder learns answers, not prompts; set {option}")
        for part in _turns(row["messages"], number) if assistant_only_loss else [row]:
            prompt, completion = read({"completion": part["messages"]} if kind == "messages" else part, number)
            if whole:
                examples += [Example(number, *one) for one in _pieces(prompt + completion, max_length)]
            elif (fitting := _cut(prompt, [completion], max_length, encoder_decoder, counts)) is not None:
                examples.append(Example(number, fitting, (completion,)))
    return examples, +counts


def _kind(row: Any, number: int) -> str:
    """Return what a row gives to learn: "completion", "messages" or "text"."""
    if isinstance(row, Mapping):
        has = {name for name in ("prompt", "completion", "messages", "text") if row.get(name) is not None}
        if {"prompt", "completion"} <= has:
            return "completion"
        if "messages" in has:
            return "messages"
        if isinstance(row.get("text"), str):
            return "text"
    raise InputError(f"dataset row {number}: not a mapping with prompt and completion, with messages, or with text")


def _turns(chat: Any, number: int) -> list[dict[str, Any]]:
    """Return a chat as often as the assistant answers in it, up to each answer."""
    turns = _messages(chat, number)
    answers = [at for at, turn in enumerate(turns) if at and turn.role == "assistant"]
    if not answers:
        raise InputError(f"dataset row {number}: the assistant never answers in it")
    return [{"messages": turns[: at + 1]} for at in answers]


def _text_pieces(
    text: str, tokenizer: PreTrainedTokenizerBase, max_length: int | None, encoder_decoder: bool
) -> list[tuple[Ids, tuple[Ids, ...]]]:
    """Return a document's pieces as prompts and completions; an encoder-decoder's have none yet."""
    if not text.strip():
        return []
    if not encoder_decoder:
        start = _text_prompt_ids(text, tokenizer, encoder_decoder)
        eos = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        return _pieces(start + eos, max_length)
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    most = spans.longest(spans.sentinels(tokenizer))
    length = most if max_length is None else min(max_length, most)
    return [(ids[at : at + length], ()) for at in range(0, len(ids) - 1, length)]


def _pieces(ids: Ids, max_length: int | None) -> list[tuple[Ids, tuple[Ids, ...]]]:
    """Cut ids into pieces of at most `max_length`: a piece's first token is its prompt, and was the last one's last."""
    step = (max_length or max(len(ids), 2)) - 1
    return [(ids[at : at + 1], (ids[at + 1 : at + 1 + step],)) for at in range(0, len(ids) - 1, step)]


class _Reader:
    """Reads rows of one shape; a prompt that comes again is not tokenized again."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, sides: tuple[str, ...], encoder_decoder: bool) -> None:
        self.tokenizer, self.sides, self.encoder_decoder = tokenizer, sides, encoder_decoder
        self.known: dict[Any, Ids] = {}

    def __call__(self, row: Any, number: int) -> list[Ids]:
        """Return the ids of a row's prompt and of its completions."""
        if not isinstance(row, Mapping) or not set(self.sides) <= row.keys():
            raise InputError(f"dataset row {number}: not a mapping with {', '.join(self.sides)} and, as a rule, prompt")
        prompt, given = row.get("prompt"), [row[side] for side in self.sides]
        texts = [isinstance(text, str) for text in (*given, *([] if prompt is None else [prompt]))]
        if all(texts):
            return self._text(prompt, given)
        if any(texts):
            raise InputError(f"dataset row {number}: prompt, {' and '.join(self.sides)} are all text, or all lists of messages")
        return self._chat(prompt, given, number)

    def _text(self, prompt: str | None, given: list[str]) -> list[Ids]:
        if prompt is None:
            prompt = os.path.commonprefix(given).removesuffix(" ")  # noqa: RUF071  by characters
            given = [text[len(prompt) :] for text in given]
        if prompt not in self.known:
            self.known[prompt] = _text_prompt_ids(prompt, self.tokenizer, self.encoder_decoder)
        return [self.known[prompt], *(_text_ids(text, self.tokenizer) for text in given)]

    def _chat(self, prompt: Any, given: list[Any], number: int) -> list[Ids]:
        chats = [_messages(chat, number) for chat in given]
        if prompt is None:
            turns = enumerate(zip(*chats, strict=False))
            shared = next((at for at, same in turns if any(turn != same[0] for turn in same)), min(map(len, chats)))
            asked = chats[0][: min(shared, *(len(chat) - 1 for chat in chats))]
            chats = [chat[len(asked) :] for chat in chats]
        else:
            asked = _messages(prompt, number)
        if not asked or any(len(chat) != 1 or chat[0].role != "assistant" for chat in chats):
            sides = " and ".join(self.sides)
            raise InputError(f"dataset row {number}: a prompt is one message or more, {sides} one assistant message each")
        key = tuple((message.role, message.content) for message in asked)
        if key not in self.known:
            try:
                self.known[key] = tuple(models.prompt_ids(self.tokenizer, asked, encoder_decoder=self.encoder_decoder))
            except TemplateError as error:
                raise InputError(f"dataset row {number}: the chat template refuses its prompt: {error}") from None
        return [self.known[key], *(tuple(models.completion_ids(self.tokenizer, chat[0].content)) for chat in chats)]


def _messages(chat: Sequence[Mapping[str, Any] | Message], number: int) -> list[Message]:
    try:
        return [turn if isinstance(turn, Message) else Message(role=turn["role"], content=turn["content"]) for turn in chat]
    except (TypeError, KeyError, ValueError):
        raise InputError(f"dataset row {number}: a chat is a list of messages with role and content (text)") from None


def _text_prompt_ids(text: str, tokenizer: PreTrainedTokenizerBase, encoder_decoder: bool) -> Ids:
    """Return a prompt's ids with one BOS where the tokenizer has it so.

    The EOS that some tokenizers add to any text ends an encoder's input, but not a prompt that goes on.
    """
    ids: list[int] = list(tokenizer(text)["input_ids"])
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if ids[:2] == [bos, bos]:  # one in the text, one from the tokenizer
        ids = ids[1:]
    if ids[-1:] == [eos] and not encoder_decoder:
        ids = ids[:-1]
    return tuple(ids or [eos if bos is None else bos])  # the answer's first token needs one to be predicted from


def _text_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> Ids:
    ids: list[int] = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return tuple(ids if tokenizer.eos_token_id in (None, *ids[-1:]) else [*ids, tokenizer.eos_token_id])
