"""Span corruption: what an encoder-decoder learns from raw text (Raffel et al. 2020, arXiv 1910.10683, section 3.1.4)."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

from tiebreak.records import InputError
from tiebreak.training.trees import Ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DENSITY = 0.15
"""Share of the tokens that are taken out."""
SPAN = 3
"""Mean length of what is taken out in one place, in tokens."""
SENTINEL = re.compile(r"▁?<extra_id_(\d+)>")  # mT5's are pieces of its vocabulary, which begin with a space


@lru_cache(maxsize=8)
def sentinels(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """Return the ids of a tokenizer's sentinels, in their order; raises InputError where it has none."""
    found = [(int(match[1]), at) for token, at in tokenizer.get_vocab().items() if (match := SENTINEL.fullmatch(token))]
    if len(found) < 2:
        raise InputError(
            f"{tokenizer.name_or_path or 'tokenizer'}: has no sentinels <extra_id_0>, <extra_id_1>, …, which raw text for an "
            "encoder-decoder needs; take a model of the T5 family, or train on prompts and completions (sft)"
        )
    return tuple(at for _, at in sorted(found))


def longest(sentinels: Ids) -> int:
    """Return how many tokens at most so many sentinels are enough for, one of them for the end."""
    return int((len(sentinels) - 1) * SPAN / DENSITY)


def corrupt(text: Ids, sentinels: Ids, end: Sequence[int], chance: random.Random) -> tuple[Ids, Ids]:
    """Take spans out of a text of two tokens or more; return what is left and what was taken, each ending in `end`.

    The spans have random lengths and places; one sentinel stands for each on both sides, and one more ends the second.

    >>> corrupt((1, 2, 3, 4, 5), (90, 91), (), random.Random(0))
    ((1, 2, 3, 90, 5), (90, 4, 91))
    """
    taken = max(1, round(len(text) * DENSITY))
    spans = min(max(1, round(taken / SPAN)), len(sentinels) - 1)
    # Each span has a place of its own among the kept tokens: two never touch.
    places = sorted(chance.sample(range(len(text) - taken + 1), spans))
    cuts = [0, *sorted(chance.sample(range(1, taken), spans - 1)), taken]
    inputs: list[int] = []
    targets: list[int] = []
    at = 0
    for sentinel, place, (before, after) in zip(sentinels, places, pairwise(cuts), strict=False):
        start = place + before
        inputs += (*text[at:start], sentinel)
        at = start + after - before
        targets += (sentinel, *text[start:at])
    return (*inputs, *text[at:], *end), (*targets, sentinels[spans], *end)
