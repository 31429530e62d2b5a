"""Log-probs of tokens from hidden states, in chunks, so that a (tokens x vocabulary) matrix never exists as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.checkpoint import checkpoint

Answer = Callable[[nn.Module, torch.Tensor], torch.Tensor]
"""What stands in for an output layer: takes the layer and its hidden states."""

CHUNK = 1 << 26
"""Bytes of logits that exist at once, whatever the vocabulary."""
SLICE, WORDS = 1 << 20, 1 << 11
"""Logits, and rows of a vocabulary's gradient, that elementwise work takes at once, to stay in a processor's cache."""


class InPlace:
    """Lets output layers and `embedded` add to their weights' `grad` themselves, in the forward passes that run inside.

    A vocabulary's gradient is the largest there is: autograd would make it twice for every row, once for each end of
    the model, and add it up. Its memory is kept for the next time, since what glibc has freed it cannot hand out again
    in the same size. The weights are cast once for all rows: inside, they must not change.
    Only for `backward()`, and not where hooks wait for gradients, as DDP's and FSDP's do.
    """

    def __init__(self) -> None:
        self._gradients: dict[int, torch.Tensor] = {}
        self._casts: dict[int, torch.Tensor] = {}

    def __enter__(self) -> None:
        """Begin to add in place."""
        self._token = _in_place.set(self)

    def __exit__(self, *_: object) -> None:
        """Leave it to autograd again."""
        _in_place.reset(self._token)
        self._casts.clear()

    def cast(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return a weight in another dtype."""
        if id(weight) not in self._casts:
            self._casts[id(weight)] = weight.to(dtype)
        return self._casts[id(weight)]

    def gradient(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight's gradient, which begins with zeros."""
        if weight.grad is None:
            if id(weight) not in self._gradients:
                self._gradients[id(weight)] = torch.empty_like(weight)
            weight.grad = self._gradients[id(weight)].zero_()
        return weight.grad


_in_place: ContextVar[InPlace | None] = ContextVar("in_place", default=None)


def _place(weight: torch.Tensor) -> InPlace | None:
    """Return what adds to a weight's gradient in place, or None where autograd must."""
    hooks = weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None)
    fits = weight.is_leaf and weight.requires_grad and weight.dtype == torch.float32 and not hooks
    return _in_place.get() if fits else None


@contextmanager
def embedded(model: nn.Module) -> Iterator[None]:
    """Let a model's embedding of tokens add to its gradient in place, where that is allowed."""
    while not hasattr(model, "get_input_embeddings"):
        model = model.module  # type: ignore[assignment]  # a wrapper of a distributed run
    layer: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    plain = type(layer) is nn.Embedding and not (layer.sparse or layer.scale_grad_by_freq or layer.max_norm)
    place = _place(layer.weight) if plain else None  # type: ignore[arg-type]
    if place is None:
        yield
        return
    layer.forward = lambda ids: _Embedding.apply(ids, layer.weight, layer.padding_idx, place)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        del layer.forward


@contextmanager
def output_layer(model: nn.Module, answer: Answer) -> Iterator[None]:
    """Let `answer` stand in for a model's output layer, inside its forward pass, where sharded weights are whole."""
    while not hasattr(model, "get_output_embeddings"):
        model = model.module  # type: ignore[assignment]  # a wrapper of a distributed run
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]

    def stand_in(hidden: torch.Tensor) -> torch.Tensor:
        del head.forward  # `answer` may call the layer itself
        try:
            return answer(head, hidden)
        finally:
            head.forward = stand_in

    head.forward = stand_in
    try:
        yield
    finally:
        del head.forward


