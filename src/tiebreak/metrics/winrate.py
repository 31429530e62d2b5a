"""Rates and means with intervals, when several values come from one prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats


class Estimate(NamedTuple):
    """A value with its 95 % interval, from `n` values under `prompts` prompts."""

    value: float
    low: float
    high: float
    n: int
    prompts: int


def rate(by_prompt: Sequence[Sequence[float]], confidence: float = 0.95) -> Estimate | None:
    """Estimate the mean of values in [0, 1] that come in one list per prompt; None where there is none.

    Wilson's interval (1927) with the effective sample size of clustered data, p (1 - p) / variance of the mean, and
    Student's t with prompts - 1 degrees of freedom for the normal quantile (Korn and Graubard 1998). The variance is
    the one between prompts, but no smaller than that of independent values with one more 0 or 1 among them than was
    seen: halves (ties) vary less than wins and losses do, yet ties alone do not make certain. Where all values are 0 or
    all are 1, each prompt counts once.
    """
    groups = [list(group) for group in by_prompt if len(group)]
    if not groups:
        return None
    n, prompts = sum(map(len, groups)), len(groups)
    p = math.fsum(map(math.fsum, groups)) / n
    spread = p * (1 - p)
    alone = (math.fsum((value - p) ** 2 for group in groups for value in group) + spread) / (n + 1) / n
    size = spread / max(_variance(groups, p), alone) if spread > 0 else float(prompts)
    z = float(stats.t.ppf((1 + confidence) / 2, prompts - 1) if prompts > 1 else stats.norm.ppf((1 + confidence) / 2))
    if prompts == 1:  # nothing is known of how prompts differ
        size = 1.0
    centre = (p + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * math.sqrt(spread / size + z * z / (4 * size * size))
    # At 0 and 1 rounding may push the interval off the value itself.
    return Estimate(p, max(0.0, min(centre - half, p)), min(1.0, max(centre + half, p)), n, prompts)


def mean(by_prompt: Sequence[Sequence[float]], confidence: float = 0.95) -> Estimate | None:
    """Estimate a mean with Student's t over prompts; infinite where there is a single prompt."""
    groups = [list(group) for group in by_prompt if len(group)]
    if not groups:
        return None
    n, prompts = sum(map(len, groups)), len(groups)
    value = math.fsum(map(math.fsum, groups)) / n
    half = (
        float(stats.t.ppf((1 + confidence) / 2, prompts - 1)) * math.sqrt(_variance(groups, value)) if prompts > 1 else math.inf
    )
    return Estimate(value, value - half, value + half, n, prompts)


def _variance(groups: Sequence[Sequence[float]], centre: float) -> float:
    """Return the variance of the pooled mean, prompts being the independent units (ratio estimator)."""
    prompts, n = len(groups), sum(map(len, groups))
    if prompts < 2:
        return 0.0
    return prompts / (prompts - 1) * math.fsum((sum(group) - len(group) * centre) ** 2 for group in groups) / n**2
