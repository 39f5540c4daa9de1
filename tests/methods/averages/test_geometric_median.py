"""The geometric median against the conditions that its points meet, where iterations of Weiszfeld's stand still."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import weightsmith
from weightsmith.errors import RecipeError
from weightsmith.methods.averages import geometric_median


def run(merge, points, w=None):
    per_expert = None if w is None else [{"weight": float(x)} for x in w]
    return merge("geometric_median", None, list(points), per_expert=per_expert)


def error_of(x, points, w):
    """How far from the median x is, relative to the spread: by Newton's step, or 0 at a point that is the median."""
    gaps = x - points
    lengths = np.linalg.norm(gaps, axis=1)
    spread = np.linalg.norm(points - points[0], axis=1).max()
    here = lengths <= 1e-13 * spread
    units = gaps[~here] / lengths[~here, None]
    gradient = w[~here] @ units
    if here.any():
        return max(0.0, np.linalg.norm(gradient) - w[here].sum()) / w.sum()
    pulls = w / lengths
    curvature = pulls.sum() * np.eye(len(x)) - (units.T * pulls) @ units
    return np.linalg.norm(np.linalg.lstsq(curvature, gradient, rcond=None)[0]) / spread


def pull_at(points, w, k):
    others = np.arange(len(points)) != k
    gaps = points[others] - points[k]
    return np.linalg.norm((w[others] / np.linalg.norm(gaps, axis=1)) @ gaps)


def nearly_half(points, w, excess):
    """The first has all but a little of half the weight."""
    w[0] = w[1:].sum() * (1.0 - excess)
    return points, w


def nearly_a_median(points, w, excess):
    """The first has all but a little of the weight that would make it the median, which is thus very near."""
    w[0] = pull_at(points, w, 0) * (1.0 - excess)
    return points, w


def copies(points, w, _):
    """Three of the experts are one: their weight together is what counts."""
    points[[1, 4]] = points[0]
    return points, w


def clusters(points, w, distance):
    """Two groups of experts, each close together."""
    points[1:3] = points[0] + distance * points[1:3]
    points[4:] = points[3] + distance * points[4:]
    return points, w


def an_outlier(points, w, distance):
    """One expert far away."""
    points[2] /= distance
    return points, w


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("of", [nearly_half, nearly_a_median, copies, clusters, an_outlier])
def test_the_median_meets_its_condition(merge, of, size, seed):
    rng = np.random.default_rng(seed)
    points, w = of(rng.normal(size=(6, 9)), rng.uniform(0.5, 1.5, size=6), size)
    found = run(merge, points, w)
    assert error_of(found, points, w) < (1e-8 if of is clusters else 1e-11)


def test_the_error_of_an_iteration_that_stands_still_is_seen():
    """200 steps of Weiszfeld's iteration are off by more than the tests above allow."""
    rng = np.random.default_rng(0)
    points, w = nearly_half(rng.normal(size=(6, 9)), rng.uniform(0.5, 1.5, size=6), 1e-3)
    points[1:] = points[1] + 0.01 * points[1:]
    x = w @ points / w.sum()
    for _ in range(200):
        pulls = w / np.linalg.norm(points - x, axis=1)
        x = pulls @ points / pulls.sum()
    assert error_of(x, points, w) > 1e-4


def test_with_half_of_the_weight_on_either_side_of_a_line_a_point_between_is_found():
    line = np.array([2.93427158e-10, -4.90810070e-09, 9.02267095e-05, -4.14476509e-09])
    weights = np.array([0.03046559, 0.20609879, 0.46953441, 0.29390121])
    found = geometric_median.median((line[:, None] - line) ** 2, weights / weights.sum())
    assert line[3] <= found.coefficients @ line <= line[0]


def test_many_medians_have_no_derivative_and_need_none():
    points = np.array(
        [
            [1.03965755e-08, 5.73917095e-06],
            [-7.03585599e-01, -9.96254364e01],
            [1.35063484e-05, -1.29221469e-03],
            [-1.89756149e-08, 1.07444696e-05],
        ]
    )
    weights = np.array([0.17569466, 0.41800709, 0.08197482, 0.32432343])
    squares = ((points[:, None] - points) ** 2).sum(-1)
    found = geometric_median.median(squares, weights)
    assert np.isfinite(found.coefficients).all()
    assert error_of(found.coefficients @ points, points, weights) < 1e-6


