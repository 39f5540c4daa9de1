"""Values that mergekit 0.1.5 gives, from a run of it, and the presets that reproduce them."""

from __future__ import annotations

import numpy as np
import pytest

B = np.zeros(6, np.float32)
X = np.array([1, -1, 2, 0, 1, -3], np.float32)
Y = np.array([-1, 1, 1, 0, 0, 1], np.float32)

SIX = [
    ("ties", [X, Y], {}, (1, 1), [1, 1, 1.5, 0, 1, -3]),
    ("ties", [X, Y], {"normalize": False}, (1, 1), [1, 1, 3, 0, 1, -3]),
    ("ties", [X, Y], {}, (1, -1), [2, -2, 2, 0, 1, -4]),
    ("ties", [X], {"density": 0.5, "rescale": True}, (1,), [4 / 3, 0, 8 / 3, 0, 0, -4]),
    ("nearswap", [X], {"t": 0.5}, None, [0.5, -0.5, 0.5, 0, 0.5, -0.5]),
    ("model_stock", [X, Y], {}, None, [0, 0, -1.8, 0, -0.6, 1.2]),
    ("multislerp", [X, Y], {}, (0.3, 0.7), [-1.1, 1.1, 2, 0, 0.3, 0.5]),
    ("ram", [X, Y], {}, None, [0, 0, 1.5, 0, 1, -1]),
    ("ramplus_tl", [X, Y], {"r": 1, "alpha": 1}, None, [0, 0, 1.5, 0, 2, -1]),
    ("arcee_fusion", [X], {}, None, X),
]


def weights(given):
    return [{"weight": w} for w in given] if given else None


@pytest.mark.parametrize(("name", "experts", "shared", "given", "expected"), SIX)
def test_preset_gives_mergekits_values(name, experts, shared, given, expected, merge):
    merged = merge(name, B, experts, shared=shared, per_expert=weights(given), preset="mergekit")
    np.testing.assert_allclose(merged, expected, rtol=1e-6, atol=1e-7)


def test_karcher_preset_gives_mergekits_values(merge):
    merged = merge("karcher", None, [X, Y], preset="mergekit")
    np.testing.assert_allclose(merged, [-0.6708, 0.6708, 2.6833, 0, 0.6708, -0.6708], atol=5e-5)


def test_breadcrumbs_preset_gives_mergekits_values_up_to_its_arbitrary_order_of_equals(merge):
    shared = {"density": 0.5, "gamma": 0.2}
    merged = merge(
        "breadcrumbs", B, [X], shared=shared, per_expert=weights((1,)), preset="mergekit"
    )
    assert sorted(abs(merged)) == sorted(np.abs([0, -1, 2, 0, 1, 0]))
    np.testing.assert_array_equal(merged, [1, -1, 2, 0, 0, 0])  # equal magnitudes by lower index


def test_sce_preset_gives_mergekits_values_up_to_its_arbitrary_order_of_equals(merge):
    merged = merge("sce", B, [X, Y], shared={"select_topk": 0.5}, preset="mergekit")
    np.testing.assert_array_equal(
        merged, [1, 0, 0, 0, 0, -3]
    )  # mergekit keeps index 1, of equal variance
