"""Log-probs of completions: over packed trees where the model's attention takes a mask, over padded rows elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tiebreak.training import trees

TREE_FAMILIES = {"llama", "qwen2", "qwen3", "gpt2"}
"""Families checked to give the same log-probs over a tree as over padded rows."""


def takes_trees(config: Any) -> bool:
    """Tell whether a model with this configuration was checked to be exact over trees.

    A sliding window is not part of a four-dimensional mask, so a model that uses one is not. Eager attention would add
    the mask's truth values to its scores, and flash attention takes no mask.
    """
    windowed = any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or [])
    return config.model_type in TREE_FAMILIES and config._attn_implementation == "sdpa" and not windowed


def layout(grown: Sequence[trees.Tree], *, tree: bool, pad_id: int) -> list[dict[str, torch.Tensor]]:
    """Lay trees out as the rows that `completion_logps` reads."""
    return trees.pack(grown) if tree else [trees.pad(grown, pad_id)]


def completion_logps(model: nn.Module, rows: Sequence[Mapping[str, torch.Tensor]]) -> torch.Tensor:
    """Return the summed log-prob of every completion, (completions,), fp32, with gradients where they are on."""
    if "owner" not in rows[0]:
        return _padded_logps(model, rows[0])
    token_logps = torch.cat([_tree_token_logps(model, row) for row in rows])
    owner = torch.cat([row["owner"] for row in rows])
    return token_logps.new_zeros(int(owner.max()) + 1).index_add(0, owner, token_logps)


def _tree_token_logps(model: nn.Module, row: Mapping[str, torch.Tensor]) -> torch.Tensor:
    output = model(
        input_ids=row["input_ids"][None],
        position_ids=row["position_ids"][None],
        attention_mask=trees.tree_mask(row["tree"], row["branch"]),
        logits_to_keep=row["keep"],
        use_cache=False,
    )
    logits: torch.Tensor = output.logits[0].float()
    return logits[row["source"], row["labels"]] - logits.logsumexp(-1)[row["source"]]


def _padded_logps(model: nn.Module, row: Mapping[str, torch.Tensor]) -> torch.Tensor:
    output = model(input_ids=row["input_ids"], attention_mask=row["attention_mask"], use_cache=False)
    logits: torch.Tensor = output.logits[:, :-1].float()
    labels = row["input_ids"][:, 1:, None]
    token_logps = logits.gather(-1, labels)[..., 0] - logits.logsumexp(-1)
    return (token_logps * row["completion_mask"][:, 1:]).sum(-1)
