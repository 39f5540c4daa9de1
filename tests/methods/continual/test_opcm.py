"""OPCM against the full decomposition it is defined with, its invariants, and its state."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weightsmith.errors import RecipeError
from weightsmith.graph.model_statistics import ModelStatistic
from weightsmith.methods.continual.opcm import Fold, Opcm
from weightsmith.methods.parts.spectra import Decomposition
from weightsmith.tensors.dtypes import DType


def draw(n, shape=(12, 9), seed=0):
    base, *rest = np.random.default_rng(seed).normal(size=(n + 1, *shape))
    return base, [base + 0.1 * r for r in rest]


def close(actual, expected, atol=1e-11):
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=atol)


def projected(b, tau, r):
    """With square U and V: the diagonal and the leading r x r block of U^T tau V set to zero."""
    u, _, vt = np.linalg.svd(b, full_matrices=True)
    p = u.T @ tau @ vt.T
    np.fill_diagonal(p, 0.0)
    p[:r, :r] = 0.0
    return u @ p @ vt


def rank_of(b, alpha, exclusive=False):
    s = np.linalg.svd(b, compute_uv=False)
    shares = np.cumsum(s) / s.sum()
    return int(np.argmax(shares > alpha)) if exclusive else int(np.argmax(shares >= alpha)) + 1


def one_by_one(base, experts, alpha=0.5, *, exclusive=False, matrix=True):
    """The paper's loop, with the state (merge, lambda, norms) updated after each expert."""
    merged, factor = experts[0], 1.0
    norms = [np.linalg.norm(experts[0] - base)]
    for expert in experts[1:]:
        tau, b = expert - base, merged - base
        norms.append(np.linalg.norm(tau))
        change = projected(b, tau, rank_of(b, alpha, exclusive)) if matrix else tau
        a = factor * b + change
        factor = np.linalg.norm(a) / np.mean(norms)
        merged = base + a / factor
    return merged, factor


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (9, 9)])
@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("preset", ["paper", "fusionbench"])
def test_opcm_is_its_loop(shape, alpha, preset, merge):
    base, experts = draw(4, shape)
    expected, _ = one_by_one(base, experts, alpha, exclusive=preset == "fusionbench")
    close(merge("opcm", base, experts, shared={"alpha": alpha}, preset=preset), expected)


def test_vectors_and_embeddings_are_added_and_rescaled(merge):
    base, experts = draw(3, (7,))
    expected, _ = one_by_one(base, experts, matrix=False)
    close(merge("opcm", base, experts), expected)
    base, experts = draw(3, (6, 5))
    expected, _ = one_by_one(base, experts, matrix=False)
    close(merge("opcm", base, experts, role="embedding"), expected)


def test_vectors_and_embeddings_can_be_left_or_averaged(merge):
    """An average is as far from the base as the experts are on average, like everything that opcm merges."""
    for shape, facts, rule in [((7,), {}, "others"), ((6, 5), {"role": "embedding"}, "embeddings")]:
        base, experts = draw(3, shape)
        kept = merge("opcm", base, experts, shared={rule: "base"}, **facts)
        np.testing.assert_array_equal(kept, base)
        mean = np.mean(experts, 0) - base
        size = np.mean([np.linalg.norm(e - base) for e in experts])
        found = merge("opcm", base, experts, shared={rule: "average"}, **facts)
        close(found, base + mean * size / np.linalg.norm(mean))


def test_the_first_expert_is_taken_as_it_is(merge):
    base, (expert,) = draw(1)
    close(merge("opcm", base, [expert]), expert)


def test_the_merge_is_as_far_from_the_base_as_its_experts_on_average(merge_model):
    tensors = {
        name: (*draw(3, shape, seed), {})
        for seed, (name, shape) in enumerate([("a", (12, 9)), ("b", (5,)), ("c", (7, 20))])
    }
    merged = merge_model("opcm", tensors)

    def length(index):
        return np.sqrt(sum(((t[1][index] - t[0]) ** 2).sum() for t in tensors.values()))

    square = sum(((merged[n] - tensors[n][0]) ** 2).sum() for n in tensors)
    assert np.sqrt(square) == pytest.approx(np.mean([length(i) for i in range(3)]), rel=1e-12)


def test_what_is_added_is_orthogonal_to_what_was_there():
    base, experts = draw(2, (10, 14))
    b, tau = (e - base for e in experts)
    change = Fold(0.5, True, Decomposition()).projected(np, b, tau, 1e-13)
    assert abs((b * change).sum()) < 1e-13
    grown = np.linalg.norm(2.0 * b + change) ** 2
    assert grown == pytest.approx(4.0 * (b**2).sum() + (change**2).sum(), rel=1e-12)


def test_the_same_expert_again_adds_nothing_to_matrices_and_doubles_vectors(merge_model):
    base, (expert,) = draw(1)
    vector, (moved,) = draw(1, (6,), 1)
    merged = merge_model(
        "opcm", {"m": (base, [expert, expert], {}), "v": (vector, [moved, moved], {})}
    )
    matrix_part, vector_part = merged["m"] - base, merged["v"] - vector
    factor = vector_part[0] / (2.0 * (moved - vector)[0])
    close(matrix_part, factor * (expert - base))
    close(vector_part, 2.0 * factor * (moved - vector))


def test_tasks_in_orthogonal_spaces_pass_unprojected_up_to_scale(merge):
    rng = np.random.default_rng(0)
    rows, columns = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (12, 9))
    first, second = (
        rows[:, s] @ np.diag([2.0, 1.0]) @ columns[:, s].T for s in (slice(0, 2), slice(2, 4))
    )
    merged = merge("opcm", np.zeros((12, 9)), [first, second])
    close(merged, (first + second) / np.sqrt(2.0))