def test_an_expert_of_half_the_weight_is_the_median(merge):
    points = np.random.default_rng(1).normal(size=(4, 7))
    np.testing.assert_array_equal(run(merge, points, [3.0, 1.0, 1.0, 1.0]), points[0])
    together = [points[1], points[0], points[1], points[2], points[1]]
    np.testing.assert_allclose(run(merge, together), points[1], rtol=1e-15)


def test_of_several_medians_the_mean_is_taken(merge):
    a, b = np.random.default_rng(2).normal(size=(2, 7))
    np.testing.assert_allclose(run(merge, [a, b]), (a + b) / 2, rtol=1e-15)
    np.testing.assert_allclose(run(merge, [a, a, b, b]), (a + b) / 2, rtol=1e-15)
    line = [a + t * b for t in (0.0, 5.0, 1.0, 2.0)]
    np.testing.assert_allclose(run(merge, line), a + 1.5 * b, rtol=1e-12)
    np.testing.assert_allclose(run(merge, [a, b], [2.0, 1.0]), a, rtol=1e-15)


def test_an_expert_without_weight_has_no_say(merge):
    points = np.random.default_rng(3).normal(size=(4, 7))
    without = run(merge, points[1:], [1.0, 0.8, 0.9])
    np.testing.assert_allclose(run(merge, points, [0.0, 1.0, 0.8, 0.9]), without, rtol=1e-12)


def test_the_majority_holds_the_median_however_far_others_are(merge):
    rng = np.random.default_rng(4)
    good = 1.0 + 1e-3 * rng.normal(size=(3, 8))
    for where in range(4):
        points = np.insert(good, where, 1e6, axis=0)
        w = np.ones(4)
        found = run(merge, points)
        assert np.abs(found - 1.0).max() < 0.01
        assert error_of(found, points, w) * 1e6 < 1e-6


def test_the_corners_of_an_equilateral_triangle_have_their_centre(merge):
    corners = [np.array([0.0, 0.0]), np.array([1.0, 0.0]), np.array([0.5, np.sqrt(3) / 2])]
    np.testing.assert_allclose(run(merge, corners), [0.5, np.sqrt(3) / 6], atol=1e-15)


@pytest.mark.parametrize("seed", range(4))
def test_the_median_is_where_a_long_iteration_ends(merge, seed):
    rng = np.random.default_rng(seed)
    points, w = rng.normal(size=(5, 12)), rng.uniform(0.5, 1.5, size=5)
    x = np.average(points, 0, w)
    for _ in range(2000):
        pulls = w / np.linalg.norm(points - x, axis=1)
        x = pulls @ points / pulls.sum()
    np.testing.assert_allclose(run(merge, points, w), x, atol=1e-11)


@pytest.mark.parametrize("copied", [False, True])
def test_gradients_are_those_of_the_point_and_not_of_the_search(copied):
    rng = np.random.default_rng(5)
    points = [torch.from_numpy(x).requires_grad_() for x in rng.normal(size=(4, 3))]
    direction = torch.from_numpy(rng.normal(size=3))

    def value(*inputs):
        experts = [{"w": x} for x in ([*inputs, inputs[1]] if copied else inputs)]
        return weightsmith.merge_state_dicts("geometric_median", experts)["w"] @ direction

    assert torch.autograd.gradcheck(value, points, eps=1e-6, atol=1e-8)


@pytest.mark.parametrize("squares", [(np.inf, 1.0, np.inf), (np.nan, 1.0, 2.0)])
def test_distances_that_are_no_numbers_give_no_coefficients(squares):
    with np.errstate(all="ignore"):  # as all numbers between passes are computed
        found = geometric_median.MedianOfDistances((0.5, 0.25, 0.25))(*map(np.float64, squares))
    assert np.isnan(found).all()


def test_a_search_without_an_end_is_said(merge, monkeypatch):
    monkeypatch.setattr(geometric_median, "_STEPS", 1)
    with pytest.raises(RecipeError, match="no median was found in 1 steps"):
        run(merge, np.random.default_rng(6).normal(size=(5, 9)))
