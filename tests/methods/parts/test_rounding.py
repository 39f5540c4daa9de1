"""Task vectors of weights that were stored in few digits: what is rounding in them is neither found nor amplified."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from weightsmith.methods.parts.rounding import (
    EXACT,
    Rounding,
    noise_of_sum,
    noise_side_by_side,
    rounding_of,
    shares_alike,
)
from weightsmith.tensors.dtypes import DType

NARROW = [DType.BFLOAT16, DType.FLOAT16]
SPECTRAL = ["iso_c", "iso_cts", "tsv_m", "resm", "opcm", "truncate", "doge", "wudi"]


def stored_as(array, dtype):
    """Rounded to the dtype, in float32, which holds all of them."""
    torch_dtype = getattr(torch, dtype.value)
    return torch.from_numpy(np.asarray(array)).to(torch_dtype).to(torch.float32).numpy()


def family(dtype, share, rank=None, shape=(96, 80), tasks=3, seed=0):
    """A base in the dtype, and changes of a rank whose length is a share of the base's, both in float64."""
    rng = np.random.default_rng(seed)
    base = stored_as(rng.normal(size=shape) * 0.05, dtype).astype(np.float64)
    taus = []
    for _ in range(tasks):
        tau = rng.normal(size=shape)
        if rank is not None:
            tau = rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1]))
        taus.append(tau * share * np.linalg.norm(base) / np.linalg.norm(tau))
    return base, taus


def from_stored(merge, name, base, taus, dtype, **how):
    experts = [stored_as(base + tau, dtype) for tau in taus]
    merged = merge(name, base.astype(np.float32), experts, stored=dtype, **how)
    return merged.astype(np.float64) - base


def rank_of(matrix, share=1e-3):
    values = np.linalg.svd(matrix, compute_uv=False)
    return int((values > share * values[0]).sum())


# The estimate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(200, 200), (40, 300), (12, 9)])
@pytest.mark.parametrize("drawn", ["normal", "uniform", "alike"])
@pytest.mark.parametrize("dtype", [*NARROW, DType.FLOAT32])
def test_errors_are_estimated_within_a_third(shape, drawn, dtype):
    """`alike`: all just above a power of two, where a unit is the largest share of a number."""
    rng = np.random.default_rng(1)
    weights = {
        "normal": rng.normal(size=shape) * 0.02,
        "uniform": rng.uniform(-0.3, 0.3, size=shape),
        "alike": 1.0 + 0.1 * rng.random(shape),
    }[drawn]
    base, stored = stored_as(weights * 0.9, dtype), stored_as(weights, dtype)
    found = rounding_of(np, base, stored - base, dtype)
    errors = stored.astype(np.float64) - weights
    assert found.error == pytest.approx(np.sqrt(np.mean(errors**2)), rel=0.2)
    largest = np.linalg.svd(errors, compute_uv=False)[0]
    most = 1.35 if min(shape) > 20 else 1.6
    assert 0.98 * largest < found.strength < most * largest
    lengths = np.sqrt((errors**2).sum(1))
    assert lengths.max() < found.row_length


UNEVEN = {
    "equal": lambda rng, m, n: np.full((m, n), 1.0) + 0.3 * rng.random((m, n)),
    "normal": lambda rng, m, n: 0.05 * rng.normal(size=(m, n)),
    "heavy tails": lambda rng, m, n: 0.03 * rng.standard_t(3, size=(m, n)),
    "rows": lambda rng, m, n: 0.05 * rng.normal(size=(m, n)) * np.exp(rng.normal(size=(m, 1)) / 2),
    "columns": lambda rng, m, n: 0.05 * rng.normal(size=(m, n)) * np.exp(rng.normal(size=(1, n))),
    "both": lambda rng, m, n: (
        0.05 * rng.normal(size=(m, n)) * np.exp(0.3 * rng.normal(size=(m, 1)) * rng.normal(size=n))
    ),
    "one column": lambda rng, m, n: (
        0.05 * rng.normal(size=(m, n)) * (1 + 19.0 * (np.arange(n) < 1))
    ),
}


