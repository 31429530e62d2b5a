"""Log-probs in chunks equal the whole log-softmax, and nothing of tokens x vocabulary ever exists."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tiebreak.training import head
from tiebreak.training.head import output_layer, token_logps

STATES, WIDTH, VOCABULARY = 40, 8, 500
SOURCE = torch.tensor([0, 1, 2, 0, 5, 39, 7, 7, 38, 20])
"""Some states predict several tokens, some none."""
LABELS = torch.arange(10) * 49
WEIGHTS = torch.linspace(-1, 1, 10)


class OtherLinear(torch.nn.Linear):
    """An output layer that is not quite a linear one, as an adapter's is not."""


def layer(kind: type[torch.nn.Linear], *, bias: bool) -> torch.nn.Linear:
    torch.manual_seed(0)
    return kind(WIDTH, VOCABULARY, bias=bias)


def whole(layer: torch.nn.Linear, hidden: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
    logits = layer(hidden).float()
    return (logits if added is None else logits + added).log_softmax(-1)


@pytest.fixture(params=[1 << 27, 4 * 7 * VOCABULARY], ids=["one chunk", "six chunks"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(head, "CHUNK", request.param)
    monkeypatch.setattr(head, "SLICE", 3 * VOCABULARY)
    return int(request.param)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("added", [False, True], ids=["", "the model adds a bias"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "its own bias"])
@pytest.mark.parametrize("kind", [torch.nn.Linear, OtherLinear])
def test_values_and_gradients(kind: type[torch.nn.Linear], bias: bool, added: bool) -> None:
    last, hidden = layer(kind, bias=bias), torch.randn(STATES, WIDTH, requires_grad=True)
    more = torch.randn(VOCABULARY) if added else None
    logps, collision = token_logps(last, hidden, SOURCE, LABELS, bias=more, collision=True)
    every = whole(last, hidden, more)
    torch.testing.assert_close(logps, every[SOURCE, LABELS])
    torch.testing.assert_close(collision, (2 * every).logsumexp(-1)[SOURCE])
    torch.testing.assert_close(token_logps(last, hidden, SOURCE, LABELS, bias=more), logps)
    leaves = [hidden, *last.parameters()]
    for again in (True, False):  # what a backward pass overwrote, the next one makes anew
        ours = torch.autograd.grad((logps * WEIGHTS).sum(), leaves, retain_graph=again)
        theirs = torch.autograd.grad((every[SOURCE, LABELS] * WEIGHTS).sum(), leaves, retain_graph=True)
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("chunk")
def test_frozen_weights_get_no_gradient() -> None:
    last, hidden = layer(torch.nn.Linear, bias=False).requires_grad_(False), torch.randn(STATES, WIDTH, requires_grad=True)
    token_logps(last, hidden, SOURCE, LABELS).sum().backward()
    assert last.weight.grad is None
    every = whole(last, hidden, None)[SOURCE, LABELS].sum()
    torch.testing.assert_close(hidden.grad, torch.autograd.grad(every, hidden)[0])


@pytest.mark.usefixtures("chunk")
def test_under_autocast_sums_stay_in_fp32() -> None:
    last, hidden = layer(torch.nn.Linear, bias=False), torch.randn(STATES, WIDTH, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        logps = token_logps(last, hidden, SOURCE, LABELS)
    assert logps.dtype == torch.float32
    exact = whole(last, hidden, None)[SOURCE, LABELS]
    torch.testing.assert_close(logps, exact, atol=0.03, rtol=0.01)
    assert len(set((logps * 256).frac().abs().tolist())) > 5, "rounded to bf16 they would be multiples of a 256th or more"
    ours = torch.autograd.grad(logps.sum(), [hidden, last.weight])
    for mine, theirs in zip(ours, torch.autograd.grad(exact.sum(), [hidden, last.weight]), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, atol=0.03, rtol=0.05)


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operation makes."""

    bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, torch.Tensor):
                self.bytes = max(self.bytes, one.nbytes)
        return out


@pytest.mark.parametrize("kind", [torch.nn.Linear, OtherLinear])
@pytest.mark.parametrize("low", [False, True], ids=["fp32", "bf16"])
def test_memory_follows_the_chunk(kind: type[torch.nn.Linear], low: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK", 20_000)
    monkeypatch.setattr(head, "SLICE", 2 * VOCABULARY)
    last, hidden = layer(kind, bias=False), torch.randn(STATES, WIDTH, requires_grad=True)
    with Largest() as seen, torch.autocast("cpu", torch.bfloat16, enabled=low):
        token_logps(last, hidden, SOURCE, LABELS).sum().backward()
    assert seen.bytes == 20_000
    with Largest() as seen:
        whole(last, hidden, None)[SOURCE, LABELS].sum().backward()
    assert seen.bytes == 4 * STATES * VOCABULARY > 2 * 20_000


def test_a_layer_is_itself_again() -> None:
    model = torch.nn.Module()
    model.last = layer(torch.nn.Linear, bias=False)
    model.get_output_embeddings = lambda: model.last  # type: ignore[assignment, return-value]
    hidden, wrapped = torch.randn(3, WIDTH), torch.nn.Module()
    wrapped.module = model
    plain = model.last(hidden)
    with output_layer(wrapped, lambda head, hidden: head(hidden) + 1):  # it may ask the layer itself
        assert torch.equal(model.last(hidden), plain + 1)
        assert torch.equal(model.last(hidden), plain + 1), "and stands in for it again"
        with pytest.raises(RuntimeError):
            model.last(hidden[:, 1:])
        assert torch.equal(model.last(hidden), plain + 1), "whatever happened"
    assert torch.equal(model.last(hidden), plain)


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("padding", [None, 49], ids=["", "a padding token, which learns nothing at the input"])
def test_gradients_in_place_are_those_of_autograd(padding: int | None, half: bool, chunk: int) -> None:
    """Both ends of a model with one weight, over two rows, with and without help from autograd."""

    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner = torch.nn.Embedding(VOCABULARY, WIDTH, padding_idx=padding)
            self.head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
            self.head.weight = self.inner.weight

        def get_input_embeddings(self) -> torch.nn.Module:
            return self.inner

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return token_logps(self.head, torch.tanh(self.inner(ids)[0]), SOURCE, LABELS)

    def gradient(allowed: bool) -> tuple[torch.Tensor, int]:
        model, dense = Tied(), 0
        for row in range(2):
            ids = (torch.arange(STATES)[None] * (7 + row)) % VOCABULARY
            with head.InPlace() if allowed else nullcontext(), Peak() as largest:
                with torch.autocast("cpu", torch.bfloat16, enabled=half), head.embedded(model):
                    loss = (model(ids) * WEIGHTS).sum()
                loss.backward()
            dense += largest.weights
        assert model.inner.weight.grad is not None
        return model.inner.weight.grad, dense

    (ours, few), (theirs, many) = gradient(allowed=True), gradient(allowed=False)
    torch.testing.assert_close(ours, theirs, atol=1e-2 if half else 1e-6, rtol=1e-2 if half else 1e-5)
    assert ours.abs().sum() > 0
    assert few < many


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_the_next_step_begins_anew_in_the_same_memory(half: bool) -> None:
    last, hidden, place = layer(torch.nn.Linear, bias=False), torch.randn(STATES, WIDTH), head.InPlace()

    def step(where: Any) -> torch.Tensor:
        last.zero_grad()
        with where, torch.autocast("cpu", torch.bfloat16, enabled=half):
            token_logps(last, hidden, SOURCE, LABELS).sum().backward()
        assert last.weight.grad is not None
        return last.weight.grad

    first = step(place)
    before, memory = first.clone(), first.data_ptr()
    with torch.no_grad():
        last.weight.mul_(3)  # what was cast must not outlive the step
    again = step(place)
    assert again.data_ptr() == memory
    torch.testing.assert_close(again, step(nullcontext()), atol=1e-2 if half else 1e-6, rtol=1e-2 if half else 1e-5)
    assert not torch.allclose(again, before, atol=0.1)
    outside = last.weight.grad
    assert outside is not None
    assert outside.data_ptr() != memory


class Peak(TorchDispatchMode):
    """Count the tensors made that are as large as the weight."""

    weights = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.shape == (VOCABULARY, WIDTH) and not any(made is one for one in args):
            self.weights += 1
        return made
