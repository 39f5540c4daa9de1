"""The shared layer of the matrix methods: which tensors are matrices, and how their directions are found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weightsmith.errors import RecipeError
from weightsmith.graph.singular import embedded, exact, gram_spectrum, signs
from weightsmith.graph.site import Site
from weightsmith.methods.parts.matrices import EMBEDDING_ROLES, MatrixRules, MatrixView, fused_parts
from weightsmith.methods.parts.spectra import Decomposition
from weightsmith.tensors.place import Kind, Place

RULES = {
    "others": "average",
    "embeddings": "spectral",
    "stacks": "slices",
    "kernels": "others",
    "fused": "whole",
    "orientation": "auto",
    "exempt": "",
}


def view(shape, role="mlp.up", *, input_first=False, **rules):
    site = Site(Place("t", Kind(role), input_first=input_first), shape)
    return MatrixRules(**{**RULES, **rules}).view(site)


# Which tensors are matrices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3, 4, 5)])
def test_vectors_and_kernels_are_no_matrices(shape):
    assert view(shape) is None


def test_rules_say_what_stacks_kernels_and_embeddings_are():
    assert view((3, 4, 5)) == MatrixView((3, 4, 5), 3, 4, 5)
    assert view((3, 4, 5), stacks="others") is None
    assert view((2, 3, 4, 5), kernels="matrix") == MatrixView((2, 3, 4, 5), 1, 2, 60)
    for role in EMBEDDING_ROLES:
        assert view((9, 4), role) is not None
        for rule in ("average", "sum", "base"):
            assert view((9, 4), role, embeddings=rule) is None
    assert view((9, 4), "norm", embeddings="base") is not None


def test_exempt_roles_are_no_matrices_and_follow_the_others():
    assert view((4, 6), "attention.q", exempt="attention, head") is None
    assert view((4, 6), "head", exempt="attention head") is None
    assert view((4, 6), "mlp.up", exempt="attention head") is not None
    rules = MatrixRules(**{**RULES, "others": "sum", "exempt": "head"})
    assert rules.rule(Site(Place("t", Kind.HEAD), (4, 6))) == "sum"
    with pytest.raises(RecipeError, match=r"exempt names 'heads', which is no role"):
        view((4, 6), exempt="heads")


def test_roles_that_the_rules_name_exist():
    kinds = {kind.value for kind in Kind}
    assert set(EMBEDDING_ROLES) < kinds
    assert {"attention.qkv", "attention.kv", "mlp.fused", "expert.fused"} < kinds


def test_orientation_comes_from_the_checkpoint_unless_given():
    assert view((4, 6), input_first=True).matrix == (6, 4)
    assert view((4, 6), input_first=True, orientation="output_first").matrix == (4, 6)
    assert view((4, 6), orientation="input_first").matrix == (6, 4)


@pytest.mark.parametrize(
    ("role", "matrix", "parts"),
    [
        ("attention.qkv", (24, 8), (8, 8, 8)),
        ("attention.qkv", (12, 8), (8, 2, 2)),
        ("attention.qkv", (6, 8), (2, 2, 2)),
        ("attention.qkv", (7, 8), ()),
        ("attention.kv", (10, 8), (5, 5)),
        ("mlp.fused", (10, 8), (5, 5)),
        ("expert.fused", (9, 8), ()),
        ("mlp.up", (24, 8), ()),
    ],
)
def test_fused_projections_are_cut_into_their_blocks(role, matrix, parts):
    assert fused_parts(role, *matrix) == parts


@pytest.mark.parametrize("library", [np, torch], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    "seen",
    [
        MatrixView((3, 4), 1, 3, 4),
        MatrixView((4, 3), 1, 3, 4, input_first=True),
        MatrixView((2, 6, 5), 2, 6, 5, parts=(3, 3)),
        MatrixView((2, 5, 6), 2, 6, 5, input_first=True, parts=(1, 2, 3)),
        MatrixView((2, 3, 4, 5), 1, 2, 60),
    ],
    ids=str,
)
def test_join_puts_together_what_split_takes_apart(library, seen):
    array = np.arange(np.prod(seen.shape), dtype=np.float64).reshape(seen.shape)
    array = array if library is np else torch.from_numpy(array)
    pieces = seen.split(array)
    assert len(pieces) == seen.count * max(1, len(seen.parts))
    assert all(piece.shape[1] == seen.inputs for piece in pieces)
    assert (seen.join(library, pieces) == array).all()
    if seen.input_first and seen.count == 1:
        assert (pieces[0] == array.T).all()


# Directions -----------------------------------------------------------------------------------------------------


def matrix(m, n, values, seed=0):
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.normal(size=(m, len(values))))
    right, _ = np.linalg.qr(rng.normal(size=(n, len(values))))
    return (left * values) @ right.T


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (7, 7), (5, 1), (1, 5)])
@pytest.mark.parametrize("find", [exact, embedded, gram_spectrum])
def test_every_path_finds_the_same_directions(shape, find):
    a = np.random.default_rng(1).normal(size=shape)
    found = find(np, a)
    u, s, v = np.linalg.svd(a, full_matrices=False)
    np.testing.assert_allclose(found.values, s, rtol=1e-12)
    np.testing.assert_allclose(found.matrix(), a, atol=1e-13)
    np.testing.assert_allclose(found.polar(), u @ v, atol=1e-12)


class Diverging:
    """numpy whose singular value decomposition does not converge, as LAPACK's gesdd sometimes does not."""

    class linalg:  # noqa: N801
        LinAlgError = np.linalg.LinAlgError
        qr, eigh = staticmethod(np.linalg.qr), staticmethod(np.linalg.eigh)

        @staticmethod
        def svd(*_args, **_options):
            raise np.linalg.LinAlgError("SVD did not converge")

    zeros_like, concatenate, flip = np.zeros_like, np.concatenate, np.flip


