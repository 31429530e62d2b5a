"""Log-probs of completions under encoder-decoders: a prompt encoded once, each distinct completion decoded once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tiebreak.records import InputError
from tiebreak.training.head import output_layer, token_logps
from tiebreak.training.trees import Tree

T5 = frozenset({"mt5", "t5", "umt5"})
FAMILIES = T5 | {"bart", "blenderbot", "blenderbot-small", "marian", "pegasus"}
"""Models that do nothing to their logits but add `final_logits_bias`, and whose answers begin without a language code."""


def refuse_half(model: Any, *, autocast: bool = False) -> None:
    """Raise InputError where a model of the T5 family is in fp16, or is to run under fp16 `autocast`.

    Transformers issues 4586 and 23135.
    """
    family = model.config.model_type
    if family in T5 and (autocast or model.dtype == torch.float16):
        raise InputError(f"fp16 with a {family} model: its activations overflow fp16 and the loss becomes NaN; use bf16 or fp32")


def refuse_unknown(model: Any) -> None:
    """Raise InputError for a model outside `FAMILIES`, or one that does not say what its decoder begins with."""
    config = model.config
    if config.model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise InputError(f"training an encoder-decoder of type {config.model_type} is not available; take one of {known}")
    if getattr(config, "decoder_start_token_id", None) is None:
        raise InputError(
            f"model {config._name_or_path}: no decoder_start_token_id in its config.json; add the one it was trained with"
        )


def prepare(model: Any) -> None:
    """Make a model, a policy or a reference, take the masks of rows; refuse those that would not be exact."""
    refuse_unknown(model)
    refuse_half(model)
    model.set_attn_implementation("sdpa")  # eager attention would add a mask of True and False to its scores


def lay(trees: Sequence[Tree], start_id: int) -> dict[str, torch.Tensor]:
    """Lay trees out as a row without padding: their prompts one after another, and so their completions.

    For the S prompt tokens: `input_ids`, `position_ids` and `prompt`, the tree they belong to. For the C completion
    tokens: `labels`, the token; `decoder_input_ids`, the one before it, `start_id` before the first;
    `decoder_position_ids`; `prompt_of`, the tree it belongs to; `owner`, the completion it belongs to, in the order of
    `trees`.

    >>> row = lay([Tree((7, 8), ((1, 2), (3,)))], start_id=9)
    >>> row["labels"].tolist(), row["decoder_input_ids"].tolist(), row["owner"].tolist()
    ([1, 2, 3], [9, 1, 9], [0, 0, 1])
    """
    prompts = [(number, tree.prompt) for number, tree in enumerate(trees)]
    completions = [(number, completion) for number, tree in enumerate(trees) for completion in tree.completions]
    columns = {
        "input_ids": [token for _, prompt in prompts for token in prompt],
        "position_ids": [position for _, prompt in prompts for position in range(len(prompt))],
        "prompt": [number for number, prompt in prompts for _ in prompt],
        "labels": [token for _, completion in completions for token in completion],
        "decoder_input_ids": [token for _, completion in completions for token in (start_id, *completion[:-1])],
        "decoder_position_ids": [position for _, completion in completions for position in range(len(completion))],
        "prompt_of": [number for number, completion in completions for _ in completion],
        "owner": [owner for owner, (_, completion) in enumerate(completions) for _ in completion],
    }
    return {name: torch.tensor(values) for name, values in columns.items()}


def encoder_decoder_logps(model: nn.Module, row: Mapping[str, torch.Tensor], collision: bool) -> torch.Tensor:
    """Return the log-probs of a row that `lay` made, (tokens,), or with `collision` (2, tokens); see `token_logps`."""
    bare, every = _bare(model), torch.arange(len(row["labels"]), device=row["labels"].device)

    def answer(head: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        logps = token_logps(head, hidden[0], every, row["labels"], bias=bias, collision=collision)
        return logps.reshape(1, -1, len(every)).mT.clone()  # FSDP warns of views

    with _told_apart(bare, row), _without_bias(bare) as bias, output_layer(model, answer):
        output = model(
            input_ids=row["input_ids"][None],
            attention_mask=_mask(row["prompt"], row["prompt"]),
            decoder_input_ids=row["decoder_input_ids"][None],
            decoder_attention_mask=_mask(row["owner"], row["owner"]).tril(),
            use_cache=False,
        )
    logps: torch.Tensor = output.logits[0].float().mT
    return logps if collision else logps[0]


def _mask(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Return (1, 1, queries, keys), True where both belong to the same."""
    return (queries[:, None] == keys)[None, None]


def _bare(model: nn.Module) -> Any:
    """Return the model inside the wrappers of a distributed run and of an adapter."""
    while not hasattr(model, "get_output_embeddings"):
        model = model.module  # type: ignore[assignment]
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


@contextmanager
def _told_apart(bare: Any, row: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Let completions look at their own prompt, and positions start again, where a model's forward pass has no argument.

    Relative positions, such as T5's, are right as they are: nothing looks beyond its own prompt or completion.
    """
    given: list[tuple[nn.Module | None, dict[str, torch.Tensor]]] = [
        (bare.get_decoder(), {"encoder_attention_mask": _mask(row["prompt_of"], row["prompt"])}),
        (getattr(bare.get_encoder(), "embed_positions", None), {"position_ids": row["position_ids"]}),
        (getattr(bare.get_decoder(), "embed_positions", None), {"position_ids": row["decoder_position_ids"]}),
    ]
    hooks = [
        module.register_forward_pre_hook(lambda _, args, kwargs, own=own: (args, kwargs | own), with_kwargs=True)
        for module, own in given
        if module is not None
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _without_bias(bare: Any) -> Iterator[torch.Tensor | None]:
    """Yield what the model adds to its logits, (vocabulary,), while it adds nothing: log-probs stand in their place."""
    bias: torch.Tensor | None = getattr(bare, "final_logits_bias", None)
    if bias is None:
        yield None
        return
    bare.final_logits_bias = bias.new_zeros(1, 1)
    try:
        yield bias[0]
    finally:
        bare.final_logits_bias = bias
