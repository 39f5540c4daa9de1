"""Paired tests against enumeration, scipy and simulation."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from scipy import stats
from tests.comparison.conftest import right_and_wrong

from weightsmith.comparison.flips import find_flips
from weightsmith.comparison.paired import flips_difference, mcnemar, paired_difference
from weightsmith.comparison.resampling import Estimate, draws_of, two_sided_p
from weightsmith.errors import UsageError


def enumerated(negative, positive):
    """Exact and mid p as fractions."""
    n, m = negative + positive, min(negative, positive)
    tail = Fraction(sum(comb(n, i) for i in range(m + 1)), 2**n)
    point = Fraction(comb(n, m), 2**n)
    return min(Fraction(1), 2 * tail), min(Fraction(1), 2 * tail - point)


@pytest.mark.parametrize("negative", range(0, 30, 3))
@pytest.mark.parametrize("positive", [0, 1, 5, 9, 24, 60])
def test_mcnemar_is_the_enumeration_of_all_outcomes(negative, positive):
    found = mcnemar(negative, positive)
    exact, mid = enumerated(negative, positive)
    assert found.exact == pytest.approx(float(exact), rel=1e-12)
    assert found.mid_p == pytest.approx(float(mid), rel=1e-12)


@pytest.mark.parametrize(("negative", "positive"), [(3, 12), (400, 310), (9000, 9300)])
def test_exact_mcnemar_is_scipys_binomial_test(negative, positive):
    reference = stats.binomtest(negative, negative + positive, 0.5).pvalue
    assert mcnemar(negative, positive).exact == pytest.approx(reference, rel=1e-9)


def test_equal_numbers_of_flips_and_none_at_all_prove_nothing():
    for number in (0, 1, 8):
        assert mcnemar(number, number).exact == pytest.approx(1.0)
        assert mcnemar(number, number).mid_p == pytest.approx(1.0)


def test_negative_numbers_of_flips_are_refused():
    with pytest.raises(UsageError, match="0 or more"):
        mcnemar(-1, 2)


def test_the_paired_interval_is_narrower_than_that_of_independent_models(generator):
    old = (generator.random(400) < 0.7).astype(float)
    new = old.copy()
    new[generator.permutation(400)[:12]] = 0
    first, second = (draws_of(right_and_wrong("t", column)) for column in (old, new))
    paired = Estimate.of(second - first)
    shuffled = Estimate.of(np.concatenate([second[:1], second[:0:-1]]) - first)
    assert paired.high - paired.low < 0.6 * (shuffled.high - shuffled.low)


def test_identical_models_have_no_difference():
    draws = draws_of(right_and_wrong("t", [1, 0, 1, 1]))
    difference = paired_difference(draws, draws, higher_is_better=True)
    assert difference.estimate == Estimate(0, 0, 0)
    assert difference.p_value == 1
    assert difference.verdict == "same"


@pytest.mark.parametrize(("higher", "verdict"), [(True, "worse"), (False, "better")])
def test_the_verdict_follows_the_direction_of_the_metric(higher, verdict):
    draws = draws_of(right_and_wrong("t", [1] * 60 + [0] * 40))
    assert paired_difference(draws, draws - 0.1, higher_is_better=higher).verdict == verdict


def test_the_interval_of_a_difference_has_its_stated_coverage():
    generator = np.random.default_rng(3)
    items, truth, covered, rounds = 150, 0.8 - 0.7, 0, 200
    for _ in range(rounds):
        hard = generator.random(items)
        old, new = (hard < 0.7).astype(float), (hard + 0.1 * generator.normal(size=items) < 0.8)
        truth = 0.1
        first = draws_of(right_and_wrong("t", old), resamples=400)
        second = draws_of(right_and_wrong("t", new.astype(float)), resamples=400)
        found = Estimate.of(second - first)
        covered += found.low <= truth <= found.high
    assert 0.90 <= covered / rounds <= 0.99


def flips_of(negative, positive, items):
    both = items - negative - positive
    columns = [
        np.repeat([1, 0, 1], [negative, positive, both]),
        np.repeat([0, 1, 1], [negative, positive, both]),
    ]
    return find_flips(*(right_and_wrong("t", column) for column in columns))


def test_the_interval_from_flips_is_bonett_and_prices():
    found = flips_difference(flips_of(12, 7, 100), higher_is_better=True)
    p, n = Fraction(8, 102), Fraction(13, 102)
    width = 1.959963984540054 * float((p + n - (p - n) ** 2) / 102) ** 0.5
    expected = (-0.05, float(p - n) - width, float(p - n) + width)
    estimate = found.estimate
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx(expected, abs=1e-12)
    assert found.p_value == mcnemar(12, 7).mid_p
    one = flips_difference(flips_of(0, 1, 1), higher_is_better=True).estimate
    assert (one.value, one.high) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("items", "positive", "negative"),
    [
        (1000, 0.002, 0.001),
        (1000, 0.002, 0.002),
        (1000, 0.003, 0.001),
        (1000, 0.004, 0.0),
        (1000, 0.0005, 0.0005),
        (300, 0.01, 0.01),
        (200, 0.03, 0.005),
        (50, 0.02, 0.02),
        (50, 0.3, 0.1),
        (20, 0.05, 0.1),
    ],
)
def test_the_interval_from_flips_covers_also_where_few_are_expected(items, positive, negative):
    """By enumeration of all numbers of flips; the percentile interval of resamples covers .86 in the first case."""
    truth, covered = positive - negative, 0.0
    for flipped in range(int(stats.binom.ppf(1 - 1e-6, items, positive + negative)) + 1):
        chance = stats.binom.pmf(flipped, items, positive + negative)
        split = stats.binom.pmf(np.arange(flipped + 1), flipped, positive / (positive + negative))
        for up in np.flatnonzero(chance * split > 1e-9):
            found = flips_difference(flips_of(flipped - up, up, items), higher_is_better=True)
            if found.estimate.low <= truth <= found.estimate.high:
                covered += chance * split[up]
    assert 0.945 <= covered <= 1.0


@pytest.mark.parametrize(("positive", "verdict"), [(0, "same"), (4, "same"), (6, "better")])
def test_a_handful_of_flips_one_way_is_needed_for_a_verdict(positive, verdict):
    """Of n flips that all go one way, mid-p is 2^-n: below .05 from five on, and surely from six."""
    better = flips_difference(flips_of(0, positive, 1000), higher_is_better=True)
    worse = flips_difference(flips_of(positive, 0, 1000), higher_is_better=True)
    assert better.verdict == verdict
    assert worse.verdict == verdict.replace("better", "worse")
    assert better.p_value == pytest.approx(0.5**positive)
    turned = flips_difference(flips_of(0, positive, 1000), higher_is_better=False)
    assert turned.verdict == worse.verdict


def test_p_values_are_uniform_where_there_is_no_difference():
    generator = np.random.default_rng(5)
    found = []
    for _ in range(200):
        columns = (generator.random((2, 120)) < 0.6).astype(float)
        first, second = (
            draws_of(right_and_wrong("t", column), resamples=300) for column in columns
        )
        found.append(two_sided_p(second - first))
    assert 0.01 <= np.mean(np.array(found) < 0.05) <= 0.10


def test_tasks_of_equal_size_are_resampled_independently():
    column = [1, 0] * 100
    first, second = draws_of(right_and_wrong("a", column)), draws_of(right_and_wrong("b", column))
    assert abs(np.corrcoef(first[1:], second[1:])[0, 1]) < 0.1
