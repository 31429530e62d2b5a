"""Rates and means: closed forms, what clustering and ties do, and whether 95 % is 95 %."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tiebreak.metrics.winrate import Estimate, mean, rate

shares = st.sampled_from([0.0, 0.5, 1.0])
groups = st.lists(st.lists(shares, max_size=4), min_size=1, max_size=8)


def got(estimate: Estimate | None) -> Estimate:
    assert estimate is not None
    return estimate


def width(by_prompt: Sequence[Sequence[float]]) -> float:
    estimate = got(rate(by_prompt))
    return estimate.high - estimate.low


def ones(wins: int, n: int) -> list[list[float]]:
    return [[1.0]] * wins + [[0.0]] * (n - wins)


# --- closed forms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wins", "n"), [(0, 1000), (100, 1000), (500, 1000), (730, 1000), (999, 1000), (2000, 4000)])
def test_many_prompts_of_one_value_come_to_wilsons_interval(wins: int, n: int) -> None:
    """Differences: n - 1 for n, and Student's quantile for the normal one; both vanish with n."""
    estimate = got(rate(ones(wins, n)))
    wilson = stats.binomtest(wins, n).proportion_ci(method="wilson")
    assert estimate[::3] == (wins / n, n)
    assert estimate.low == pytest.approx(wilson.low, abs=2e-4)
    assert estimate.high == pytest.approx(wilson.high, abs=2e-4)


def test_the_interval_solves_its_equation() -> None:
    """Both ends are the p0 with |p - p0| = t sqrt(p0 (1 - p0) / size), the size here being 23: 24 prompts of one value."""
    estimate = got(rate(ones(15, 24)))
    quantile = stats.t.ppf(0.975, 23)
    for end in (estimate.low, estimate.high):
        assert abs(estimate.value - end) == pytest.approx(quantile * math.sqrt(end * (1 - end) / 23))
    assert got(rate(ones(15, 24), confidence=0.5)).low > estimate.low


def test_the_size_of_unequal_clusters() -> None:
    """The variance of a ratio of sums, by hand: m / (m - 1) sum (y - p n)^2 / N^2."""
    values = [[1.0, 1.0, 1.0, 0.0], [0.0], [1.0, 0.0], [0.0, 0.0, 0.0]]
    p, total = 0.4, 10
    variance = 4 / 3 * ((3 - 1.6) ** 2 + 0.4**2 + (1 - 0.8) ** 2 + 1.2**2) / total**2
    size, quantile = p * (1 - p) / variance, stats.t.ppf(0.975, 3)
    assert size < total
    estimate = got(rate(values))
    assert (estimate.value, estimate.n, estimate.prompts) == (p, total, 4)
    for end in (estimate.low, estimate.high):
        assert abs(p - end) == pytest.approx(quantile * math.sqrt(end * (1 - end) / size))
    spread = stats.t.ppf(0.975, 3) * math.sqrt(variance)
    assert got(mean(values))[:3] == pytest.approx((p, p - spread, p + spread))


def test_a_mean_is_students() -> None:
    values = [3.0, 4.0, 8.0, 9.5]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    estimate = got(mean([[value] for value in values]))
    assert estimate == pytest.approx((6.125, expected.low, expected.high, 4, 4))


# --- edges ---------------------------------------------------------------------------------------------------------


def test_nothing_is_no_estimate() -> None:
    assert rate([]) is rate([[], []]) is mean([[]]) is None


@pytest.mark.parametrize("prompts", [2, 3, 24, 100])
@pytest.mark.parametrize("draws", [1, 5])
def test_all_wins_are_no_certainty(prompts: int, draws: int) -> None:
    estimate = got(rate([[1.0] * draws] * prompts))
    quantile = stats.t.ppf(0.975, prompts - 1)
    assert (estimate.value, estimate.high) == (1.0, 1.0)
    assert estimate.low == pytest.approx(prompts / (prompts + quantile**2))  # each prompt counts once
    assert 0 < estimate.low < 1
    lost = got(rate([[0.0] * draws] * prompts))
    assert (lost.low, lost.high) == pytest.approx((0.0, 1 - estimate.low))