@pytest.mark.parametrize("of", list(UNEVEN))
@pytest.mark.parametrize("shape", [(24, 24), (32, 48), (16, 64)])
def test_errors_of_small_matrices_of_any_kind_are_not_above_the_estimate(of, shape):
    """Of 200, two may be: e (sqrt m + sqrt n) with a margin of a tenth missed up to all of the uneven ones."""
    rng = np.random.default_rng(5)
    missed, tightest = 0, np.inf
    for _ in range(200):
        weights = UNEVEN[of](rng, *shape)
        base = stored_as(weights * (0.7 + 0.1 * rng.random(shape)), DType.BFLOAT16)
        stored = stored_as(weights, DType.BFLOAT16)
        largest = np.linalg.norm(stored.astype(np.float64) - weights, 2)
        found = rounding_of(np, base, stored - base, DType.BFLOAT16).strength
        missed += largest > found
        tightest = min(tightest, found / largest)
    assert missed <= 2
    assert tightest < 1.3  # the estimate is no bound that nothing comes near


@pytest.mark.parametrize("of", ["rows", "columns", "one column"])
def test_no_direction_is_made_of_rounding_where_weights_are_uneven(merge, of):
    """A change of rank 4 in a matrix with small and large rows has four directions, of one strength in iso_c."""
    rng = np.random.default_rng(6)
    for _ in range(2):
        base = stored_as(UNEVEN[of](rng, 48, 40), DType.BFLOAT16).astype(np.float64)
        tau = rng.normal(size=(48, 4)) @ rng.normal(size=(4, 40))
        tau *= 0.5 * np.linalg.norm(base) / np.linalg.norm(tau)
        found = from_stored(merge, "iso_c", base, [tau], DType.BFLOAT16)
        assert rank_of(found) == 4


@pytest.mark.parametrize(("step", "alike"), [(0.0, "same"), (1e-3, "near"), (0.5, "apart")])
def test_errors_of_several_tasks_add_up_as_far_as_they_are_alike(step, alike):
    rng = np.random.default_rng(1)
    base = stored_as(rng.normal(size=(120, 90)), DType.BFLOAT16)
    tau = 0.3 * rng.normal(size=base.shape)
    exact = [base + tau, base + tau + step * rng.normal(size=base.shape)]
    stored = [stored_as(x, DType.BFLOAT16) for x in exact]
    deltas = [x - base for x in stored]
    errors = [s.astype(np.float64) - x for s, x in zip(stored, exact, strict=True)]
    parts = [rounding_of(np, base, d, DType.BFLOAT16) for d in deltas]
    shares = shares_alike(deltas, parts)
    for weights in ((1.0, 1.0), (2.0, 0.5), (1.0, -1.0)):
        summed = sum(w * e for w, e in zip(weights, errors, strict=True))
        largest = np.linalg.svd(summed, compute_uv=False)[0]
        found = noise_of_sum(parts, weights, shares)
        if alike == "same" and weights == (1.0, -1.0):
            assert found == largest == 0.0
        elif weights != (1.0, -1.0) or alike == "apart":
            # Errors that are alike in part are no independent ones, and their longest rows may be others.
            assert largest < found < 1.35 * largest
    beside = np.linalg.svd(np.concatenate(errors, 1), compute_uv=False)[0]
    assert beside < noise_side_by_side(parts, shares) < 1.3 * beside


def test_long_rows_of_errors_that_lie_side_by_side_are_one_row():
    """Of [E_1 E_2] with rows of length 3 and 4 it has length 5; the longest column is that of either."""
    parts = [
        Rounding(error=0.1, rows=4, columns=9, longest_row=3.0, longest_column=0.5),
        Rounding(error=0.1, rows=4, columns=9, longest_row=4.0, longest_column=0.25),
    ]
    assert noise_side_by_side(parts, [[1.0, 0.0], [0.0, 1.0]]) == pytest.approx(5.0 + 0.5)


def test_rows_and_columns_that_were_left_alone_have_no_errors():
    rng = np.random.default_rng(2)
    base = stored_as(rng.normal(size=(60, 40)), DType.BFLOAT16)
    delta = np.zeros_like(base)
    assert rounding_of(np, base, delta, DType.BFLOAT16) == EXACT
    delta[5:15, 20:] = stored_as(base[5:15, 20:] * 1.1, DType.BFLOAT16) - base[5:15, 20:]
    found = rounding_of(np, base, delta, DType.BFLOAT16)
    alone = rounding_of(np, base[5:15, 20:], delta[5:15, 20:], DType.BFLOAT16)
    assert (found.rows, found.columns) == (10, 20)
    # What float64 adds goes by the size of the whole matrix.
    assert replace(found, arithmetic=0.0) == replace(alone, arithmetic=0.0)


