"""The matrix method (rank truncation) and the model-wide one (LiNeS)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weightsmith.errors import NonFiniteError
from weightsmith.methods.directions.truncate import Rank, RankTruncation
from weightsmith.methods.pairs.nuslerp import SlerpAlongFirstAxis
from weightsmith.methods.parts.matrices import MatrixView
from weightsmith.methods.parts.spectra import ByMatrix, Decomposition


def draw(n, shape=(8, 6), seed=0):
    base, *rest = np.random.default_rng(seed).normal(size=(n + 1, *shape))
    return base, [base + 0.1 * r for r in rest]


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)


def low_rank(matrix, r):
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return sum((s[i] * np.outer(u[:, i], v[i]) for i in range(r)), np.zeros_like(matrix))


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_truncate_averages_the_best_low_rank_task_vectors(merge, rank):
    base, experts = draw(2)
    weights = [{"weight": 1.0}, {"weight": 3.0}]
    merged = merge(
        "truncate", base, experts, shared={"rank": rank, "lambda": 0.5}, per_expert=weights
    )
    first, second = (low_rank(e - base, rank) for e in experts)
    close(merged, base + 0.5 * (first + 3 * second) / 4)
    one = merge("truncate", base, experts[:1], shared={"rank": rank})
    assert np.linalg.matrix_rank(one - base, tol=1e-9) == rank


def test_truncate_takes_a_share_of_the_rank_but_at_least_one(merge):
    base, experts = draw(1)
    close(
        merge("truncate", base, experts, shared={"rank_share": 0.5}),
        base + low_rank(experts[0] - base, 3),
    )
    close(
        merge("truncate", base, experts, shared={"rank_share": 0.0}),
        base + low_rank(experts[0] - base, 1),
    )


def test_truncate_to_full_rank_is_the_expert(merge):
    base, experts = draw(1)
    for shared in ({"rank": 6}, {"rank": 100}, {"rank_share": 1.0}):
        close(merge("truncate", base, experts, shared=shared), experts[0])


def test_truncate_to_full_rank_drops_directions_below_a_given_tolerance(merge):
    base = np.zeros((5, 4))
    expert = np.diag([4.0, 2.0, 0.5, 0.25])[[0, 1, 2, 3, 3]]
    expert[4] = 0.0
    how = {"rank": 4, "rank_tolerance": 0.2}
    close(merge("truncate", base, [expert], shared=how), np.where(expert > 0.8, expert, 0.0))


def test_truncate_of_fewer_directions_than_asked_is_exact(merge):
    u, v = np.arange(1.0, 9), np.arange(1.0, 7)
    exact = np.outer(u, v)
    merged = merge("truncate", np.zeros((8, 6)), [exact], shared={"rank": 4})
    close(merged, exact)
    assert np.linalg.matrix_rank(merged, tol=1e-11) == 1


def test_truncate_takes_stacks_slice_by_slice_and_vectors_whole(merge):
    base, experts = draw(1, (3, 5, 4))
    merged = merge("truncate", base, experts, shared={"rank": 1})
    for i in range(3):
        close(merged[i], base[i] + low_rank(experts[0][i] - base[i], 1))
    close(merge("truncate", base, experts, shared={"rank": 1, "stacks": "others"}), experts[0])
    vector, (other,) = draw(1, (9,))
    close(merge("truncate", vector, [other], shared={"rank": 1}), other)
    np.testing.assert_array_equal(
        merge("truncate", vector, [other], shared={"others": "base"}), vector
    )


def test_truncate_takes_kernels_as_matrices_if_asked(merge):
    base, experts = draw(1, (4, 3, 2, 2))
    close(merge("truncate", base, experts, shared={"rank": 1}), experts[0])
    merged = merge("truncate", base, experts, shared={"rank": 1, "kernels": "matrix"})
    close(
        merged.reshape(4, 12), base.reshape(4, 12) + low_rank((experts[0] - base).reshape(4, 12), 1)
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numpy_and_torch_give_the_same_matrices(dtype):
    a, b = (np.random.default_rng(s).normal(size=(5, 9, 7)).astype(dtype) for s in (0, 1))
    truncation = ByMatrix(
        RankTruncation(Rank(3), Decomposition()), MatrixView(a.shape, 5, 9, 7), "t"
    )
    for function, inputs in ((truncation, [a, b]), (SlerpAlongFirstAxis(0.3), [a, b])):
        ours = function(np, *inputs)
        theirs = function(torch, *(torch.from_numpy(x) for x in inputs)).numpy()
        assert ours.dtype == theirs.dtype == dtype
        np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=1e-14 if dtype == np.float64 else 1e-7
        )


def test_truncate_names_the_tensor_that_is_not_finite(merge):
    base, (expert,) = draw(1)
    expert[0, 0] = np.nan
    with pytest.raises(NonFiniteError, match=r"'layer\.weight' holds NaN or infinity"):
        merge("truncate", base, [expert], shared={"rank": 1})


# LiNeS ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "scale"), [(0, 0.2), (1, 0.6), (2, 1.0), (None, 0.2)])
def test_lines_scales_one_task_vector_by_depth(merge, layer, scale):
    base, experts = draw(1)
    merged = merge("lines", base, experts, shared={"alpha": 0.2}, layer=layer, layers=3)
    close(merged, base + scale * (experts[0] - base))


def test_lines_with_alpha_one_leaves_the_expert(merge):
    base, experts = draw(1)
    for layer in (0, 1, None):
        close(
            merge("lines", base, experts, shared={"alpha": 1.0}, layer=layer, layers=2), experts[0]
        )


def test_lines_beta_is_added_at_the_last_block(merge):
    base, experts = draw(1)
    merged = merge("lines", base, experts, shared={"alpha": 0.2, "beta": 0.5}, layer=4, layers=5)
    close(merged, base + 0.7 * (experts[0] - base))


def model(seed=0):
    facts = {
        "embed": {"layers": 2},
        "first": {"layer": 0, "layers": 2},
        "last": {"layer": 1, "layers": 2},
    }
    return {name: (*draw(3, (5, 4), seed + i), facts[name]) for i, name in enumerate(facts)}


def test_lines_alpha_of_plain_sums_is_one_over_n(merge_model):
    tensors = model()
    merged = merge_model("lines", tensors)
    for name, scale in (("embed", 1 / 3), ("first", 1 / 3), ("last", 1.0)):
        base, experts, _ = tensors[name]
        close(merged[name], base + scale * sum(e - base for e in experts))


def test_lines_alpha_comes_from_l1_norms_of_the_whole_model(merge_model):
    tensors = model()
    merged = merge_model("lines", tensors, shared={"merger": "ties", "density": 1.0, "beta": 0.4})
    ties = merge_model("ties", tensors, shared={"density": 1.0})
    tau = {name: ties[name] - base for name, (base, _, _) in tensors.items()}
    plain = {name: sum(e - base for e in experts) for name, (base, experts, _) in tensors.items()}
    alpha = (
        sum(np.abs(x).sum() for x in plain.values())
        / sum(np.abs(x).sum() for x in tau.values())
        / 3
    )
    for name, beta in (("embed", 0.0), ("first", 0.0), ("last", 0.4)):
        close(merged[name], tensors[name][0] + (alpha + beta) * tau[name])


def test_lines_of_an_unchanged_model_is_the_base(merge_model):
    tensors = {name: (base, [base] * 2, facts) for name, (base, _, facts) in model().items()}
    for name, merged in merge_model("lines", tensors).items():
        np.testing.assert_array_equal(merged, tensors[name][0])
