"""Paired tests against enumeration, scipy and simulation."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from scipy import stats
from tests.comparison.conftest import right_and_wrong

from weightsmith.comparison.paired import mcnemar, paired_difference
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
