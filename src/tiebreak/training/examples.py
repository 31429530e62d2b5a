"""The examples of a training, and the order in which they are drawn: a prompt's together, up to half a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from tiebreak.training.trees import Example, Ids

FILL = -1
"""The row of an example that only fills up a batch and counts for nothing."""


class Examples(Dataset[Example]):
    """Tokenized examples, those of one prompt next to each other; a single token, such as BOS, is no prompt to share.

    Negative places hold them once more, as fillings.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        groups: dict[Ids | int, list[Example]] = {}
        for at, example in enumerate(examples):
            groups.setdefault(example.prompt if len(example.prompt) > 1 else at, []).append(example)
        self.groups = list(groups.values())
        self.examples = [example for group in self.groups for example in group]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index] if index >= 0 else replace(self.examples[~index % len(self)], row=FILL)


class InOrder(Sampler[int]):
    """Draws examples as the user's dataset has them, wherever their prompts' others are."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.order = sorted(range(len(examples)), key=lambda at: examples[at].row)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)


class ByPrompt(Sampler[int]):
    """Draws prompts in a random order, anew each epoch, and each prompt's examples together, at most half of a `step`.

    The examples of a prompt that has more come in equal pieces, spread over the epoch: pairs of one prompt's completions
    tell much the same, and what a step learns should not hang on one prompt (docs/training.md).
    """

    def __init__(self, groups: Sequence[Sequence[Any]], seed: int, step: int) -> None:
        self.seed, self.epoch = seed, 0
        self.pieces: list[tuple[int, int, range]] = []
        """Its number, of how many of its prompt, and the places it holds."""
        for start, group in zip(accumulate(map(len, groups), initial=0), groups, strict=False):
            count = math.ceil(len(group) / max(1, step // 2))
            cuts = [start + len(group) * number // count for number in range(count + 1)]
            self.pieces += [(number, count, range(*cuts[number : number + 2])) for number in range(count)]

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(len(places) for _, _, places in self.pieces)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        drawn = torch.rand(len(self.pieces), generator=generator, dtype=torch.float64).tolist()
        # One piece of two lies in the epoch's first half, the other in its second.
        when = [(number + at) / count for (number, count, _), at in zip(self.pieces, drawn, strict=True)]
        for at in sorted(range(len(when)), key=when.__getitem__):
            yield from self.pieces[at][2]


class Filled(Sampler[int]):
    """Goes on with fillings to where every process has a whole batch.

    It asks for the epoch: accelerate does not tell it where training goes on in the middle of one.
    """

    def __init__(self, sampler: Sampler[int], batch: int, epoch: Callable[[], int]) -> None:
        self.sampler, self.batch, self.epoch = sampler, batch, epoch

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.batch) * self.batch  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        if isinstance(self.sampler, ByPrompt):
            self.sampler.set_epoch(self.epoch())
        yield from self.sampler
        yield from (~at for at in range(len(self) - len(self.sampler)))  # type: ignore[arg-type]