def test_one_prompt_says_next_to_nothing() -> None:
    for values in ([1.0], [1.0] * 50, [0.5] * 50):
        estimate = got(rate([values]))
        assert estimate.low < 0.5
        assert estimate.high - estimate.low > 0.7
    assert got(mean([[1.0, 2.0]]))[:3] == (1.5, -math.inf, math.inf)


def test_prompts_without_values_do_not_count() -> None:
    assert rate([[1.0], [], [0.0], []]) == rate([[1.0], [0.0]])


@given(groups)
def test_the_interval_holds_its_value_and_mirrors(by_prompt: list[list[float]]) -> None:
    estimate = rate(by_prompt)
    if estimate is None:
        assert not any(by_prompt)
        return
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.low < estimate.high
    mirrored = got(rate([[1 - value for value in group] for group in by_prompt]))
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - estimate.high, 1 - estimate.low))
    assert got(rate(by_prompt[::-1])) == pytest.approx(estimate)


# --- clusters and ties ---------------------------------------------------------------------------------------------


def test_draws_of_one_prompt_that_agree_widen_the_interval() -> None:
    """The same 72 wins in 120: draws that agree, draws as independent ones would fall, and 120 prompts of their own."""
    agree = [[1.0] * 5] * 14 + [[1.0, 1.0, 0.0, 0.0, 0.0]] + [[0.0] * 5] * 9
    apart = [[1.0, 1.0, 1.0, 0.0, 0.0]] * 24
    assert sum(map(sum, agree)) == sum(map(sum, apart)) == 72
    assert width(agree) > 2 * width(apart)
    assert width(agree) == pytest.approx(width([*ones(14, 24), [0.4]]), abs=0.03)  # 24 prompts, not 120
    assert width(apart) == pytest.approx(width(ones(72, 120)), rel=0.06)  # never narrower than independent values


def test_ties_are_told_from_wins_and_losses() -> None:
    """The same share of a half; ties tell more, yet never all."""
    decided = width(ones(12, 24))
    some, most, every = (width(ones(part, 2 * part) + [[0.5]] * (24 - 2 * part)) for part in (6, 1, 0))
    assert decided > some > most > every > 0.05
    assert every == pytest.approx(0.084, abs=0.005)
    # Ten wins, no loss and fourteen ties are better than a coin; one win and 23 ties are not.
    assert got(rate(ones(10, 10) + [[0.5]] * 14)).low > 0.5
    assert got(rate(ones(1, 1) + [[0.5]] * 23)).low < 0.5


@pytest.mark.parametrize(
    ("prompts", "draws", "wins", "alike", "ties"),
    [
        (24, 5, 0.7, 0.3, 0.3),
        (24, 5, 0.5, 0.2, 0.6),
        (24, 5, 0.8, 0.0, 0.2),
        (50, 1, 0.7, 0.0, 0.0),
        (50, 2, 0.6, 0.5, 0.1),
        (100, 1, 0.7, 0.0, 0.5),
        (100, 3, 0.9, 0.1, 0.4),
        (12, 8, 0.6, 0.4, 0.2),
    ],
)
def test_95_percent_is_95_percent(prompts: int, draws: int, wins: float, alike: float, ties: float) -> None:
    """Beta-binomial draws: `alike` is the correlation inside a prompt. The truth lies inside in 92 to 98 % of 600 samples."""
    random = np.random.default_rng(20)
    truth, inside = (1 - ties) * wins + ties / 2, {"rate": 0, "mean": 0}
    for _ in range(600):
        each = random.beta(wins * (1 / alike - 1), (1 - wins) * (1 / alike - 1), prompts) if alike else np.full(prompts, wins)
        values = (random.random((prompts, draws)) < each[:, None]).astype(float)
        values[random.random((prompts, draws)) < ties] = 0.5
        for name, estimate in (("rate", rate(values.tolist())), ("mean", mean(values.tolist()))):
            inside[name] += got(estimate).low <= truth <= got(estimate).high
    for name, count in inside.items():
        assert 0.92 <= count / 600 <= 0.98, name
