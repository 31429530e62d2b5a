"""The sigmoid loss: closed form, gradient, and the same value as TRL's."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tiebreak.training import losses

ratios = st.floats(-30, 30)
smoothing = st.floats(0, 0.49)


def test_ln_2_where_policy_and_reference_agree() -> None:
    zero = torch.zeros(3)
    for epsilon in (0.0, 0.1, 0.49):
        loss = losses.sigmoid(zero, zero, beta=0.3, label_smoothing=epsilon)
        assert loss.tolist() == pytest.approx([math.log(2)] * 3)


@given(ratios, ratios, st.floats(0.01, 2), smoothing)
def test_closed_form(chosen: float, rejected: float, beta: float, epsilon: float) -> None:
    delta = beta * (chosen - rejected)
    expected = (1 - epsilon) * math.log1p(math.exp(-delta)) + epsilon * math.log1p(math.exp(delta))
    won, lost = torch.tensor([[chosen], [rejected]], dtype=torch.float64)
    loss = losses.sigmoid(won, lost, beta=beta, label_smoothing=epsilon)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(ratios, ratios, smoothing)
def test_gradient(chosen: float, rejected: float, epsilon: float) -> None:
    """d loss / d chosen = -beta ((1 - ε) σ(-βΔ) - ε σ(βΔ)), and its opposite for rejected."""
    beta = 0.2
    values = torch.tensor([chosen, rejected], dtype=torch.float64, requires_grad=True)
    losses.sigmoid(values[:1], values[1:], beta=beta, label_smoothing=epsilon).sum().backward()
    right = 1 / (1 + math.exp(-beta * (chosen - rejected)))
    expected = -beta * ((1 - epsilon) * (1 - right) - epsilon * right)
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([expected, -expected], abs=1e-12)


def test_falls_as_the_margin_grows() -> None:
    margins = torch.linspace(-20, 20, 41, dtype=torch.float64)
    loss = losses.sigmoid(margins, torch.zeros_like(margins), beta=0.5)
    assert (loss.diff() < 0).all()
    smoothed = losses.sigmoid(margins, torch.zeros_like(margins), beta=0.5, label_smoothing=0.2)
    assert (smoothed.diff() > 0).any(), "with smoothing, too large a margin costs again"
    assert smoothed.argmin() == (margins - math.log(0.8 / 0.2) / 0.5).abs().argmin()


def test_no_overflow_far_out() -> None:
    far = torch.tensor([1e4, -1e4])
    loss = losses.sigmoid(far, -far, beta=1.0, label_smoothing=0.1)
    assert torch.isfinite(loss).all()


def trl_loss(chosen: float, rejected: float, *, beta: float, loss_type: str, label_smoothing: float) -> float:
    """Return what TRL's DPOTrainer computes for one pair whose log-ratios are `chosen` and `rejected`."""
    from collections import defaultdict

    from trl import DPOTrainer

    log_probs = torch.tensor([[chosen], [rejected]])
    zeros = torch.zeros(2, 1)
    outputs = SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    accelerator = SimpleNamespace(device="cpu", gather=lambda values: values, gather_for_metrics=lambda values: values)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False), accelerator=accelerator,
        aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=[loss_type],
        loss_weights=[1.0], beta=beta, label_smoothing=label_smoothing, use_weighting=False, _total_train_tokens=0,
        _metrics={"eval": defaultdict(list)},
    )  # fmt: skip
    inputs = {
        "input_ids": torch.ones(2, 2, dtype=torch.long), "attention_mask": torch.ones(2, 2),
        "completion_mask": torch.tensor([[0, 1], [0, 1]]),
        "ref_chosen_logps": torch.zeros(1), "ref_rejected_logps": torch.zeros(1),
    }  # fmt: skip
    return float(DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False))


@pytest.mark.parametrize(("chosen", "rejected"), [(0.0, 0.0), (3.0, -2.0), (-7.5, 1.0), (0.2, 0.1)])
@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_trls_value(chosen: float, rejected: float, beta: float) -> None:
    won, lost = torch.tensor([chosen]), torch.tensor([rejected])
    plain = losses.sigmoid(won, lost, beta=beta).item()
    assert plain == pytest.approx(trl_loss(chosen, rejected, beta=beta, loss_type="sigmoid", label_smoothing=0.0), abs=1e-6)
    # TRL's sigmoid leaves label_smoothing aside; its `aot`, on a single pair, is the same loss with it.
    assert plain == pytest.approx(trl_loss(chosen, rejected, beta=beta, loss_type="sigmoid", label_smoothing=0.2), abs=1e-6)
    smoothed = losses.sigmoid(won, lost, beta=beta, label_smoothing=0.2).item()
    assert smoothed == pytest.approx(trl_loss(chosen, rejected, beta=beta, loss_type="aot", label_smoothing=0.2), abs=1e-6)
    if chosen != rejected:
        assert smoothed != pytest.approx(plain, abs=1e-4)
