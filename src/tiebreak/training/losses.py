"""Losses: pure functions of log-probs, each with its paper's equation."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812


def sigmoid(
    chosen_logratios: torch.Tensor, rejected_logratios: torch.Tensor, *, beta: float, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Return the DPO loss of every pair, (pairs,).

    log-ratios (pairs,) are log π(y|x) - log π_ref(y|x). Equation 7 of arXiv 2305.18290; `label_smoothing` ε takes a
    share of the labels to be the wrong way round, conservative DPO's equation 3 (ericmitchell.ai/cdpo.pdf):
    -(1-ε) log σ(β Δ) - ε log σ(-β Δ).
    """
    scaled = beta * (chosen_logratios - rejected_logratios)
    return -(1 - label_smoothing) * F.logsigmoid(scaled) - label_smoothing * F.logsigmoid(-scaled)
