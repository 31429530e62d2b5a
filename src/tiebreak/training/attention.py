"""Attention over rows of preference trees, registered with transformers as one more attention implementation.

A model is told of a row through its `attention_mask`: an opaque four-dimensional tensor that carries the `Row`. Every
layer hands it here untouched, together with its own sliding window, also when gradient checkpointing runs it again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tiebreak.training.head import autocast

NAME = "tiebreak"
TILE = range(48, 97)
"""Queries that are computed at once on a CPU: enough to keep matrix products busy, few enough to skip unseen keys."""


class Tile(NamedTuple):
    """Queries `start` to `end` of a row, the keys that any of them sees, and what to add to their scores."""

    start: int
    end: int
    keys: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True, eq=False)
class Row:
    """Which token of a row sees which: `tree`, `branch` (0 for a prompt) and `position`, all (L,)."""

    tree: torch.Tensor
    branch: torch.Tensor
    position: torch.Tensor
    _made: dict[Any, Any] = field(default_factory=dict, repr=False)
    """Masks and tiles, made once for all layers with the same window."""

    def mask(self, window: int | None = None) -> torch.Tensor:
        """Return the attention mask (1, 1, L, L), True where a token may look.

        A token sees what stands before it in its own tree, if that is the prompt or its own branch, and, with a
        window, lies fewer than that many positions back.
        """
        if ("mask", window) not in self._made:
            everything = torch.arange(len(self.tree), device=self.tree.device)
            self._made["mask", window] = self._visible(everything, everything, window)[None, None]
        return self._made["mask", window]  # type: ignore[no-any-return]

    def tiles(self, window: int | None, dtype: torch.dtype) -> list[Tile]:
        """Return the tiles that a row's attention is computed in."""
        made = self._made.get((window, dtype))
        if made is None:
            cuts = self._cuts()
            made = [self._tile((start, end), window, dtype) for start, end in zip([0, *cuts], cuts, strict=False)]
            self._made[window, dtype] = made
        return made

    def block_mask(self, window: int | None) -> Any:
        """Return the mask as FlexAttention takes it."""
        if ("block", window) not in self._made:
            from torch.nn.attention.flex_attention import create_block_mask

            def seen(batch: Any, head: Any, query: Any, key: Any) -> Any:  # noqa: ARG001  FlexAttention's arguments
                return self._visible(query, key, window, outer=False)

            length = len(self.tree)
            self._made["block", window] = create_block_mask(seen, None, None, length, length, device=str(self.tree.device))
        return self._made["block", window]

    def _visible(self, queries: torch.Tensor, keys: torch.Tensor, window: int | None, *, outer: bool = True) -> torch.Tensor:
        if outer:
            queries = queries[:, None]
        branch = self.branch[keys]
        seen = (keys <= queries) & (self.tree[queries] == self.tree[keys]) & ((branch == 0) | (branch == self.branch[queries]))
        return seen if window is None else seen & (self.position[queries] - self.position[keys] < window)

    def _cuts(self) -> list[int]:
        """Return where tiles end: with a tree where that leaves enough for a tile, else when a tile is full."""
        ends = [*(self.tree.diff().nonzero()[:, 0] + 1).tolist(), len(self.tree)]
        cuts = [0]
        for end in ends:
            while end - cuts[-1] >= TILE.stop:
                cuts.append(cuts[-1] + TILE.stop - 1)
            if end - cuts[-1] >= TILE.start or end == ends[-1]:
                cuts.append(end)
        return cuts[1:]

    def _tile(self, cut: tuple[int, int], window: int | None, dtype: torch.dtype) -> Tile:
        start, end = cut
        earlier = torch.arange(end)
        first_tree, first_branch = self.tree[start], self.branch[start]
        own = (self.tree[:end] > first_tree) | (self.branch[:end] == 0) | (self.branch[:end] >= first_branch)
        keys = earlier[(self.tree[:end] >= first_tree) & own]
        seen = self._visible(torch.arange(start, end), keys, window)
        keys, seen = keys[seen.any(0)], seen[:, seen.any(0)]
        return Tile(start, end, keys, torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min))


