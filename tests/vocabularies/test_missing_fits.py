"""Rules that are fitted on shared tokens: pursuit, least squares, Procrustes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp

from weightsmith.vocabularies.missing import Missing, MissingRule
from weightsmith.vocabularies.pursuit import Pursuit, pursue
from weightsmith.vocabularies.rules import FittedRows, LeastSquares, Omp, Procrustes

from .digest_of_fits import digest_of_fits
from .tables_made_here import table


def dense(found: Pursuit, atoms: int) -> np.ndarray:
    """Coefficients as a matrix (rows, atoms)."""
    matrix = np.zeros((len(found.starts) - 1, atoms))
    for i, (low, high) in enumerate(zip(found.starts[:-1], found.starts[1:], strict=True)):
        matrix[i, found.atoms[low:high]] = found.coefficients[low:high]
    return matrix


def unit_rows(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("held_bytes", [1 << 29, 0])
def test_pursuit_agrees_with_scikit_learn(tmp_path: Path, held_bytes: int) -> None:
    """The same atoms, and coefficients to 1e-6; whether atoms are held in memory or read at each step."""
    rng = np.random.default_rng(0)
    rows = unit_rows(rng.standard_normal((460, 48)))
    rows[400:] = rng.standard_normal((60, 48))
    donor = table(tmp_path, "donor", rows)
    found = pursue(donor, np.arange(400), np.arange(400, 460), 12, 0.0, held_bytes)
    expected = orthogonal_mp(rows[:400].T, rows[400:].T, n_nonzero_coefs=12).T
    matrix = dense(found, 400)
    np.testing.assert_array_equal(matrix != 0, expected != 0)
    np.testing.assert_allclose(matrix, expected, atol=1e-6)
    left = np.linalg.norm(matrix @ rows[:400] - rows[400:], axis=1)
    np.testing.assert_allclose(
        found.residuals, left / np.linalg.norm(rows[400:], axis=1), rtol=1e-6
    )


def test_pursuit_compares_directions_not_lengths(tmp_path: Path) -> None:
    """Scaling an atom scales its coefficient back and changes nothing else."""
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((120, 16)).astype(np.float32)
    scaled = rows.copy()
    factors = np.float32(2.0) ** rng.integers(-6, 6, 100).astype(np.float32)
    scaled[:100] *= factors[:, None]
    plain, other = (
        pursue(table(tmp_path, name, values), np.arange(100), np.arange(100, 120), 5, 0.0)
        for name, values in (("plain", rows), ("scaled", scaled))
    )
    np.testing.assert_array_equal(plain.atoms, other.atoms)
    np.testing.assert_allclose(
        plain.coefficients, other.coefficients * factors[other.atoms], rtol=1e-9
    )


def test_exactly_sparse_rows_are_found_and_the_pursuit_stops_there(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    atoms = unit_rows(rng.standard_normal((100, 128))).astype(np.float32)
    truth = np.zeros((20, 100))
    for row in truth:
        row[rng.choice(100, 4, replace=False)] = rng.uniform(1, 2, 4) * rng.choice([-1, 1], 4)
    rows = np.concatenate([atoms, (truth @ atoms).astype(np.float32)])
    found = pursue(table(tmp_path, "donor", rows), np.arange(100), np.arange(100, 120), 64, 1e-6)
    assert np.diff(found.starts).tolist() == [4] * 20
    np.testing.assert_allclose(dense(found, 100), truth, atol=1e-6)
    assert found.residuals.max() < 1e-6


def test_pursuit_ends_when_nothing_is_left_to_add(tmp_path: Path) -> None:
    """More atoms wanted than the rank; copies of atoms; atoms and rows of zeros; a row orthogonal to all atoms."""
    rng = np.random.default_rng(3)
    plane = rng.standard_normal((4, 6)) @ np.diag([1, 1, 1, 1, 0, 0])
    rows = np.concatenate(
        [
            plane,
            plane,
            np.zeros((2, 6)),
            3 * plane[:1],
            np.ones((1, 6)),
            np.zeros((1, 6)),
            np.eye(6)[5:],
        ]
    )
    found = pursue(table(tmp_path, "donor", rows), np.arange(10), np.arange(10, 14), 64, 1e-9)
    counts = np.diff(found.starts)
    assert counts.tolist() == [1, 4, 0, 0]
    assert found.atoms[0] == 0, "of equal atoms the first is taken"
    np.testing.assert_allclose(found.coefficients[0], 3, rtol=1e-12)
    assert np.isfinite(found.coefficients).all()
    np.testing.assert_allclose(found.residuals, [0, (2 / 6) ** 0.5, 0, 1], atol=1e-9)


def test_pursued_coefficients_are_applied_to_the_own_rows(tmp_path: Path) -> None:
    """The other table has another width; shared tokens lie at other numbers."""
    rng = np.random.default_rng(4)
    own_rows, donor_rows = rng.permutation(30)[:25], rng.permutation(40)[:25]
    own = rng.standard_normal((30, 7)).astype(np.float32)
    donor = rng.standard_normal((40, 33)).astype(np.float32)
    wanted = np.setdiff1d(np.arange(40), donor_rows)[:3]
    chosen = np.array([[3, 8], [10, 11], [24, 0]])
    donor[wanted] = 2 * donor[donor_rows[chosen[:, 0]]] - donor[donor_rows[chosen[:, 1]]]
    missing = Missing(
        table(tmp_path, "own", own),
        3,
        None,
        table(tmp_path, "donor", donor),
        own_rows,
        donor_rows,
        wanted,
    )
    rows = FittedRows(Omp(), missing)
    expected = 2 * own[own_rows[chosen[:, 0]]] - own[own_rows[chosen[:, 1]]]
    np.testing.assert_allclose(rows.read(np.arange(3)).view(np.float32), expected, atol=1e-5)
    facts = rows.fitted().facts
    assert facts["shared tokens"] == 25
    assert facts["atoms per token"] == 2


def planted(
    folder: Path, donor: np.ndarray, own: np.ndarray, shared: int
) -> tuple[Missing, np.ndarray]:
    """Row i of both tables is token i; the first `shared` are known to both. The truth for the rest comes along."""
    pairs, wanted = np.arange(shared), np.arange(shared, len(donor))
    tables = table(folder, "own", own[:shared]), table(folder, "donor", donor)
    return Missing(tables[0], len(wanted), None, tables[1], pairs, pairs, wanted), own[shared:]


def made(rule: MissingRule, missing: Missing) -> np.ndarray:
    rows = FittedRows(rule, missing).read(np.arange(missing.count))
    return rows.view(f"<f{rows.itemsize}").astype(np.float64)


def relative(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def rotation(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((size, size)))[0]


def test_a_planted_rotation_is_found_to_the_noise_and_not_its_transpose(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    turn = rotation(rng, 24)
    donor = rng.standard_normal((900, 24)) + 3
    clean = 1.7 * (donor - 3) @ turn - 0.5
    own = clean + 0.02 * rng.standard_normal(clean.shape)
    missing, _ = planted(tmp_path, donor, own, 700)
    error = relative(made(Procrustes(), missing), clean[700:])
    transposed = relative(1.7 * (donor[700:] - 3) @ turn.T - 0.5, clean[700:])
    assert error < 0.01
    assert transposed > 0.5
    unscaled = relative(made(Procrustes(scale=False), missing), clean[700:])
    assert unscaled == pytest.approx(
        0.7 / 1.7 * np.linalg.norm(clean[700:] + 0.5) / np.linalg.norm(clean[700:]), abs=0.02
    )


@pytest.mark.parametrize(("inner", "outer"), [(10, 16), (16, 10)])
def test_widths_may_differ(tmp_path: Path, inner: int, outer: int) -> None:
    """Into a wider space by an isometry; into a narrower one from the subspace that the tokens lie in."""
    rng = np.random.default_rng(6)
    narrow = rng.standard_normal((500, min(inner, outer)))
    frame = rotation(rng, max(inner, outer))[: min(inner, outer)]
    donor, own = (narrow, narrow @ frame) if inner < outer else (narrow @ frame, narrow)
    missing, truth = planted(tmp_path, donor, own, 400)
    assert relative(made(Procrustes(), missing), truth) < 1e-6
    assert relative(made(LeastSquares(ridge=0), missing), truth) < 1e-6


def test_any_planted_linear_map_is_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    donor = rng.standard_normal((400, 12)) @ rng.standard_normal((12, 12)) + 5
    own = donor @ rng.standard_normal((12, 20)) + rng.standard_normal(20)
    missing, truth = planted(tmp_path, donor, own, 300)
    assert relative(made(LeastSquares(ridge=0), missing), truth) < 1e-6
    assert relative(made(LeastSquares(), missing), truth) < 0.1
    assert relative(made(LeastSquares(ridge=0, intercept=False), missing), truth) > 1e-3


def test_directions_in_which_shared_tokens_do_not_vary_are_not_amplified(tmp_path: Path) -> None:
    """Rounding in a constant coordinate would be fitted otherwise, and blown up for a token that differs in it."""
    rng = np.random.default_rng(8)
    donor = rng.standard_normal((300, 8))
    donor[:, 7] = 1 + 1e-9 * rng.standard_normal(300)
    own = np.hstack([donor[:, :7], rng.standard_normal((300, 2))])
    donor[250:, 7] += 1
    missing, truth = planted(tmp_path, donor, own, 250)
    for rule in (LeastSquares(ridge=0), Procrustes()):
        found = made(rule, missing)
        assert np.abs(found).max() < 10
        np.testing.assert_allclose(found[:, :7], truth[:, :7], atol=0.2)


def test_fewer_tokens_than_dimensions_and_equal_tokens_give_finite_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    donor, own = rng.standard_normal((30, 20)), rng.standard_normal((30, 12))
    missing, _ = planted(tmp_path, donor, own, 6)
    for rule in (LeastSquares(ridge=0), LeastSquares(), Procrustes()):
        assert np.abs(made(rule, missing)).max() < 100
    shared = LeastSquares(ridge=0).fit(missing).rows.map.apply(donor[:6])
    np.testing.assert_allclose(shared, own[:6], atol=1e-9)
    donor[:6] = donor[0]
    alike, _ = planted(tmp_path, donor, own, 6)
    for rule in (LeastSquares(ridge=0), LeastSquares(), Procrustes()):
        np.testing.assert_allclose(
            made(rule, alike), np.tile(own[:6].mean(axis=0), (24, 1)), atol=1e-6
        )


def test_mapped_rows_do_not_depend_on_what_is_read_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(10)
    donor, own = rng.standard_normal((2, 300, 24)).astype(np.float32)
    missing, _ = planted(tmp_path, donor, own, 200)
    rows = FittedRows(LeastSquares(), missing)
    together = rows.read(np.arange(100))
    order = rng.permutation(100)
    np.testing.assert_array_equal(
        np.concatenate([rows.read(order[i : i + 7]) for i in range(0, 100, 7)]), together[order]
    )


def test_the_bits_do_not_depend_on_the_threads_of_the_linear_algebra_library(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(12)
    table(tmp_path, "donor", rng.standard_normal((900, 160)).astype(np.float32))
    table(tmp_path, "own", rng.standard_normal((700, 144)).astype(np.float32))
    program = Path(__file__).with_name("digest_of_fits.py")
    digests = set()
    for threads in ("1", "2"):
        limits = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), threads)
        command = [sys.executable, str(program), str(tmp_path)]
        done = subprocess.run(
            command, env=os.environ | limits, capture_output=True, text=True, check=True
        )
        digests.add(done.stdout.strip())
    assert len(digests) == 1
    assert digests == {digest_of_fits(tmp_path)}


def test_pursuit_on_one_thread_or_several_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many blocks of atoms and batches of rows."""
    rng = np.random.default_rng(13)
    donor = table(tmp_path, "donor", torch.as_tensor(rng.standard_normal((500, 32))).bfloat16())
    monkeypatch.setattr("weightsmith.vocabularies.pursuit._BASIS_BYTES", 8 * 9 * 32 * 8)
    monkeypatch.setattr("weightsmith.vocabularies.pursuit._BLOCK", 64)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(os, "cpu_count", lambda threads=threads: threads)
        found.append(pursue(donor, np.arange(400), np.arange(400, 500), 8, 1e-6))
    for name in ("starts", "atoms", "coefficients", "residuals"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))
