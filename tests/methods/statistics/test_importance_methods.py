"""AIM, Sens-Merging, TATR and Wanda: laws, special cases, and values beside those of the oracles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import weightsmith
from weightsmith.errors import UsageError
from weightsmith.methods.modifying.wanda import OutputRanks

RNG = np.random.default_rng(5)
BASE, *EXPERTS = RNG.normal(size=(4, 5, 6))
ACTIVITY = np.broadcast_to([0.0, 1.0, 4.0, 2.0, 8.0, 0.5], (5, 6))


def state(**arrays):
    return {name.replace("__", "."): torch.from_numpy(np.array(x)) for name, x in arrays.items()}


def merged_states(method, experts, base, statistics, **how):
    found = weightsmith.merge_state_dicts(method, experts, base=base, statistics=statistics, **how)
    return {name: tensor.numpy() for name, tensor in found.items()}


# AIM --------------------------------------------------------------------------------------------------------------


def test_aim_leaves_omega_of_the_change_at_the_most_active_channel_and_all_at_a_silent_one(merge):
    found = merge("aim", BASE, EXPERTS[:1], statistics=[ACTIVITY], shared={"omega": 0.3})
    share = (found - BASE) / (EXPERTS[0] - BASE)
    np.testing.assert_allclose(share[:, 4], 0.3)
    np.testing.assert_allclose(share[:, 0], 1.0)
    np.testing.assert_allclose(share[:, 2], 1.0 - 0.5 * 0.7)


def test_aim_does_not_depend_on_the_size_of_the_activations_and_commutes_with_lambda(merge):
    def aim(activity, **shared):
        return merge("aim", BASE, EXPERTS, statistics=[activity], shared=shared)

    np.testing.assert_allclose(aim(ACTIVITY * 1e-6), aim(ACTIVITY), rtol=1e-14)
    half = BASE + 0.5 * (aim(ACTIVITY) - BASE)
    np.testing.assert_allclose(aim(ACTIVITY, **{"lambda": 0.5}), half, rtol=1e-13)


def test_aim_without_activity_or_with_omega_1_gives_the_merge(merge):
    untouched = merge("aim", BASE, EXPERTS[:1], statistics=[ACTIVITY], shared={"omega": 1.0})
    assert untouched.tobytes() == EXPERTS[0].tobytes()
    silent = merge("aim", BASE, EXPERTS, statistics=[ACTIVITY * 0.0])
    np.testing.assert_allclose(silent, BASE + sum(EXPERTS) - 3 * BASE, rtol=1e-12, atol=1e-12)


def test_one_mapping_of_the_base_is_what_aim_takes_in_memory():
    experts, base = [state(w=e) for e in EXPERTS], state(w=BASE)
    with pytest.raises(UsageError, match="one mapping for the base, not 3"):
        merged_states("aim", experts, base, [state(w=ACTIVITY)] * 3)
    found = merged_states("aim", experts, base, [state(w=ACTIVITY)])
    change = sum(EXPERTS) - 3 * BASE
    np.testing.assert_allclose(found["w"], BASE + change * (1 - ACTIVITY / 8 * 0.6), atol=1e-12)


# Sens-Merging -----------------------------------------------------------------------------------------------------


def layered(arrays):
    """A model of two blocks, a norm behind them, and what has no gradient."""
    names = (
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.up_proj.bias",
        "model.layers.1.mlp.up_proj.weight",
        "model.norm.weight",
    )
    return {name: torch.from_numpy(np.array(x)) for name, x in zip(names, arrays, strict=True)}


SHAPES = [(3, 4), (3,), (3, 4), (4,)]


def draw(rng, positive=False):
    drawn = [rng.normal(size=shape) for shape in SHAPES]
    return [np.abs(x) for x in drawn] if positive else drawn


def test_sens_gives_every_tensor_of_a_layer_the_layers_coefficients():
    rng = np.random.default_rng(2)
    base, first, second = (draw(rng) for _ in range(3))
    gradients = [draw(rng, positive=True) for _ in range(2)]
    found = merged_states(
        "sens",
        [layered(first), layered(second)],
        layered(base),
        [{n: t for n, t in layered(g).items() if not n.endswith("bias")} for g in gradients],
        parameters={"temperature": 0.1},
        per_expert=[{"transfer": 1.0}, {"transfer": 3.0}],
    )
    s = np.array(
        [
            [np.sum(np.abs(theta[i]) * g[i]) for i in (0, 2, 3)]
            for theta, g in zip((first, second), gradients, strict=True)
        ]
    )
    alpha = s / np.sqrt((s**2).sum(1, keepdims=True))
    raised = np.exp(alpha * np.array([[0.25], [0.75]]) / 0.1)
    sigma = raised / raised.sum(0)
    for i, layer in enumerate((0, 0, 1, 2)):
        change = sum(
            2 * sigma[k, layer] * (theta[i] - base[i]) for k, theta in enumerate((first, second))
        )
        np.testing.assert_allclose(list(found.values())[i], base[i] + change, rtol=1e-10)


def test_sens_is_task_arithmetic_where_no_layer_stands_out(merge):
    """Copies are equally sensitive; a high temperature, and gradients of 0, tell nothing apart."""
    flat = BASE + sum(e - BASE for e in EXPERTS)
    gradients = [np.abs(RNG.normal(size=(5, 6))) for _ in EXPERTS]
    hot = merge("sens", BASE, EXPERTS, statistics=gradients, shared={"temperature": 1e9})
    np.testing.assert_allclose(hot, flat, atol=1e-7)
    silent = merge("sens", BASE, EXPERTS, statistics=[g * 0.0 for g in gradients])
    np.testing.assert_allclose(silent, flat, atol=1e-12)


def test_sens_at_a_low_temperature_takes_the_expert_that_is_furthest_from_the_others(merge):
    """One tensor is the whole model: every alpha is 1, so transfer alone decides."""
    gradients = [np.abs(RNG.normal(size=(5, 6))) for _ in EXPERTS]
    found = merge(
        "sens",
        BASE,
        EXPERTS,
        statistics=gradients,
        shared={"temperature": 1e-4, "lambda": 1 / 3},
        per_expert=[{"transfer": t} for t in (1.0, 5.0, 2.0)],
    )
    np.testing.assert_allclose(found, EXPERTS[1], atol=1e-12)


# TATR -------------------------------------------------------------------------------------------------------------


def test_tatr_drops_what_moves_where_another_task_is_sensitive(merge):
    base = np.zeros((1, 6))
    first, second = np.eye(6)[[0]] * 3.0 + 1.0, np.eye(6)[[1]] * 3.0 + 1.0
    gradients = [np.array([[0, 9.0, 0, 0, 1.0, 0]]), np.array([[0, 0, 2.0, 0, 0, 0]])]
    # Omega = g_1 |tau_2| + g_2 |tau_1| = [0, 36, 2, 0, 1, 0]
    found = merge(
        "tatr", base, [first, second], statistics=gradients, shared={"drop": 0.34, "lambda": 1.0}
    )
    np.testing.assert_array_equal(found, [[5.0, 0.0, 0.0, 2.0, 2.0, 2.0]])
    every = merge(
        "tatr", base, [first, second], statistics=gradients, shared={"drop": 1.0, "lambda": 1.0}
    )
    np.testing.assert_array_equal(every, [[5.0, 0.0, 0.0, 2.0, 0.0, 2.0]])


def test_tatr_of_a_region_that_has_everything_is_task_arithmetic(merge):
    found = merge("tatr", BASE, EXPERTS, shared={"drop": 0.0, "lambda": 0.4})
    expected = merge("task_arithmetic", BASE, EXPERTS, shared={"lambda": 0.4})
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_tatr_without_data_takes_task_vectors_for_gradients(merge):
    sizes = [np.abs(e - BASE) for e in EXPERTS]
    how = {"shared": {"drop": 0.4}}
    measured = merge("tatr", BASE, EXPERTS, statistics=sizes, **how)
    np.testing.assert_array_equal(merge("tatr_zero_shot", BASE, EXPERTS, **how), measured)
    assert (measured == BASE).sum() == 12


def test_the_region_goes_with_every_method():
    experts, base = [state(w=e) for e in EXPERTS], state(w=BASE)
    gradients = [state(w=np.abs(RNG.normal(size=(5, 6)))) for _ in EXPERTS]
    region = {"trust_region": {"drop": 0.3}}
    modified = merged_states(
        "task_arithmetic", experts, base, gradients, modify=[region], parameters={"lambda": 0.3}
    )
    own = merged_states("tatr", experts, base, gradients, parameters={"drop": 0.3})
    np.testing.assert_allclose(modified["w"], own["w"], rtol=1e-12)
    with pytest.raises(UsageError, match="method fisher and modifier trust_region go by"):
        merged_states("fisher", experts, base, gradients, modify=[region])
    with pytest.raises(UsageError, match="Modifier trust_region needs statistics of kind"):
        merged_states("ties", experts, base, [], modify=[region])


# Wanda ------------------------------------------------------------------------------------------------------------


def pruned(expert, base=None, **parameters):
    squares = np.broadcast_to(np.array([0.01, 4.0, 1.0, 0.25, 9.0, 0.0]), (5, 6))
    method = "linear" if base is None else "task_arithmetic"
    found = merged_states(
        method,
        [state(w=expert)],
        None if base is None else state(w=base),
        [state(w=squares)],
        modify=[{"wanda": parameters}],
    )
    return found["w"], np.sqrt(squares)


def test_wanda_prunes_weights_of_each_output_by_their_part_in_it():
    found, reach = pruned(EXPERTS[0], density=0.5)
    for row, own in enumerate(np.abs(EXPERTS[0]) * reach):
        kept = np.argsort(-own)[:3]
        expected = np.zeros(6)
        expected[kept] = EXPERTS[0][row, kept]
        np.testing.assert_array_equal(found[row], expected)


@pytest.mark.parametrize("importance", ["delta", "weight"])
def test_wanda_takes_task_vectors_where_there_is_a_base(importance):
    found, reach = pruned(EXPERTS[0], BASE, density=0.34, importance=importance)
    tau = EXPERTS[0] - BASE
    scores = np.abs(tau if importance == "delta" else EXPERTS[0]) * reach
    for row in range(5):
        kept = np.argsort(-scores[row])[:2]
        assert set(np.flatnonzero(found[row] != BASE[row])) == set(kept)
        np.testing.assert_allclose(found[row, kept], EXPERTS[0][row, kept], rtol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 2, 2), (4, 3, 5)])
def test_rows_of_kernels_are_those_of_their_matrices(shape):
    kernel = RNG.normal(size=shape).round(1)
    squares = np.broadcast_to(RNG.random(3).reshape(1, 3, *[1] * (len(shape) - 2)), shape)
    how = {"modify": [{"wanda": {"density": 0.4}}]}
    found = merged_states("linear", [state(w=kernel)], None, [state(w=squares)], **how)["w"]
    rows, scores = kernel.reshape(shape[0], -1), np.abs(kernel) * np.sqrt(squares)
    for own, row, ranked in zip(np.asarray(found), rows, scores.reshape(rows.shape), strict=True):
        # The largest first, of equal ones that of the lower index.
        first = sorted(range(row.size), key=lambda i: (-ranked[i], i))[: int(0.4 * row.size)]
        expected = np.zeros(row.size)
        expected[first] = row[first]
        np.testing.assert_array_equal(own.reshape(-1), expected)


def test_outputs_of_weights_that_are_stored_input_first_are_their_columns():
    ranks = OutputRanks(input_first=True)(np, np.abs(EXPERTS[0]))
    np.testing.assert_array_equal(ranks, (-np.abs(EXPERTS[0])).argsort(0).argsort(0))


# Without data -----------------------------------------------------------------------------------------------------


def test_lore_finds_low_rank_changes_around_a_base_that_it_does_not_see(merge):
    rng = np.random.default_rng(0)
    base = rng.normal(size=(12, 10))
    changes = [3.0 * np.outer(rng.normal(size=12), rng.normal(size=10)) for _ in range(4)]
    experts = [base + change for change in changes]
    found = merge("lore", None, experts, shared={"mu": 1.0, "steps": 200, "lambda": 0.0})
    mean = sum(experts) / 4
    assert np.linalg.norm(found - base) < 0.7 * np.linalg.norm(mean - base)
    for steps in (1, 20):
        above = merge("lore", None, experts, shared={"mu": 1e6, "steps": steps})
        np.testing.assert_allclose(above, mean, rtol=1e-12)


def test_steps_of_lore_lower_its_objective(merge):
    mu, n = 0.5, len(EXPERTS)

    def objective(steps):
        how = {"mu": mu, "steps": steps, "lambda": 0.0}
        center = merge("lore", None, EXPERTS, shared=how)
        total = 0.0
        for expert in EXPERTS:
            left, values, right = np.linalg.svd(expert - center, full_matrices=False)
            kept = np.maximum(values - mu, 0.0)
            change = (left * kept) @ right
            total += np.sum((center + change - expert) ** 2) / 2 + mu * kept.sum()
        return total / n

    values = [objective(steps) for steps in (1, 2, 5, 20)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]


def test_twin_with_one_weight_and_all_directions_is_that_expert(merge):
    one = [{"weight": w} for w in (0.0, 1.0, 0.0)]
    found = merge("twin", BASE, EXPERTS, shared={"rank": 5}, per_expert=one)
    np.testing.assert_allclose(found, EXPERTS[1], rtol=1e-12, atol=1e-13)


def test_twin_adds_parts_of_low_rank_to_the_shared_expert(merge):
    common = BASE + 0.3 * sum(e - BASE for e in EXPERTS)
    found = merge("twin", BASE, EXPERTS, shared={"rank": 1})
    own = sum(_leading(e - common) for e in EXPERTS) / 3
    np.testing.assert_allclose(found, common + own, rtol=1e-10, atol=1e-12)
    assert np.linalg.matrix_rank(found - common, tol=1e-8) == 3


def _leading(matrix):
    left, values, right = np.linalg.svd(matrix)
    return values[0] * np.outer(left[:, 0], right[0])