def mask_of(row: Row) -> torch.Tensor:
    """Return what a model takes for its `attention_mask` and hands to every layer."""
    # Not of floats: FSDP's mixed precision would make a copy of them, which carries no row.
    mask = torch.zeros(1, 1, 1, len(row.tree), dtype=torch.bool, device=row.tree.device)
    mask.row = row  # type: ignore[attr-defined]
    return mask


class _Tiled(torch.autograd.Function):
    """Softmax attention in tiles of queries against the keys they see, in matrix products; scores are not kept.

    query (H, L, D) is scaled already, key and value (G, L, D), where each of the G key heads serves H / G query heads.
    """

    @staticmethod
    def forward(  # noqa: PLR0917  autograd's way
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: Row, window: int | None
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.row, ctx.window = row, window
        out = torch.empty_like(query)
        for tile in row.tiles(window, query.dtype):
            _, _, values, probs = _probs(query, key, value, tile)
            out[:, tile.start : tile.end] = torch.bmm(probs, values).view(len(query), tile.end - tile.start, -1)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        query, key, value = ctx.saved_tensors
        grad = grads[0]
        groups, width = len(key), query.shape[-1]
        to_query = torch.empty_like(query)
        to_key, to_value = (torch.zeros_like(of, dtype=torch.float32) for of in (key, value))
        for tile in ctx.row.tiles(ctx.window, query.dtype):
            queries, seen, values, probs = _probs(query, key, value, tile)
            out = grad[:, tile.start : tile.end].reshape(groups, -1, width)
            to_value.index_add_(1, tile.keys, torch.bmm(probs.mT, out).float())
            scores = torch._softmax_backward_data(torch.bmm(out, values.mT), probs, -1, probs.dtype)
            to_query[:, tile.start : tile.end] = torch.bmm(scores, seen).view(len(query), tile.end - tile.start, width)
            to_key.index_add_(1, tile.keys, torch.bmm(scores.mT, queries).float())
        return to_query, to_key.to(key.dtype), to_value.to(value.dtype), None, None


def _probs(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tile: Tile) -> tuple[torch.Tensor, ...]:
    """Return a tile's queries, the keys and values it sees, and what it makes of them, for every key head."""
    queries = query[:, tile.start : tile.end].reshape(len(key), -1, query.shape[-1])
    seen, values = key.index_select(1, tile.keys), value.index_select(1, tile.keys)
    scores = torch.bmm(queries, seen.mT)
    scores.view(len(key), -1, *tile.bias.shape).add_(tile.bias)
    return queries, seen, values, torch.softmax(scores, -1)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def tree_attention(  # noqa: PLR0917  transformers' order
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend as `AttentionInterface` has it: query (1, H, L, D), key and value (1, G, L, D); returns (1, L, H, D).

    Over trees: in tiles on a CPU, with FlexAttention on CUDA, with a mask elsewhere and under dropout. Over anything
    else, such as padded rows or generation, it is SDPA.
    """
    row: Row | None = getattr(attention_mask, "row", None)
    if row is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    if query.device.type == "cpu" and not dropout:
        query, key, value = autocast(query), autocast(key), autocast(value)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        out = _Tiled.apply(query[0] * scale, key[0], value[0], row, sliding_window)  # type: ignore[no-untyped-call]
        return out.transpose(0, 1)[None], None
    if query.device.type == "cuda" and not dropout:
        from transformers.integrations.flex_attention import flex_attention_forward

        return flex_attention_forward(module, query, key, value, row.block_mask(sliding_window), scaling=scaling)
    return sdpa_attention_forward(module, query, key, value, row.mask(sliding_window), dropout=dropout, scaling=scaling)


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