@pytest.mark.parametrize("values", [[3.0, 2.0, 1.0, 0.5], [2.0, 2.0, 2.0], [5.0, 1e-3]])
def test_a_decomposition_that_does_not_converge_is_found_another_way(values):
    for a in (matrix(8, 5, np.array(values)), matrix(5, 8, np.array(values))):
        found = exact(Diverging, a)
        np.testing.assert_allclose(found.values[: len(values)], values, rtol=1e-12)
        np.testing.assert_allclose(found.matrix(), a, atol=1e-13)


@pytest.mark.parametrize("path", ["exact", "gram", "auto"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_directions_below_the_tolerance_do_not_exist(path, dtype):
    a = matrix(40, 30, np.array([4.0, 2.0, 1.0])).astype(dtype)
    found = Decomposition(path, 1e-5 if dtype is np.float32 else 1e-7).spectrum(np, a)
    assert found.rank == 3
    assert found.left.dtype == np.float64
    assert Decomposition(path).spectrum(np, np.zeros((4, 3), dtype)).rank == 0
    assert Decomposition("exact", 0.6).spectrum(np, a).rank == 1


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_gram_path_neither_underflows_nor_overflows(scale):
    a = (matrix(9, 7, np.array([3.0, 2.0, 1.0])) * scale).astype(np.float32)
    found = Decomposition("gram", 1e-5).spectrum(np, a)
    np.testing.assert_allclose(found.values / scale, [3.0, 2.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize("strength", [1e-1, 1e-2, 1e-3, 1e-4])
def test_the_gram_path_errs_by_less_than_the_stated_bound(strength):
    values = np.array([1.0, 0.5, strength, strength * 0.7])
    a = matrix(60, 50, values)
    error = np.abs(
        gram_spectrum(np, a, 3).leading(3).matrix() - exact(np, a).leading(3).matrix()
    ).max()
    assert error <= strength * 1e-15 / strength**2


def test_auto_takes_the_gram_path_only_where_it_is_as_exact_as_the_inputs():
    chosen = []

    class Watched(Decomposition):
        def _directions(self, linalg, matrix, rank, cutoff):
            chosen.append(cutoff >= 5e-5)
            return super()._directions(linalg, matrix, rank, cutoff)

    Watched().spectrum(np, np.ones((500, 4), np.float32))
    Watched().spectrum(np, np.ones((50, 4), np.float32))
    Watched().spectrum(np, np.ones((500, 4), np.float64))
    assert chosen == [True, False, False]
    big = np.random.default_rng(0).normal(size=(600, 40)).astype(np.float32)
    auto, gram = (Decomposition(p).spectrum(np, big) for p in ("auto", "gram"))
    np.testing.assert_array_equal(auto.left, gram.left)


@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_the_sketch_errs_by_little_more_than_the_best_rank(iterations):
    values = 1.0 / np.arange(1, 101) ** 1.5
    a = matrix(120, 150, values)
    how = Decomposition("randomized", oversampling=10, iterations=iterations, key=(3, "tensor"))
    found = how.spectrum(np, a, 10)
    assert found.rank == 10
    best = values[10]
    error = np.linalg.norm(a - found.matrix(), 2)
    # (1 + sqrt(k / (p - 1)) + e sqrt(k + p) sqrt(min(m, n) - k) / p)^(1 / (2 q + 1)), Halko et al., corollary 10.10.
    factor = 1 + np.sqrt(10 / 9) + np.e * np.sqrt(20) * np.sqrt(90) / 10
    assert best <= error * (1 + 1e-12)
    assert error <= best * factor ** (1 / (2 * iterations + 1))
    if iterations == 2:
        assert error <= 1.02 * best


def test_the_sketch_depends_on_seed_and_tensor_alone():
    a = matrix(80, 90, 1.0 / np.arange(1, 61))
    found = [
        Decomposition("randomized", key=key).spectrum(np, a, 5).matrix()
        for key in [(1, "t"), (1, "t"), (2, "t"), (1, "u")]
    ]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[3])
    theirs = Decomposition("randomized", key=(1, "t")).spectrum(torch, torch.from_numpy(a), 5)
    np.testing.assert_allclose(theirs.matrix().numpy(), found[0], atol=1e-12)


def test_signs_are_balanced_and_fixed_for_good():
    drawn = signs((64, 50), 0, "layer.weight")
    assert set(np.unique(drawn)) == {-1.0, 1.0}
    assert abs(drawn.mean()) < 0.06
    np.testing.assert_array_equal(drawn[:20], signs((20, 50), 0, "layer.weight"))


def test_a_sketch_as_wide_as_the_matrix_is_left_out():
    a = matrix(20, 30, np.arange(20.0, 0.0, -1.0))
    how = Decomposition("randomized", oversampling=10)
    np.testing.assert_allclose(
        how.spectrum(np, a, 5).matrix(), exact(np, a).leading(5).matrix(), atol=1e-12
    )


@pytest.mark.parametrize("path", ["exact", "gram"])
def test_the_polar_factor_has_orthonormal_columns_and_no_invented_ones(path):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(12, 5))
    how = Decomposition(path)
    factor = how.polar(np, a, 1e-6)
    np.testing.assert_allclose(factor.T @ factor, np.eye(5), atol=1e-12)
    values, vectors = np.linalg.eigh(a.T @ a)
    np.testing.assert_allclose(factor, a @ (vectors * values**-0.5) @ vectors.T, atol=1e-12)
    twice = how.polar(np, np.concatenate([factor, factor], 1), 1e-6)
    np.testing.assert_allclose(twice, np.concatenate([factor, factor], 1) / np.sqrt(2), atol=1e-7)


@pytest.mark.parametrize("path", ["gram", "exact"])
@pytest.mark.parametrize(("floor", "values"), [(0.9, [3.0, 1.0]), (1.1, [3.0]), (3.5, [3.0, 1.0])])
def test_directions_of_matrices_side_by_side_are_those_above_the_floor_or_all(path, floor, values):
    sides = [np.diag([3.0, 0.0]), np.diag([0.0, 1.0])]
    left, found = Decomposition(path).joint_left(np, sides, 1e-6, floor)
    np.testing.assert_allclose(found, values, atol=1e-12)
    np.testing.assert_allclose(np.abs(left), np.eye(2)[:, : len(values)], atol=1e-12)
