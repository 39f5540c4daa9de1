"""Subspace Boosting, STAR, CART, ACTMat, DC-Merge, ACE, OrthoMerge and ResMerge by arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith.errors import RecipeError

ZERO = np.zeros((4, 4))


def close(actual, expected, atol=1e-11):
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=atol)


def drawn(count, shape=(6, 5), seed=0):
    return list(np.random.default_rng(seed).normal(size=(count, *shape)))


def rotation(n, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


# Subspace Boosting -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, [4, 4, 4, 4]),
        ({"beta": 0.4}, [4, 4, 4, 4]),  # 4 of 10 is the share itself
        ({"beta": 0.41}, [4, 3, 3, 3]),
        ({"beta": 0.9}, [4, 3, 2, 2]),
        ({"beta": 1.0}, [4, 3, 2, 1]),
        ({"beta": 0.5, "share_of": "count"}, [4, 3, 2, 2]),
    ],
)
def test_values_below_the_one_that_reaches_the_share_are_raised_to_it(merge, given, wanted):
    turned = rotation(4, 1)
    task = turned @ np.diag([4.0, 3.0, 2.0, 1.0]) @ rotation(4, 2)
    expected = turned @ np.diag(np.array(wanted, float)) @ rotation(4, 2)
    close(merge("subspace_boosting", ZERO, [task], shared=given), expected)


def test_directions_that_no_expert_has_are_not_raised(merge):
    task = np.diag([4.0, 1.0, 0.0, 0.0])
    close(merge("subspace_boosting", ZERO, [task]), np.diag([4.0, 4.0, 0.0, 0.0]))


def test_what_rounding_of_stored_weights_makes_is_not_raised(merge):
    base, left, right = (x.astype(np.float32) for x in drawn(3, (64, 64)))
    expert = base + 0.5 * left[:, :2] @ right[:2]
    merged = merge("subspace_boosting", base, [expert])
    values = np.linalg.svd(merged - base, compute_uv=False)
    assert values[1] == pytest.approx(values[0], rel=1e-4)
    assert values[2] < 1e-4 * values[0]


# STAR and CART -----------------------------------------------------------------------------------------------------


def test_star_keeps_what_reaches_the_share_and_the_nuclear_norm(merge):
    task = np.diag([4.0, 3.0, 2.0, 1.0])
    close(merge("truncate", ZERO, [task], preset="star"), np.diag([10.0, 0, 0, 0]))
    found = merge("truncate", ZERO, [task], preset="star", shared={"nuclear_share": 0.6})
    close(found, np.diag([40 / 7, 30 / 7, 0, 0]))


def test_star_takes_as_many_directions_of_each_task_as_its_spectrum_needs(merge):
    steep, flat = np.diag([8.0, 1.0, 1.0, 0.0]), np.diag([2.0, 2.0, 2.0, 2.0])
    found = merge("truncate", ZERO, [steep, flat], preset="star", shared={"nuclear_share": 0.75})
    assert np.linalg.matrix_rank(found * 2 - np.diag([10.0, 0, 0, 0])) == 3


def test_cart_adds_leading_directions_around_the_average(merge):
    """D = diag(2, 2, 0, 0), and beyond it diag(1, -2, 0, 0) and its opposite."""
    tasks = [np.diag([3.0, 0, 0, 0]), np.diag([1.0, 4.0, 0, 0])]
    given = [{"weight": 1.0}, {"weight": 0.0}]
    found = merge("cart", ZERO, tasks, shared={"rank": 1, "lambda": 0.5}, per_expert=given)
    close(found, np.diag([2.0, 1.0, 0, 0]))


# ACTMat ------------------------------------------------------------------------------------------------------------


def test_actmat_is_regression_on_the_rows_of_the_task_vectors(merge):
    base, *taus = drawn(4)
    weights = [1.0, 0.5, 2.0]
    roots = np.sqrt(weights)
    rows = np.vstack([r * t for r, t in zip(roots, taus, strict=True)])
    images = np.vstack([r * t @ t.T for r, t in zip(roots, taus, strict=True)])
    expected = np.linalg.lstsq(rows, images, rcond=None)[0].T
    given = [{"weight": w} for w in weights]
    found = merge("wudi", base, [base + t for t in taus], preset="actmat", per_expert=given)
    close(found - base, expected, 1e-9)
    assert abs(found - merge("wudi", base, [base + t for t in taus])).max() > 0.01


def test_a_long_task_vector_counts_for_more_in_actmat_alone(merge):
    long, short = 100.0 * drawn(1)[0], drawn(1, seed=1)[0]
    base = np.zeros_like(long)
    found = merge("wudi", base, [long, short], preset="actmat")
    assert np.linalg.norm(found - long) < 0.01 * np.linalg.norm(merge("wudi", base, [long, short]))


def test_averages_of_actmat_are_weighted_means_and_negative_weights_are_refused(merge):
    given = [{"weight": 1.0}, {"weight": 3.0}]
    experts = [np.array([4.0, 0.0]), np.array([0.0, 4.0])]
    found = merge("wudi", np.zeros(2), experts, preset="actmat", per_expert=given)
    close(found, [1.0, 3.0])
    with pytest.raises(RecipeError, match=r"has the weight -1 at tensor .*; .* give 0 or more\.$"):
        merge("wudi", np.zeros(2), experts, preset="actmat", shared={"weight": -1.0})


# DC-Merge ----------------------------------------------------------------------------------------------------------


def test_tasks_in_orthogonal_directions_are_added_with_even_strength(merge):
    tasks = [np.diag([3.0, 1.0, 0, 0]), np.diag([0, 0, 2.0, 6.0])]
    found = merge("dc_merge", ZERO, tasks, shared={"density": 1.0})
    close(found, np.diag([2.0, 2.0, 4.0, 4.0]))
    plain = merge("dc_merge", ZERO, tasks, shared={"density": 1.0, "smoothing": "none"})
    close(plain, sum(tasks))
    falling = merge(
        "dc_merge", ZERO, tasks, shared={"density": 1.0, "smoothing": "linear", "rho": 2.0}
    )
    close(falling, np.diag([8 / 3, 4 / 3, 8 / 3, 16 / 3]))


def test_the_largest_numbers_of_a_core_alone_are_kept(merge):
    tasks = [np.diag([3.0, 1.0, 0, 0]), np.diag([0, 0, 2.0, 6.0])]
    found = merge("dc_merge", ZERO, tasks, shared={"density": 0.0, "smoothing": "none"})
    close(found, np.diag([3.0, 0, 0, 6.0]))


# ACE ---------------------------------------------------------------------------------------------------------------


def test_with_a_large_epsilon_ace_is_the_average_of_centred_task_vectors(merge):
    base, *taus = drawn(4)
    experts = [base + t for t in taus]
    found = merge("ace", base, experts, shared={"epsilon": 1e12, "threshold": 1e9})
    mean = np.mean(taus, axis=0)
    close(found - base, mean - mean.mean(0), 1e-9)


def test_ace_minimises_the_error_on_rows_where_column_means_are_zero(merge):
    """Then m = 0: covariances of centred columns in pairs of opposite signs sum to 0 over each row."""
    half = drawn(3, (6, 3))
    taus = [np.hstack([h, -h]) for h in half]
    centred = [t - t.mean(0) for t in taus]
    shared = {"epsilon": 0.1, "threshold": 1e9, "targets": "whole"}
    found = merge("ace", np.zeros((6, 6)), taus, shared=shared)
    rows = [np.vstack([c, np.sqrt(0.1) * np.eye(6)]) for c in centred]
    images = [r @ t.T for r, t in zip(rows, taus, strict=True)]
    expected = np.linalg.lstsq(np.vstack(rows), np.vstack(images), rcond=None)[0].T
    close(found, expected, 1e-9)


def test_a_matrix_of_one_row_is_averaged(merge):
    close(
        merge("ace", np.zeros((1, 2)), [np.array([[2.0, 0.0]]), np.array([[0.0, 4.0]])]), [[1, 2]]
    )


# OrthoMerge --------------------------------------------------------------------------------------------------------


def turned_by(angle, n=3):
    matrix = np.eye(n)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return matrix


def test_copies_of_a_rotated_base_are_that_rotation(merge):
    base = drawn(1, (5, 3))[0]
    expert = base @ turned_by(0.7)
    close(merge("orthomerge", base, [expert] * 3, preset="global"), expert)


def test_rotations_in_one_plane_have_the_mean_tangent_of_half_their_angles(merge):
    base = drawn(1, (5, 3))[0]
    angles = [0.3, 1.1]
    experts = [base @ turned_by(a) for a in angles]
    mean = 2 * np.arctan(np.mean([np.tan(a / 2) for a in angles]))
    close(merge("orthomerge", base, experts, preset="global"), base @ turned_by(mean))
    opposite = [base @ turned_by(0.4), base @ turned_by(-0.4)]
    close(merge("orthomerge", base, opposite, preset="global"), base)


def test_experts_that_agree_are_not_rotated(merge):
    base, task = drawn(2)
    found = merge("orthomerge", base, [base + task, base + 2.0 * task])
    close(found, base + 0.2 * 3.0 * task)


def test_inputs_without_a_direction_are_turned_as_little_as_can_be(merge):
    """A base of one row (1, 0, 0) turned towards (0, 1, 0): the third axis stays."""
    base, expert = np.array([[1.0, 0, 0]]), np.array([[0, 1.0, 0]])
    found = merge("orthomerge", base, [expert], preset="global", shared={"lambda": 0.0})
    close(found, expert)


# ResMerge ----------------------------------------------------------------------------------------------------------


def test_the_strongest_direction_is_replaced_by_a_share_of_what_is_left(merge):
    """e = diag(0, 3, 0, 0) for both: c = s = 1, b = e; heads agree, so that a fifth of ||e|| goes to them."""
    task = np.diag([10.0, 3.0, 0, 0])
    close(merge("resmerge", ZERO, [task, task]), np.diag([0.6, 3.0, 0, 0]))


def test_residuals_at_right_angles_are_averaged_and_their_opposite_heads_are_left_out(merge):
    tasks = [np.diag([9.0, 2.0, 0, 0]), np.diag([-9.0, 0, 2.0, 0])]
    close(merge("resmerge", ZERO, tasks), np.diag([0, 1.0, 1.0, 0]))


def test_the_coherence_shortens_what_residuals_have_in_common(merge):
    """cos(e_1, e_2) = 0.28: c = 0.8; heads at right angles to each other agree in nothing."""
    tasks = [np.zeros((4, 4)) for _ in range(2)]
    tasks[0][0, 0], tasks[1][1, 1] = 9.0, 9.0
    tasks[0][2, 2:], tasks[1][2, 2:] = [0.8, 0.6], [0.8, -0.6]
    for beta in (1.0, 3.0):
        expected = np.zeros((4, 4))
        expected[2, 2] = 0.8**beta
        close(merge("resmerge", ZERO, tasks, shared={"beta_max": beta}), expected)
