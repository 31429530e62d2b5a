"""The examples of a training, and the order in which they are drawn: a prompt's together, batches whole."""

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


class ByPrompt(Sampler[int]):
    """Draws prompts in a random order, anew each epoch, and each prompt's examples together."""

    def __init__(self, groups: Sequence[Sequence[Any]], seed: int) -> None:
        self.starts = list(accumulate(map(len, groups), initial=0))
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.starts[-1]

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        for group in torch.randperm(len(self.starts) - 1, generator=generator).tolist():
            yield from range(self.starts[group], self.starts[group + 1])


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
