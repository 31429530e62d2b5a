"""What an audit sees once pairs are tokens, those that training will see; and pairs for people to see that way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tiebreak import models
from tiebreak.metrics.audit import Pair
from tiebreak.metrics.findings import Finding, Tally, excerpt, finding
from tiebreak.progress import progress
from tiebreak.records import InputError, Message
from tiebreak.reporting.view import Seen, Token
from tiebreak.training.rows import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = ({"role": "user", "content": "Is it raining?"}, {"role": "assistant", "content": "No, not today."})
DATES = ("%d %b %Y", "%d %B %Y", "%B %d, %Y", "%Y-%m-%d")
CUT = {"prompt cut": "prompt-cut", "too long": "too-long"}
"""What training counts of what does not fit, and the finding that it is."""
AROUND = 16
"""Tokens before a border between prompt and answer that can take part in a merge across it."""


def token_findings(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, max_length: int | None, *, encoder_decoder: bool = False
) -> list[Finding]:
    """Tokenize pairs as training does, one by one, and say what becomes of them."""
    found = list(_template(pairs, tokenizer))
    ends = models.end_ids(tokenizer)
    if not ends:
        found.append(finding("no-eos", len(pairs), len(pairs)))
    stops = {*ends[-1:], *(() if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,))}
    tally, longest, refusals = Tally(), Counter[str](), Counter[str]()
    with progress("audit", len(pairs), "pairs") as advance:
        for pair in pairs:
            advance(1)
            if not pair.prompt:
                continue
            try:
                examples, counts = tokenize([_row(pair)], tokenizer, max_length, encoder_decoder=encoder_decoder)
            except InputError as error:
                refusals[str(error).partition("its prompt: ")[2]] += 1
                tally.add("template-refuses", pair.where, excerpt(pair.prompt[0].content))
                continue
            if counts["identical"] and pair.chosen != pair.rejected:
                tally.add("same-tokens", pair.where, f"{excerpt(pair.chosen)} | {excerpt(pair.rejected)}")
            for code in (code for reason, code in CUT.items() if counts[reason]):
                (whole,), _ = tokenize([_row(pair)], tokenizer, None, encoder_decoder=encoder_decoder)
                answer = max(map(len, whole.completions))
                needed = max(len(whole.prompt), answer) if encoder_decoder else len(whole.prompt) + answer
                longest[code] = max(longest[code], needed)
                tally.add(code, pair.where, f"{needed:,} tokens: {excerpt(pair.prompt[-1].content)}")
            for prompt, answers in ((example.prompt, example.completions) for example in examples):
                for code, shown in _signs(pair, prompt, answers, tokenizer, stops, len(ends)):
                    tally.add(code, pair.where, shown)
                if not encoder_decoder and _merges(tokenizer, _decoded(tokenizer, prompt[-AROUND:]), pair.chosen[:80]):
                    tally.add("merged", pair.where, excerpt(pair.chosen))
    facts = {"max_length": f"{max_length:,}" if max_length else "", "bos": tokenizer.bos_token}
    facts["why"] = next((why for why, _ in refusals.most_common(1)), "")
    for code, count in tally.counts.items():
        found.append(finding(code, count, len(pairs), tally.examples[code], longest=f"{longest[code]:,}", **facts))
    return found


def _row(pair: Pair) -> dict[str, Any]:
    sides = {side: [Message(role="assistant", content=getattr(pair, side))] for side in ("chosen", "rejected")}
    return {"prompt": pair.prompt, **sides}


def _signs(  # noqa: PLR0917
    pair: Pair, prompt: Sequence[int], answers: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, stops: set[int],
    end: int,
) -> Iterator[tuple[str, str]]:  # fmt: skip
    """Yield what single tokens give away: an end within an answer, two beginnings, special ones, signs without a token."""
    bos, unknown = tokenizer.bos_token_id, tokenizer.unk_token_id
    if bos is not None and list(prompt[:2]) == [bos, bos]:
        yield "double-bos", excerpt(_decoded(tokenizer, prompt[:8]))
    ended = next((answer[: len(answer) - end] for answer in answers if stops & set(answer[: len(answer) - end])), None)
    if ended is not None:
        at = next(at for at, token in enumerate(ended) if token in stops)
        yield "eos-inside", excerpt(_decoded(tokenizer, ended[max(0, at - 5) :]))
    asked, said = pair.asked, f"{pair.chosen} {pair.rejected}"
    special = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    if read := [token for at, token in special if token in asked or (token in said and at not in {*stops, unknown})]:
        yield "special-read", excerpt(" ".join(read))
    if unknown is not None and unknown not in stops and any(unknown in ids for ids in (prompt, *answers)):
        signs = sorted(set(pair.asked + pair.chosen + pair.rejected))
        ids = tokenizer(signs, add_special_tokens=False)["input_ids"]
        yield "unknown-tokens", excerpt(" ".join(sign for sign, own in zip(signs, ids, strict=True) if unknown in own))


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _merges(tokenizer: PreTrainedTokenizerBase, left: str, right: str) -> bool:
    """Tell whether two texts have other tokens as one."""
    whole, *parts = ([*tokenizer(text, add_special_tokens=False)["input_ids"]] for text in (left + right, left, right))
    return whole != parts[0] + parts[1]


def _template(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    if tokenizer.chat_template is None:
        chats = sum(len(pair.prompt) > 1 for pair in pairs)
        yield finding("no-template", len(pairs), len(pairs), severity="warning" if chats else "note")
        return
    ready = str(tokenizer.apply_chat_template(list(PROBE[:1]), tokenize=False, add_generation_prompt=True))
    whole = str(tokenizer.apply_chat_template(list(PROBE), tokenize=False))
    if not whole.startswith(ready):
        yield finding("template-prefix", len(pairs), len(pairs))
    if any(f"{datetime.now():{form}}" in ready for form in DATES):
        yield finding("template-date", len(pairs), len(pairs))


# --- pairs as tokens, to be looked at ------------------------------------------------------------------------------


def view(
    pairs: Iterable[Pair],
    tokenizer: PreTrainedTokenizerBase,
    n: int = 3,
    max_length: int | None = None,
    *,
    encoder_decoder: bool = False,
) -> list[Seen]:
    """Return both answers of the first `n` pairs that training takes, as tokens with the loss mask."""
    seen: list[Seen] = []
    for pair in pairs:
        if len(seen) == 2 * n:
            break
        examples, _ = tokenize([_row(pair)], tokenizer, max_length, encoder_decoder=encoder_decoder)
        for example in examples:
            prompt = _tokens(example.prompt, tokenizer, learned=False)
            for side, ids in (("chosen", example.completions[0]), ("rejected", example.completions[1])):
                tokens = prompt + _tokens(ids, tokenizer, learned=True)
                seen.append(Seen(where=pair.where, side="chosen" if side == "chosen" else "rejected", tokens=tuple(tokens)))
    return seen


def _tokens(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, *, learned: bool) -> list[Token]:
    """Return the texts of tokens, with those together that hold parts of one character."""
    special = set(tokenizer.all_special_ids)
    tokens: list[Token] = []
    begun, before = 0, ""
    for at in range(1, len(ids) + 1):
        text = _decoded(tokenizer, ids[:at])
        if text.endswith("\ufffd") and at < len(ids):  # the character goes on
            continue
        one = at - begun == 1 and ids[begun] in special
        tokens.append(Token(text=text[len(before) :], learned=learned, special=one))
        begun, before = at, text
    return tokens