def test_shielding_everything_is_no_exception():
    """The authors' code removes no block at alpha = 1, where no share exceeds it (split exclusive)."""
    values = np.array([3.0, 2.0, 1.0])
    fold = Fold(1.0, True, Decomposition())
    assert fold.shielded(values) == 3
    assert Fold(1.0, False, Decomposition()).shielded(values) == 0
    assert [Fold(a, True, Decomposition()).shielded(values) for a in (0.0, 0.5, 0.51)] == [0, 1, 2]
    assert [Fold(a, False, Decomposition()).shielded(values) for a in (0.0, 0.49, 0.5)] == [0, 0, 1]


def test_directions_that_nothing_spans_shield_nothing(merge):
    """A merge of rank 2 has two directions; the square U of the full form would add arbitrary ones."""
    rng = np.random.default_rng(1)
    b = rng.normal(size=(12, 2)) @ rng.normal(size=(2, 9))
    tau = rng.normal(size=(12, 9))
    u, s, vt = np.linalg.svd(b)
    expected = tau - u[:, :2] @ np.diag(np.diag(u[:, :2].T @ tau @ vt[:2].T)) @ vt[:2]
    r = 1 if s[0] >= s[1] else 2
    assert rank_of(b, 0.5) == r
    fold = Fold(0.5, True, Decomposition())
    close(fold.projected(np, b, tau, 1e-12), expected)
    assert np.isfinite(merge("opcm", np.zeros((12, 9)), [np.zeros((12, 9)), tau])).all()


def test_folding_in_steps_with_the_state_is_folding_at_once(merge):
    base, experts = draw(4)
    first, factor = one_by_one(base, experts[:2])
    norms = [np.linalg.norm(e - base) for e in experts]
    state = {
        "previous": True,
        "previous_count": 2,
        "previous_lambda": factor,
        "previous_norm": np.mean(norms[:2]),
    }
    close(merge("opcm", base, [first, *experts[2:]], shared=state), merge("opcm", base, experts))
    close(merge("opcm", base, [first], shared=state), first)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("parts", [(1, 3), (2, 2), (3, 1), (2, 1, 1)], ids=str)
def test_folding_in_any_steps_is_folding_at_once_beside_rounding(merge, parts, seed):
    """Of changes that are a little above their rounding, the same directions count."""
    rng = np.random.default_rng(seed)
    size = rng.normal(size=(96, 90))
    size[3] = 0.0
    base, *experts = (
        torch.from_numpy(x).bfloat16().double().numpy()
        for x in [size, *(size + 0.01 * rng.normal(size=size.shape) * (size != 0) for _ in "abcd")]
    )
    tasks = [e - base for e in experts]
    fold = Fold(0.5, True, Decomposition(stored=DType.BFLOAT16))
    done = parts[0]
    merged = merge("opcm", base, experts[:done], stored=DType.BFLOAT16)
    for part in parts[1:]:
        norm = np.mean([np.linalg.norm(t) for t in tasks[:done]])
        length = np.linalg.norm(fold(np, [*tasks[:done], base]))
        state = {"count": done, "lambda": length / norm, "norm": norm}
        shared = {"previous": True} | {f"previous_{key}": value for key, value in state.items()}
        experts_now = [merged, *experts[done : done + part]]
        merged = merge("opcm", base, experts_now, shared=shared, stored=DType.BFLOAT16)
        done += part
    at_once = merge("opcm", base, experts, stored=DType.BFLOAT16)
    close(merged, at_once)
    exactly = merge("opcm", base, experts, shared={"rank_tolerance": 0.0})
    assert np.abs(at_once - exactly).max() > 1e-5


def measured(merged, *experts):
    """The squared norms of a merge, by the names that they have there."""
    found = {ModelStatistic("m", "expert", f"e{i}"): square for i, square in enumerate(experts)}
    return {ModelStatistic("m", "merged"): merged, **found}


def test_the_state_follows_from_the_statistics():
    spec = {
        "others": "sum",
        "embeddings": "sum",
        "stacks": "slices",
        "kernels": "others",
        "fused": "whole",
        "orientation": "auto",
        "exempt": "",
        "svd": "auto",
        "rank_tolerance": None,
        "alpha": 0.5,
        "split": "inclusive",
    }
    fresh = Opcm(
        **spec, previous=False, previous_count=None, previous_lambda=None, previous_norm=None
    )
    state = fresh.state(measured(36.0, 4.0, 16.0))
    assert state == {"previous_count": 2, "previous_lambda": 2.0, "previous_norm": 3.0}
    later = Opcm(**spec, previous=True, **state)
    grown = later.state(measured(81.0, 9.0))
    assert grown == {"previous_count": 3, "previous_lambda": 3.0, "previous_norm": 3.0}
    still = fresh.state(measured(0.0, 0.0))
    assert still == {"previous_count": 1, "previous_lambda": 1.0, "previous_norm": 0.0}


def test_a_missing_state_is_refused(merge):
    base, experts = draw(2)
    with pytest.raises(RecipeError, match="state of that merge is not known"):
        merge("opcm", base, experts, shared={"previous": True})


def test_averages_count_a_previous_merge_as_often_as_it_has_experts(merge):
    base, experts = draw(4, (7,))
    tasks = [e - base for e in experts]
    norms = [np.linalg.norm(t) for t in tasks]
    mean = np.mean(tasks[:3], axis=0)
    state = {
        "previous": True,
        "previous_count": 3,
        "previous_lambda": 2.0,
        "previous_norm": np.mean(norms[:3]),
    }
    found = merge(
        "opcm", base, [base + mean / 2.0, experts[3]], shared={"others": "average"} | state
    )
    together = np.mean(tasks, axis=0)
    close(found - base, together / np.linalg.norm(together) * np.mean(norms))
