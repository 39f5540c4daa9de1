"""Singular value decompositions by three roads, and signs that depend on seed and name alone."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from weightsmith.graph.singular import embedded, exact, falling, gram_spectrum, signs

SHAPES = [(5, 3), (3, 5), (4, 4), (6, 1), (1, 6)]


def drawn(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("library", [np, torch], ids=["numpy", "torch"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("road", [exact, embedded, gram_spectrum])
def test_every_road_leads_to_the_decomposition(
    library: Any, shape: tuple[int, int], road: Any
) -> None:
    matrix = drawn(shape)
    found = road(library, torch.from_numpy(matrix) if library is torch else matrix)
    left, values, right = (np.asarray(part) for part in (found.left, found.values, found.right))
    assert left.shape == (shape[0], min(shape))
    assert found.rank == min(shape)
    np.testing.assert_allclose(values, np.linalg.svd(matrix, compute_uv=False), rtol=1e-12)
    np.testing.assert_allclose(left.T @ left, np.eye(min(shape)), atol=1e-12)
    np.testing.assert_allclose(right @ right.T, np.eye(min(shape)), atol=1e-12)
    np.testing.assert_allclose(left * values @ right, matrix, atol=1e-12)
    np.testing.assert_allclose(np.asarray(found.matrix()), matrix, atol=1e-12)
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    np.testing.assert_allclose(np.asarray(found.polar()), u @ vt, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_leading_directions_are_the_best_approximation(shape: tuple[int, int]) -> None:
    matrix = drawn(shape)
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    for rank in (1, 2):
        best = u[:, :rank] * s[:rank] @ vt[:rank]
        np.testing.assert_allclose(exact(np, matrix).leading(rank).matrix(), best, atol=1e-12)
        np.testing.assert_allclose(gram_spectrum(np, matrix, rank).matrix(), best, atol=1e-12)
        assert gram_spectrum(np, matrix, rank).rank == min(rank, *shape)


def test_the_largest_value_that_was_left_out_is_remembered() -> None:
    """By whatever was left out in several steps, and as a size where the values are turned round."""
    whole = exact(np, np.diag([5.0, 4.0, 3.0, 2.0, 1.0]))
    assert (whole.beyond, whole.leading(5).beyond, whole.leading(9).beyond) == (0.0, 0.0, 0.0)
    three = whole.leading(3)
    assert three.beyond == 2.0
    assert three.leading(2).beyond == 3.0
    assert three.only(np.array([False, True, True])).beyond == 5.0
    assert whole.only(np.array([True, True, True, True, False])).leading(4).beyond == 1.0
    assert three.times(-2.0).beyond == 4.0
    assert three.times(-2.0).values.tolist() == [-10.0, -8.0, -6.0]
    assert three.within(np.eye(6)[:, :5]).beyond == 2.0


def test_directions_without_a_length_are_left_out_of_the_embedded_problem() -> None:
    matrix = np.outer(drawn((7, 1)), drawn((1, 4), 1)) + np.outer(
        drawn((7, 1), 2), drawn((1, 4), 3)
    )
    found = embedded(np, matrix)
    assert found.rank == 2
    np.testing.assert_allclose(found.matrix(), matrix, atol=1e-12)
    assert embedded(np, np.zeros((3, 2))).rank == 1
    assert gram_spectrum(np, np.zeros((3, 2))).matrix().tolist() == [[0.0] * 2] * 3


def test_a_direction_just_above_rounding_is_kept_in_the_embedded_problem() -> None:
    """Rounding is 4 k eps of the largest value, k being the smaller side."""
    for small, rank in [(4 * 3 * 2.3e-16 * 1.5, 3), (4 * 3 * 2.3e-16 * 0.3, 2)]:
        values = np.array([1.0, 0.5, small])
        assert embedded(diagonal_solver(values), np.zeros((3, 3))).rank == rank


def diagonal_solver(values: np.ndarray) -> Any:
    """numpy, but for a symmetric eigenproblem whose answer is known to the last bit."""

    def eigh(_: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate([-values, values[::-1]]), np.eye(2 * len(values))

    known = SimpleNamespace(eigh=eigh, qr=np.linalg.qr)
    return SimpleNamespace(
        linalg=known, zeros_like=np.zeros_like, concatenate=np.concatenate, flip=np.flip
    )


def test_a_decomposition_that_does_not_converge_goes_the_other_road() -> None:
    class Stubborn:
        LinAlgError = np.linalg.LinAlgError
        eigh, qr = staticmethod(np.linalg.eigh), staticmethod(np.linalg.qr)

        @staticmethod
        def svd(*_: Any, **__: Any) -> Any:
            raise np.linalg.LinAlgError

    library = SimpleNamespace(
        linalg=Stubborn, zeros_like=np.zeros_like, concatenate=np.concatenate, flip=np.flip
    )
    np.testing.assert_allclose(exact(library, drawn((4, 3))).matrix(), drawn((4, 3)), atol=1e-12)


def test_eigenvalues_are_turned_to_fall_with_their_vectors() -> None:
    values, vectors = falling(np, np.array([1.0, 2.0, 3.0]), np.eye(3), 2)
    assert values.tolist() == [3.0, 2.0]
    assert vectors.tolist() == [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    assert len(falling(np, np.arange(3.0), np.eye(3), None)[0]) == 3


def test_signs_are_the_bits_of_a_philox_stream_of_seed_and_name() -> None:
    text = "\0".join(("weightsmith random stream 1", "7", "sketch", "layer.weight"))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    key = [int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")]
    words = np.random.Philox(key=key).random_raw(3)
    bits = [
        int(word) >> (8 * byte + 7 - bit) & 1
        for word in words
        for byte in range(8)
        for bit in range(8)
    ]
    wanted = np.array(bits[:130]).reshape(13, 10) * 2.0 - 1.0
    found = signs((13, 10), 7, "layer.weight")
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == np.float64
    assert (signs((13, 10), 8, "layer.weight") != found).any()
    assert (signs((13, 10), 7, "other") != found).any()