def test_small_numbers_in_float16_have_the_unit_of_the_smallest_normal_one():
    weights = np.random.default_rng(3).normal(size=(50, 50)) * 1e-6
    stored = stored_as(weights, DType.FLOAT16)
    found = rounding_of(np, np.zeros_like(stored), stored, DType.FLOAT16)
    assert found.error == pytest.approx(np.sqrt(np.mean((stored - weights) ** 2)), rel=0.1)


@pytest.mark.parametrize(
    ("dtype", "stored"), [(np.float32, DType.FLOAT32), (np.float64, DType.FLOAT64)]
)
def test_the_array_library_makes_no_difference_and_gradients_none_either(dtype, stored):
    rng = np.random.default_rng(4)
    base, delta = rng.normal(size=(2, 20, 30)).astype(dtype)
    delta[3] = 0.0
    delta[0, 0] = -base[0, 0]
    mine = rounding_of(np, base, delta, stored)
    theirs = rounding_of(
        torch, torch.from_numpy(base), torch.from_numpy(delta).requires_grad_(), stored
    )
    assert mine.error == pytest.approx(theirs.error, rel=1e-12)
    assert mine.rows == theirs.rows == 19
    assert mine.error < 30 * np.finfo(dtype).eps


# Methods --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECTRAL)
@pytest.mark.parametrize("rank", [4, 16])
@pytest.mark.parametrize(
    ("dtype", "share"),
    [(DType.BFLOAT16, 0.1), (DType.FLOAT16, 0.01), (DType.FLOAT32, 1e-4)],
)
def test_an_adapter_folded_into_stored_weights_merges_as_the_adapter_does(
    merge, name, rank, dtype, share
):
    """Taken for changes, rounding had up to 90 % of the result's energy (and for doge, all)."""
    base, taus = family(dtype, share, rank)
    how = {"shared": {"density": 1.0}} if name == "doge" else {}
    exact = merge(name, base, [base + tau for tau in taus], **how) - base
    found = from_stored(merge, name, base, taus, dtype, **how)
    assert np.linalg.norm(found - exact) < 0.05 * np.linalg.norm(exact)


@pytest.mark.parametrize("name", ["iso_c", "iso_cts", "tsv_m", "knots", "opcm"])
@pytest.mark.parametrize("share", [0.3, 0.05])
def test_no_strength_goes_into_directions_that_are_rounding(merge, name, share):
    base, taus = family(DType.BFLOAT16, share, 4, (128, 128))
    found = from_stored(merge, name, base, taus, DType.BFLOAT16)
    columns = np.linalg.svd(np.concatenate(taus, 1))[0][:, :12]
    outside = found - columns @ (columns.T @ found)
    assert np.sum(outside**2) < 3e-3 * np.sum(found**2)
    if name != "opcm":
        assert rank_of(found) <= 12


def test_knots_counts_the_coefficients_of_real_directions_only(merge):
    """Three tasks have 12 directions of 128: a tenth of 128 x 128 is more than there is, and trims nothing."""
    base, taus = family(DType.BFLOAT16, 0.2, 4, (128, 128))
    exact, found = (
        [
            from_stored(merge, "knots", base, taus, dtype, shared={"density": density})
            if dtype is DType.BFLOAT16
            else merge("knots", base, [base + t for t in taus], shared={"density": density}) - base
            for density in (0.1, 1.0)
        ]
        for dtype in (DType.FLOAT64, DType.BFLOAT16)
    )
    for few, every in (exact, found):
        assert np.linalg.norm(few - every) > 0.3 * np.linalg.norm(every)
    assert np.linalg.norm(found[0] - exact[0]) < 0.3 * np.linalg.norm(exact[0])


@pytest.mark.parametrize("name", ["tsv_m", "iso_cts"])
def test_experts_that_differ_by_their_rounding_are_one(merge, name):
    """The directions in which two copies of one change differ are rounding, and had the strength of the change."""
    base, (tau, *_) = family(DType.BFLOAT16, 0.1, 4)
    taus = [tau, tau * 1.01]
    exact = merge(name, base, [base + t for t in taus]) - base
    found = from_stored(merge, name, base, taus, DType.BFLOAT16)
    assert np.linalg.norm(found - exact) < 0.05 * np.linalg.norm(exact)


