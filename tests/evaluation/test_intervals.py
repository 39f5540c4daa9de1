"""Bootstrap intervals: the percentile method, and how often they hold what is true."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from weightsmith.errors import UsageError
from weightsmith.evaluation.intervals import bootstrap_interval, resampled
from weightsmith.evaluation.metrics import Finish


def test_the_interval_is_that_of_resampling_one_item_after_the_other():
    generator = np.random.default_rng(0)
    values, weights = generator.random(30) * 8, generator.integers(1, 9, 30).astype(float)
    ratios = [
        sum(values[i] for i in drawn) / sum(weights[i] for i in drawn)
        for block in resampled(30, 400, 7)
        for drawn in block
    ]
    expected = np.percentile(ratios, [5, 95])
    found = bootstrap_interval(values, weights, coverage=0.9, resamples=400, seed=7)
    assert [found.low, found.high] == pytest.approx(expected)


def test_blocks_of_resamples_do_not_change_what_is_drawn():
    small = np.concatenate(list(resampled(5, 7, 1)))
    assert small.shape == (7, 5)
    large = list(resampled(1 << 20, 3, 1))
    assert [len(block) for block in large] == [2, 1]


def test_the_interval_is_the_same_every_time():
    values = np.random.default_rng(1).random(50)
    first, second = (bootstrap_interval(values, np.ones(50)) for _ in range(2))
    assert first == second
    assert bootstrap_interval(values, np.ones(50), seed=1) != first


def test_an_exponential_score_has_the_exponential_of_the_interval():
    values, weights = np.random.default_rng(2).random(40), np.full(40, 2.0)
    plain = bootstrap_interval(values, weights)
    grown = bootstrap_interval(values, weights, finish=Finish.EXPONENTIAL)
    assert [grown.low, grown.high] == pytest.approx(np.exp([plain.low, plain.high]), rel=1e-3)


@pytest.mark.parametrize("items", [1, 7, 500])
def test_items_that_are_all_right_or_all_wrong_have_the_exact_binomial_interval(items):
    for right in (0, items):
        values = np.full(items, float(right > 0))
        found = bootstrap_interval(values, np.ones(items), binary=True)
        exact = stats.binomtest(right, items).proportion_ci(0.95, method="exact")
        assert [found.low, found.high] == pytest.approx([exact.low, exact.high])


def test_a_coverage_that_is_none_is_refused():
    with pytest.raises(UsageError, match="coverage in"):
        bootstrap_interval(np.ones(3), np.ones(3), coverage=1.0)


def coverage(draw, truth, trials: int, resamples: int) -> float:
    """The share of simulated data sets whose interval holds the truth."""
    generator = np.random.default_rng(11)
    held = 0
    for _ in range(trials):
        found = bootstrap_interval(*draw(generator), resamples=resamples)
        held += found.low <= truth <= found.high
    return held / trials


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_the_interval_of_an_accuracy_has_its_stated_coverage(share):
    def draw(generator):
        return (generator.random(150) < share).astype(float), np.ones(150)

    # 600 trials: three standard errors of a share of 0.95 are 0.027.
    assert coverage(draw, share, 600, 300) == pytest.approx(0.945, abs=0.027)


def test_the_interval_of_a_ratio_of_sums_has_its_stated_coverage():
    def draw(generator):
        weights = generator.integers(20, 200, 150).astype(float)
        rate = 1.5 + 0.3 * generator.standard_normal(150) + 0.002 * (weights - 109.5)
        return rate * weights, weights

    lengths = np.arange(20, 200)
    truth = ((1.5 + 0.002 * (lengths - 109.5)) * lengths).mean() / lengths.mean()
    assert coverage(draw, truth, 600, 300) == pytest.approx(0.945, abs=0.027)
