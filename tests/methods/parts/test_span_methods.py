"""Methods of the Gram matrix against formulas on the vectors themselves, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.linalg import norm

from weightsmith.errors import RecipeError


def draw(n, shape=(4, 5), seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=shape)
    return [centre + spread * rng.normal(size=shape) for _ in range(n)]


def close(actual, expected, atol=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=atol)


def slerp(t, a, b):
    cos = np.clip(np.sum(a * b) / (norm(a) * norm(b)), -1, 1)
    omega = np.arccos(cos)
    return (np.sin((1 - t) * omega) * a + np.sin(t * omega) * b) / np.sin(omega)


@pytest.mark.parametrize("t", [-0.3, 0.0, 0.25, 0.5, 0.9, 1.0, 1.4])
@pytest.mark.parametrize("spread", [0.05, 1.0])
def test_slerp_is_shoemakes_formula(merge, t, spread):
    a, b = draw(2, spread=spread)
    merged = merge("slerp", a, [b], shared={"t": t})
    close(merged, slerp(t, a, b))
    if t in (0.0, 1.0):
        np.testing.assert_array_equal(merged, [a, b][int(t)])


def test_slerp_preserves_an_equal_norm_and_is_symmetric(merge):
    a, b = (x / norm(x) for x in draw(2))
    merged = merge("slerp", a, [b], shared={"t": 0.3})
    assert abs(norm(merged) - 1) < 1e-12
    close(merge("slerp", b, [a], shared={"t": 0.7}), merged)


def test_slerp_keeps_its_digits_between_nearly_equal_vectors(merge):
    from mpmath import mp, mpf

    mp.dps = 50
    a = np.array([1.0, 0.0])
    for angle in (1e-9, 1e-5, 1e-3, 1.4e-3, 2e-3, 1e-2):
        b = np.array([np.cos(angle), np.sin(angle)])
        omega = mp.atan2(mpf(float(b[1])), mpf(float(b[0])))
        expected = [mp.sin(mpf(1 - 0.3) * omega), mp.sin(mpf(0.3) * omega)]
        merged = merge("slerp", a, [b], shared={"t": 0.3})
        wanted = [
            float((expected[0] * mpf(float(a[i])) + expected[1] * mpf(float(b[i]))) / mp.sin(omega))
            for i in range(2)
        ]
        np.testing.assert_allclose(merged, wanted, rtol=0, atol=1e-12)


def test_slerp_preset_goes_straight_above_mergekits_threshold(merge):
    a, b = draw(2, spread=0.01)
    assert np.sum(a * b) / norm(a) / norm(b) > 0.9995
    straight = merge("slerp", a, [b], shared={"t": 0.25}, preset="mergekit")
    close(straight, 0.75 * a + 0.25 * b)
    assert np.abs(merge("slerp", a, [b], shared={"t": 0.25}) - straight).max() > 1e-9


def test_slerp_of_antipodes_goes_straight(merge):
    (a,) = draw(1)
    close(merge("slerp", a, [-a], shared={"t": 0.25}), 0.5 * a)


def test_slerp_with_a_zero_tensor_is_orthogonal(merge):
    (b,) = draw(1)
    close(merge("slerp", 0 * b, [b], shared={"t": 0.25}), np.sin(0.25 * np.pi / 2) * b)


def nuslerp_lines(t, a, b, axis):
    moved_a, moved_b = np.moveaxis(a, axis, -1), np.moveaxis(b, axis, -1)
    lines = [
        slerp(t, x, y)
        for x, y in zip(
            moved_a.reshape(-1, moved_a.shape[-1]),
            moved_b.reshape(-1, moved_b.shape[-1]),
            strict=True,
        )
    ]
    return np.moveaxis(np.reshape(lines, moved_a.shape), -1, axis)


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize(
    ("shared", "axis"),
    [
        ({}, None),
        ({"nuslerp_flatten": False}, -1),
        ({"nuslerp_flatten": False, "nuslerp_row_wise": True}, 0),
    ],
)
@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4)])
def test_nuslerp_interpolates_tensors_rows_or_columns(merge, with_base, shared, axis, shape):
    base, a, b = draw(3, shape)
    weights = [{"weight": 0.5}, {"weight": 2.0}]
    origin = base if with_base else np.zeros_like(base)
    merged = merge(
        "nuslerp", base if with_base else None, [a, b], shared=shared, per_expert=weights
    )
    x, y = a - origin, b - origin
    expected = slerp(0.8, x, y) if axis is None else nuslerp_lines(0.8, x, y, axis)
    close(merged, origin + expected)


def test_nuslerp_takes_a_vector_whole_whatever_the_axis(merge):
    a, b = draw(2, (7,))
    whole = merge("nuslerp", None, [a, b])
    close(merge("nuslerp", None, [a, b], shared={"nuslerp_flatten": False}), whole)
    columns = {"nuslerp_flatten": False, "nuslerp_row_wise": True}
    close(merge("nuslerp", None, [a, b], shared=columns), whole)


def test_nuslerp_weights_that_cancel_meet_half_way(merge):
    a, b = draw(2)
    weights = [{"weight": 1.0}, {"weight": -1.0}]
    close(merge("nuslerp", None, [a, b], per_expert=weights), slerp(0.5, a, b))


@pytest.mark.parametrize("with_base", [False, True])
def test_multislerp_is_mean_direction_times_mean_length(merge, with_base):
    base, *experts = draw(4)
    w = np.array([0.2, 0.5, 0.3])
    origin = base if with_base else np.zeros_like(base)
    x = [e - origin for e in experts]
    direction = sum(wi * xi / norm(xi) for wi, xi in zip(w, x, strict=True))
    expected = direction / norm(direction) * sum(wi * norm(xi) for wi, xi in zip(w, x, strict=True))
    given = [{"weight": float(10 * wi)} for wi in w]
    close(
        merge("multislerp", base if with_base else None, experts, per_expert=given),
        origin + expected,
    )


def test_multislerp_of_two_equal_norms_is_the_middle_of_the_arc(merge):
    a, b = (x / norm(x) for x in draw(2))
    close(merge("multislerp", None, [a, b]), slerp(0.5, a, b))


def test_multislerp_of_cancelling_directions_is_linear(merge):
    (a,) = draw(1)
    close(merge("multislerp", None, [a, -3 * a, a, -a]), -0.5 * a)


@pytest.mark.parametrize("turn", np.linspace(0.1, 1.0, 8))
def test_multislerp_takes_rounding_for_no_direction(merge, turn):
    angles = turn + np.array([0, 2, 4]) * np.pi / 3
    lengths = (1.0, 2.0, 3.0)
    star = [r * np.array([np.cos(a), np.sin(a)]) for r, a in zip(lengths, angles, strict=True)]
    close(merge("multislerp", None, star), np.mean(star, 0))


def test_multislerp_refuses_weights_that_sum_to_zero(merge):
    with pytest.raises(RecipeError, match="sum to 0"):
        merge("multislerp", None, draw(2), per_expert=[{"weight": 1.0}, {"weight": -1.0}])


def log_map(m, u):
    phi = np.arccos(np.clip(np.sum(m * u), -1, 1))
    return phi / np.sin(phi) * (u - np.cos(phi) * m)


@pytest.mark.parametrize("spread", [1e-3, 0.3, 1.0])
def test_karcher_is_where_the_pulls_along_the_sphere_balance(merge, spread):
    experts = draw(4, spread=spread)
    w = np.array([0.1, 0.2, 0.3, 0.4])
    merged = merge("karcher", None, experts, per_expert=[{"weight": float(5 * x)} for x in w])
    mean_length = sum(x * norm(e) for x, e in zip(w, experts, strict=True))
    assert abs(norm(merged) - mean_length) < 1e-10 * mean_length
    m = merged / norm(merged)
    pull = sum(x * log_map(m, e / norm(e)) for x, e in zip(w, experts, strict=True))
    assert norm(pull) < 1e-8


def test_karcher_of_two_is_the_middle_of_the_arc(merge):
    a, b = (x / norm(x) for x in draw(2))
    close(merge("karcher", None, [a, b]), slerp(0.5, a, b), atol=1e-9)


def test_karcher_turns_with_a_rotation(merge):
    experts = draw(3, (6,))
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    turned = merge("karcher", None, [turn @ e for e in experts])
    close(turned, turn @ merge("karcher", None, experts), atol=1e-9)


def test_karcher_gives_zero_tensors_length_but_no_direction(merge):
    a, b = draw(2)
    merged = merge("karcher", None, [a, 0 * a, b])
    close(merged, merge("karcher", None, [a, b]) * 2 / 3, atol=1e-9)
    np.testing.assert_array_equal(merge("karcher", None, [0 * a, 0 * a]), 0 * a)


def test_karcher_of_antipodes_stays_at_the_first(merge):
    (a,) = draw(1)
    close(merge("karcher", None, [a, -a]), a)


def test_karcher_in_float32_does_not_lose_digits_between_lengths_far_apart(merge):
    a, b = draw(2)
    a = a * 1e7
    wanted = merge("karcher", None, [a, b])
    got = merge("karcher", None, [a.astype(np.float32), b.astype(np.float32)])
    assert norm(got - wanted) < 1e-6 * norm(wanted)


@pytest.mark.parametrize("name", ["slerp", "nuslerp", "multislerp", "karcher", "geometric_median"])
def test_rotations_of_identical_float32_models_change_no_bit(merge, name):
    model = np.random.default_rng(0).normal(size=2000).astype(np.float32)
    if name == "slerp":
        merged = merge(name, model, [model], shared={"t": 0.3})
    else:
        n = 2 if name == "nuslerp" else 3
        merged = merge(name, None, [model] * n, per_expert=[{"weight": 0.1 + i} for i in range(n)])
    np.testing.assert_array_equal(merged, model)


def stock(base, experts):
    d = [e - base for e in experts]
    n = len(d)
    cos = [np.sum(d[i] * d[j]) / (norm(d[i]) * norm(d[j])) for i in range(n) for j in range(i)]
    c = min(max(float(np.mean(cos)), 0.0), 1.0)
    t = n * c / (1 + (n - 1) * c)
    return base + t * np.mean(d, 0)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_model_stock_is_the_papers_ratio(merge, n):
    base, *_ = draw(1, seed=9)
    experts = [base + 0.1 * e for e in draw(n, spread=0.7)]
    close(merge("model_stock", base, experts), stock(base, experts))


def test_model_stock_filter_wise_works_row_by_row(merge):
    base, *_ = draw(1, seed=9)
    experts = [base + 0.1 * e for e in draw(3, spread=0.7)]
    merged = merge("model_stock", base, experts, shared={"filter_wise": True})
    close(merged, np.stack([stock(base[r], [e[r] for e in experts]) for r in range(4)]))


def test_model_stock_mean_angle_averages_angles(merge):
    base = np.zeros(3)
    experts = [np.array(v, float) for v in ([1, 0, 0], [1, 1, 0], [1, 1, 1])]
    units = [e / norm(e) for e in experts]
    angles = [np.arccos(units[i] @ units[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    c = np.cos(np.mean(angles))
    expected = 3 * c / (1 + 2 * c) * np.mean(experts, 0)
    close(merge("model_stock", base, experts, shared={"mean": "angle"}), expected)


@pytest.mark.parametrize("signs", ["++-", "+-", "++--", "+++--", "+++---"])
def test_model_stock_keeps_the_base_where_no_vectors_have_the_mean_angle(merge, signs):
    """Numbers of two signs have angles of 0 and 180 degrees: for three t is -1.5 / 0, and for four it would be 4."""
    experts = [
        np.array([s + 0.1 * i]) for i, s in enumerate(1.0 if s == "+" else -1.0 for s in signs)
    ]
    n = len(signs)
    c = np.cos(np.mean([np.pi * (signs[i] != signs[j]) for i in range(n) for j in range(i)]))
    assert 1 + (n - 1) * c < 1e-9
    shared = {"bounded": False, "mean": "angle"}
    np.testing.assert_array_equal(merge("model_stock", np.zeros(1), experts, shared=shared), 0.0)


def test_model_stock_of_equal_norms_and_orthogonal_noise_is_nearest_to_the_centre(merge):
    # theta_i = theta_0 + d + n_i with n_i orthogonal to d and to each other, all of equal length.
    base, d = np.zeros(5), np.array([1.0, 0, 0, 0, 0])
    noise = [0.8 * np.eye(5)[i] for i in (1, 2, 3)]
    merged = merge("model_stock", base, [d + n for n in noise])
    mean = d + np.mean(noise, 0)
    assert abs((merged - d) @ mean) < 1e-12


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 1, 3, 2), (3, 2, 1, 0)])
def test_karcher_skips_antipodes_that_rounding_has_moved(merge, order):
    """Numbers have two directions, and the mean of most of them has the mean length."""
    experts = [np.float64(x) for x in (1.8232421875, 1.22265625, 2.0478515625, -0.0146484375)]
    length = np.mean(np.abs(experts))
    found = merge("karcher", None, [np.array(experts[i]) for i in order])
    assert found == pytest.approx(length, rel=1e-12)