def token_logps(
    head: nn.Module,
    hidden: torch.Tensor,
    source: torch.Tensor,
    labels: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    collision: bool = False,
) -> torch.Tensor:
    """Return log p(label) of every token, fp32, (tokens,); with `collision`, (2, tokens): also log Σ_v p(v)².

    hidden (K, width) are the states that tokens are predicted from, `source` (tokens,) says which state predicts which
    token of `labels` (tokens,); `head` is the output layer, `bias` (vocabulary,) what the model adds to its logits. The
    second row carries no gradient.
    """
    # FSDP gives a layer a class of its own, which does not change what it computes.
    if isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward:
        hidden = autocast(hidden)
        added: torch.Tensor | None = head.bias
        if bias is not None:
            added = bias if added is None else added + bias
        return _Head.apply(hidden, head.weight, added, source, labels, collision)  # type: ignore[no-untyped-call, no-any-return]

    def piece(states: torch.Tensor, picked: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        logits = head(states).float()
        logps = torch.log_softmax(logits if bias is None else logits + bias, -1)
        chosen = logps[picked, wanted]
        return torch.stack([chosen, (2 * logps.detach()).logsumexp(-1)[picked]]) if collision else chosen

    order: list[torch.Tensor] = []
    pieces: list[torch.Tensor] = []
    rows = max(1, CHUNK // (4 * int(head.out_features)))  # type: ignore[arg-type]
    for start in range(0, len(hidden), rows):
        at = ((source >= start) & (source < start + rows)).nonzero()[:, 0]
        order.append(at)
        pieces.append(checkpoint(piece, hidden[start : start + rows], source[at] - start, labels[at], use_reentrant=False))
    return torch.cat(pieces, -1)[..., torch.cat(order).argsort()]


def autocast(tensor: torch.Tensor) -> torch.Tensor:
    """Cast a tensor as autocast does where it knows the operation."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


class _Head(torch.autograd.Function):
    """A linear output layer and a log-softmax; keeps the logits of one chunk and computes those of others again.

    The layer's weight is cast to the dtype of the states.
    """

    @staticmethod
    def forward(  # noqa: PLR0917  autograd's way
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        source: torch.Tensor,
        labels: torch.Tensor,
        collision: bool,
    ) -> torch.Tensor:
        ctx.place, ctx.dtype = _place(weight), weight.dtype
        ctx.leaf = None if ctx.place is None else weight
        weight = weight.to(hidden.dtype) if ctx.place is None else ctx.place.cast(weight, hidden.dtype)
        out = torch.empty((2 if collision else 1), len(labels), device=hidden.device)
        ctx.kept = None
        for start, end in _chunks(hidden, weight):
            logits = _logits(hidden[start:end], weight, bias)
            for first, part, scratch in _slices(logits, start):
                at = ((source >= first) & (source < first + len(part))).nonzero()[:, 0]
                logps = torch.log_softmax(_exact(part, scratch), -1, out=scratch)
                out[0, at] = logps[source[at] - first, labels[at]]
                if collision:
                    out[1, at] = logps.mul_(2).logsumexp(-1)[source[at] - first]
            if start == 0 and any(ctx.needs_input_grad[:3]):
                ctx.kept = logits
            del logits
        ctx.save_for_backward(hidden, weight, bias, source, labels)
        return out if collision else out[0]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        hidden, weight, bias, source, labels = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad = grads[0][0] if grads[0].dim() == 2 else grads[0]
        per_state = -grad.new_zeros(len(hidden)).index_add_(0, source, grad)[:, None]
        to_hidden = torch.empty_like(hidden) if needs_hidden else None
        to_weight = None
        if needs_weight:
            to_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.place is None else ctx.place.gradient(ctx.leaf)
        to_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        for start, end in _chunks(hidden, weight):
            # What was kept is overwritten here, so it serves once.
            kept, ctx.kept = (ctx.kept, None) if start == 0 else (None, ctx.kept)
            logits = _logits(hidden[start:end], weight, bias) if kept is None else kept
            for first, part, scratch in _slices(logits, start):
                probs = torch.softmax(_exact(part, scratch), -1, out=scratch)
                torch.mul(probs, per_state[first : first + len(part)], out=part)
            at = ((source >= start) & (source < end)).nonzero()[:, 0]
            logits.index_put_((source[at] - start, labels[at]), grad[at].to(logits.dtype), accumulate=True)
            if to_hidden is not None:
                torch.mm(logits, weight, out=to_hidden[start:end])
            if to_weight is not None:
                _add_product(to_weight, logits, hidden[start:end])
            if to_bias is not None:
                to_bias += logits.sum(0, dtype=torch.float32)
            del logits, kept
        return (
            to_hidden,
            to_weight.to(ctx.dtype) if to_weight is not None and ctx.place is None else None,
            None if to_bias is None else to_bias.to(bias.dtype),
            None,
            None,
            None,
        )


class _Embedding(torch.autograd.Function):
    """An embedding of tokens whose gradient goes to the rows it belongs to, in place."""

    @staticmethod
    def forward(ctx: Any, ids: torch.Tensor, weight: torch.Tensor, padding: int | None, place: InPlace) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.weight, ctx.padding, ctx.place = weight, padding, place
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (ids,) = ctx.saved_tensors
        learns = ids.flatten() != ctx.padding if ctx.padding is not None else torch.ones_like(ids.flatten(), dtype=torch.bool)
        ctx.place.gradient(ctx.weight).index_add_(0, ids.flatten()[learns], grads[0].flatten(0, -2)[learns].to(ctx.weight.dtype))
        return None, None, None, None


def _logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.linear(hidden, weight, None if bias is None else bias.to(weight.dtype))


def _chunks(hidden: torch.Tensor, weight: torch.Tensor) -> list[tuple[int, int]]:
    rows = max(1, CHUNK // (len(weight) * weight.element_size()))
    return [(start, min(start + rows, len(hidden))) for start in range(0, len(hidden), rows)]


def _slices(logits: torch.Tensor, start: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield a chunk's logits in slices, each with the place of its first state and as much room in fp32.

    `start` is the place of the chunk's first state.
    """
    step = max(1, SLICE // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
    scratch = torch.empty_like(logits[:step], dtype=torch.float32)
    for at in range(0, len(logits), step):
        part = logits[at : at + step]
        yield start + at, part, scratch[: len(part)]


def _exact(part: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    return part if part.dtype == torch.float32 else scratch.copy_(part)


def _add_product(into: torch.Tensor, to_logits: torch.Tensor, hidden: torch.Tensor) -> None:
    """Add to_logitsᵀ hidden, (vocabulary, width), to fp32 sums; many sums would lose their last bits in half precision."""
    if hidden.dtype == into.dtype:
        into.addmm_(to_logits.mT, hidden)
        return
    step = WORDS if into.device.type == "cpu" else len(into)
    for part, of in zip(into.split(step), to_logits.split(step, dim=-1), strict=True):
        part.add_(of.mT @ hidden)
