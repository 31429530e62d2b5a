"""Preference trees: a prompt once, each distinct completion once as a branch, pairs as indices into the branches.

Where 5 completions make 10 pairs, two padded sequences per pair run 20 prompts and 20 completions; the tree runs 1
and 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypedDict

import torch

Ids = tuple[int, ...]

ROW_TOKENS = 512
"""Trees share a row up to this many tokens; beyond it, attention over the row's dense mask costs more than it saves."""


class PairIds(TypedDict, total=False):
    """A tokenized pair; the reference's log-probs are added once they are known."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    ref_chosen_logps: float
    ref_rejected_logps: float


@dataclass(frozen=True)
class Tree:
    """A prompt's ids and its distinct completions' ids; neither is empty."""

    prompt: Ids
    completions: tuple[Ids, ...]

    @property
    def tokens(self) -> int:
        """Tokens that the tree takes in a row."""
        return len(self.prompt) + sum(map(len, self.completions))


def grow(pairs: Iterable[PairIds]) -> tuple[list[Tree], list[int], list[int]]:
    """Group tokenized pairs into trees.

    Returns the trees and, pair by pair, the indices of its chosen and rejected completion among all the trees'
    completions, counted through the trees in order.

    >>> trees, chosen, rejected = grow([
    ...     {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]},
    ...     {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [6]},
    ... ])
    >>> trees[0].completions, chosen, rejected
    (((3,), (4, 5), (6,)), [0, 0], [1, 2])
    """
    branches: dict[Ids, dict[Ids, int]] = {}
    places: list[tuple[Ids, Ids, Ids]] = []
    for pair in pairs:
        prompt, chosen, rejected = tuple(pair["prompt_ids"]), tuple(pair["chosen_ids"]), tuple(pair["rejected_ids"])
        own = branches.setdefault(prompt, {})
        for completion in (chosen, rejected):
            own.setdefault(completion, len(own))
        places.append((prompt, chosen, rejected))
    starts = dict(zip(branches, accumulate((len(own) for own in branches.values()), initial=0), strict=False))
    trees = [Tree(prompt, tuple(own)) for prompt, own in branches.items()]
    return (
        trees,
        [starts[prompt] + branches[prompt][chosen] for prompt, chosen, _ in places],
        [starts[prompt] + branches[prompt][rejected] for prompt, _, rejected in places],
    )


def pack(trees: Sequence[Tree], row_tokens: int = ROW_TOKENS) -> list[dict[str, torch.Tensor]]:
    """Lay trees one after another into rows without padding, first fit, in order.

    A row holds, for its L tokens: `input_ids`, `position_ids` (L,), which start again at the end of the prompt for
    every branch, `tree` (L,) and `branch` (L,), 0 for a prompt. For its C completion tokens: `keep` (K,), the places
    whose logits are wanted; `source` (C,), which of these predicts the token; `labels` (C,), the token; `owner` (C,),
    the completion it belongs to among the completions of all rows, in the order of `trees`.

    >>> row, = pack([Tree((7, 8), ((1, 2), (3,)))])
    >>> row["input_ids"].tolist(), row["position_ids"].tolist(), row["branch"].tolist()
    ([7, 8, 1, 2, 3], [0, 1, 2, 3, 2], [0, 0, 1, 1, 2])
    >>> row["keep"].tolist(), row["source"].tolist(), row["labels"].tolist(), row["owner"].tolist()
    ([1, 2], [0, 1, 0], [1, 2, 3], [0, 0, 1])
    """
    rows: list[list[tuple[int, Tree]]] = []
    room: list[int] = []
    first = 0
    for tree in trees:
        at = next((i for i, left in enumerate(room) if left >= tree.tokens), None)
        if at is None:
            rows.append([])
            room.append(row_tokens)
            at = -1
        rows[at].append((first, tree))
        room[at] -= tree.tokens
        first += len(tree.completions)
    return [_row(row) for row in rows]


def _row(row: list[tuple[int, Tree]]) -> dict[str, torch.Tensor]:
    columns: dict[str, list[int]] = {
        name: [] for name in ("input_ids", "position_ids", "tree", "branch", "keep", "source", "labels", "owner")
    }
    for number, (first, tree) in enumerate(row):
        prompt_at, prompt_kept = len(columns["input_ids"]) + len(tree.prompt) - 1, len(columns["keep"])
        columns["input_ids"] += tree.prompt
        columns["position_ids"] += range(len(tree.prompt))
        columns["branch"] += [0] * len(tree.prompt)
        columns["keep"].append(prompt_at)
        for branch, completion in enumerate(tree.completions):
            at, kept = len(columns["input_ids"]), len(columns["keep"])
            columns["input_ids"] += completion
            columns["position_ids"] += range(len(tree.prompt), len(tree.prompt) + len(completion))
            columns["branch"] += [branch + 1] * len(completion)
            # A branch's first token is predicted at the prompt's end, the others at the one before; nothing at its last.
            columns["keep"] += range(at, at + len(completion) - 1)
            columns["source"] += [prompt_kept, *range(kept, kept + len(completion) - 1)]
            columns["labels"] += completion
            columns["owner"] += [first + branch] * len(completion)
        columns["tree"] += [number] * tree.tokens
    return {name: torch.tensor(values, dtype=torch.long) for name, values in columns.items()}


def tree_mask(tree: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
    """Return the attention mask (1, 1, L, L) of a row, True where a token may look.

    A token sees what stands before it in its own tree, if that is the prompt or its own branch.
    """
    causal = torch.ones(len(tree), len(tree), dtype=torch.bool, device=tree.device).tril()
    same = (tree[:, None] == tree) & ((branch == 0) | (branch[:, None] == branch))
    return (causal & same)[None, None]


def pad(trees: Sequence[Tree], pad_id: int) -> dict[str, torch.Tensor]:
    """Lay every completion behind its own copy of the prompt, padded on the right: for models a tree would confuse.

    Returns `input_ids`, `attention_mask` and `completion_mask`, all (completions, longest).
    """
    sequences = [(tree.prompt, completion) for tree in trees for completion in tree.completions]
    width = max(len(prompt) + len(completion) for prompt, completion in sequences)
    ids, attention, completion_mask = [], [], []
    for prompt, completion in sequences:
        rest = width - len(prompt) - len(completion)
        ids.append([*prompt, *completion, *[pad_id] * rest])
        attention.append([1] * (width - rest) + [0] * rest)
        completion_mask.append([0] * len(prompt) + [1] * len(completion) + [0] * rest)
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(attention),
        "completion_mask": torch.tensor(completion_mask, dtype=torch.bool),
    }