@pytest.mark.parametrize("name", ["iso_c", "tsv_m", "truncate"])
def test_a_full_change_well_above_its_rounding_is_left_as_it_is(merge, name):
    base, taus = family(DType.BFLOAT16, 0.2)
    shared = {"rank_share": 1.0} if name == "tsv_m" else {}
    found = from_stored(merge, name, base, taus, DType.BFLOAT16, shared=shared)
    exactly = from_stored(
        merge, name, base, taus, DType.BFLOAT16, shared={**shared, "rank_tolerance": 0.0}
    )
    # Of 80 directions those below 2 % of the strongest, which are no more than rounding.
    assert np.linalg.norm(found - exactly) < 0.25 * np.linalg.norm(exactly)
    if name == "iso_c":
        assert rank_of(found) >= 76


@pytest.mark.parametrize("name", ["iso_c", "iso_cts", "tsv_m", "resm", "opcm", "truncate", "knots"])
def test_full_changes_in_float32_merge_as_with_the_precision_alone(merge, name):
    base, taus = family(DType.FLOAT32, 0.01)
    found = from_stored(merge, name, base, taus, DType.FLOAT32)
    tolerance = {"rank_tolerance": 96 * float(np.finfo(np.float32).eps)}
    alone = from_stored(merge, name, base, taus, DType.FLOAT32, shared=tolerance)
    np.testing.assert_allclose(found, alone, rtol=0, atol=1e-7 * np.abs(base).max())


@pytest.mark.parametrize("tolerance", [0.0, 1e-5])
def test_a_given_tolerance_is_the_papers_rule(merge, tolerance):
    base, taus = family(DType.BFLOAT16, 0.1, 4)
    rounded = [stored_as(base + tau, DType.BFLOAT16).astype(np.float64) - base for tau in taus]
    u, s, v = np.linalg.svd(sum(rounded), full_matrices=False)
    shared = {"rank_tolerance": tolerance}
    found = from_stored(merge, "iso_c", base, taus, DType.BFLOAT16, shared=shared)
    np.testing.assert_allclose(found, s.mean() * u @ v, atol=1e-6)


@pytest.mark.parametrize("name", ["iso_c", "iso_cts", "tsv_m", "resm", "opcm", "knots", "truncate"])
def test_task_vectors_that_are_rounding_alone_are_merged_without_being_amplified(merge, name):
    """One in 25 weights is off by one unit: no direction is above what rounding makes."""
    rng = np.random.default_rng(5)
    base = stored_as(
        rng.choice([-1, 1], (64, 48)) * rng.uniform(1.1, 1.9, (64, 48)), DType.BFLOAT16
    )
    unit = 2.0 ** (np.frexp(base)[1] - 8)
    flips = [rng.choice([-1.0, 0.0, 1.0], p=[0.02, 0.96, 0.02], size=base.shape) for _ in "ab"]
    experts = [(base + f * unit).astype(np.float32) for f in flips]
    how = {"shared": {"density": 1.0}} if name == "knots" else {}
    merged = merge(name, base, experts, stored=DType.BFLOAT16, **how)
    found, plain = merged.astype(np.float64) - base, sum(experts).astype(np.float64) - 2 * base
    if name in ("iso_c", "iso_cts"):
        np.testing.assert_allclose(found, plain, atol=1e-6)
    largest = np.linalg.svd(plain, compute_uv=False)[0]
    assert 0 < np.linalg.svd(found, compute_uv=False)[0] < 1.2 * largest


def test_a_task_of_rounding_alone_does_not_disturb_the_directions_of_others(merge):
    base, (tau,) = family(DType.BFLOAT16, 0.2, 4, tasks=1)
    rng = np.random.default_rng(6)
    expert = stored_as(base + tau, DType.BFLOAT16)
    flips = rng.choice([-1.0, 0.0, 1.0], p=[0.02, 0.96, 0.02], size=base.shape)
    noise = flips * 2.0 ** (np.frexp(base)[1] - 8)
    small = base.astype(np.float32)
    facts = {"stored": DType.BFLOAT16, "shared": {"rank_share": 0.5}}
    both = merge("tsv_m", small, [expert, (base + noise).astype(np.float32)], **facts)
    alone = merge("tsv_m", small, [expert], **facts)
    u, s, v = np.linalg.svd(noise, full_matrices=False)
    np.testing.assert_allclose(both - alone, (u[:, :40] * s[:40]) @ v[:40], atol=1e-6)
