"""Flips, and what their rates must add up to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.comparison.conftest import bits, right_and_wrong

from weightsmith.comparison.flips import find_flips, find_regressions
from weightsmith.errors import UsageError

outcomes = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


def test_planted_flips_are_found_exactly(generator):
    old = np.ones(200)
    wrong = generator.permutation(200)[:60]
    old[wrong] = 0
    new = old.copy()
    lost = np.sort(generator.choice(np.flatnonzero(old), 11, replace=False))
    won = np.sort(generator.choice(wrong, 7, replace=False))
    new[lost], new[won] = 0, 1
    flips = find_flips(right_and_wrong("t", old), right_and_wrong("t", new))
    assert flips.negative == tuple(f"t-{i}" for i in lost)
    assert flips.positive == tuple(f"t-{i}" for i in won)
    assert (flips.both_right, flips.both_wrong) == (140 - 11, 60 - 7)


@given(outcomes)
def test_rates_add_up_to_the_change_of_accuracy(pairs):
    first, second = (np.array(column, float) for column in zip(*pairs, strict=True))
    flips = find_flips(right_and_wrong("t", first), right_and_wrong("t", second))
    change = second.mean() - first.mean()
    assert flips.positive_rate - flips.negative_rate == pytest.approx(change)
    if first.any():
        assert flips.backward_trust == pytest.approx(1 - flips.negative_rate / first.mean())
    else:
        assert flips.backward_trust is None
    if first.any() and not second.all():
        independent = first.mean() * (1 - second.mean())
        assert flips.relative_negative_rate == pytest.approx(flips.negative_rate / independent)
    else:
        assert flips.relative_negative_rate is None


@given(outcomes)
def test_flips_the_other_way_are_the_same_with_signs_exchanged(pairs):
    first, second = (right_and_wrong("t", column) for column in zip(*pairs, strict=True))
    there, back = find_flips(first, second), find_flips(second, first)
    assert (there.negative, there.positive) == (back.positive, back.negative)
    assert there.both_wrong == back.both_wrong


def test_backward_errors_are_the_share_of_new_errors_that_are_old():
    flips = find_flips(right_and_wrong("t", [1, 1, 0, 0, 0]), right_and_wrong("t", [1, 0, 0, 0, 1]))
    assert flips.backward_errors == pytest.approx(2 / 3)
    assert flips.backward_trust == pytest.approx(1 / 2)


def test_a_model_without_errors_has_no_backward_errors():
    assert find_flips(right_and_wrong("t", [1]), right_and_wrong("t", [1])).backward_errors is None


def test_items_that_both_have_wrong_count_as_inconsistent_only_with_different_answers():
    old = right_and_wrong("t", [0, 0, 1, 0], ["a", "b", "c", "d"])
    new = right_and_wrong("t", [0, 0, 0, 1], ["a", "x", "y", "z"])
    flips = find_flips(old, new)
    assert flips.inconsistent == ("t-1",)
    assert flips.inconsistency == 0.25
    # NFR_mc of MUSCLE counts the negative flip, t-2, too.
    assert flips.changed_wrong_rate == 0.5


def test_inconsistency_is_unknown_without_answers():
    flips = find_flips(right_and_wrong("t", [0]), right_and_wrong("t", [0]))
    assert flips.inconsistency is None
    assert flips.changed_wrong_rate is None


def test_models_on_different_items_are_refused():
    with pytest.raises(UsageError, match="different items"):
        find_flips(right_and_wrong("t", [1, 0]), right_and_wrong("t", [1]))


def test_a_graded_metric_has_no_flips():
    with pytest.raises(UsageError, match="right or wrong"):
        find_flips(bits("t", [1], [1]), bits("t", [1], [1]))


def test_gain_minus_regression_is_the_improvement_of_the_score(generator):
    lengths = generator.integers(5, 90, 50).astype(float)
    old = bits("t", generator.gamma(2, 1, 50) * lengths, lengths)
    new = bits("t", generator.gamma(2, 1, 50) * lengths, lengths)
    graded = find_regressions(old, new)
    difference = graded.overall_gain - graded.overall_regression
    assert difference == pytest.approx(old.value - new.value)
    assert graded.overall_gain > 0 < graded.overall_regression


def test_gain_and_regression_are_means_over_the_items_that_changed():
    """d is 0.5, -0.2 and -0.4 at weights 10, 20 and 40; the fourth stays."""
    lengths = [10.0, 20.0, 40.0, 30.0]
    old = bits("t", [20, 20, 40, 30], lengths)
    new = bits("t", [15, 24, 56, 30], lengths)
    graded = find_regressions(old, new)
    assert graded.gain == pytest.approx(0.5)
    assert graded.regression == pytest.approx((20 * 0.2 + 40 * 0.4) / 60)
    assert graded.overall_gain == pytest.approx(5 / 100)
    assert graded.overall_regression == pytest.approx(20 / 100)


def test_without_a_gain_the_mean_gain_is_zero():
    graded = find_regressions(bits("t", [1], [1]), bits("t", [2], [1]))
    assert (graded.gain, graded.overall_gain, graded.regression) == (0.0, 0.0, 1.0)


def test_changes_within_the_tolerance_do_not_count():
    old, new = bits("t", [10, 10, 10], [10, 10, 10]), bits("t", [11, 15, 4], [10, 10, 10])
    graded = find_regressions(old, new, tolerance=0.2)
    assert graded.regressed == ("t-1",)
    assert graded.improved == ("t-2",)
    assert (graded.regression, graded.gain) == (pytest.approx(0.5), pytest.approx(0.6))
    assert graded.overall_regression == pytest.approx(0.5 / 3)
    assert graded.overall_gain == pytest.approx(0.6 / 3)


def test_a_negative_tolerance_is_refused():
    with pytest.raises(UsageError, match="tolerance"):
        find_regressions(bits("t", [1], [1]), bits("t", [1], [1]), tolerance=-1)
