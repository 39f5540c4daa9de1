"""Lloyd-Max codebooks against fixed points found another way."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from weightsmith.deltas.codecs.codebook import fitted_codebook
from weightsmith.deltas.codecs.delta_codec import bins_of, histogram_of


def fitted(values: np.ndarray, count: int):
    return fitted_codebook(histogram_of(iter([values])), count)


def lost(values: np.ndarray, levels: np.ndarray) -> float:
    """The squared error if each value takes the nearest level, in float64."""
    gaps = np.abs(values.astype(np.float64)[:, None] - levels.astype(np.float64))
    return float(np.square(gaps.min(axis=1)).mean())


def iterated(values: np.ndarray, count: int) -> np.ndarray:
    """Lloyd's iteration on the values themselves."""
    wide = values.astype(np.float64)
    levels = np.quantile(wide, (np.arange(count) + 0.5) / count)
    for _ in range(3000):
        nearest = np.abs(wide[:, None] - levels).argmin(axis=1)
        moved = np.array([wide[nearest == i].mean() for i in range(count)])
        if np.abs(moved - levels).max() < 1e-9:
            break
        levels = moved
    return levels


# What a density has beyond x >= 0: its share, and its share times its mean.
TAILS = {
    "norm": (stats.norm.sf, stats.norm.pdf),
    "laplace": (stats.laplace.sf, lambda x: (x + 1) * np.exp(-x) / 2),
}


def density_fixed_point(law: str, count: int) -> np.ndarray:
    """The levels of a density, mirrored from its positive half; `count` is even."""
    share, moment = TAILS[law]
    levels = np.linspace(0.3, 2.5, count // 2)
    for _ in range(1000):
        edges = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2, [40.0]])
        levels = np.diff(moment(edges)) / np.diff(share(edges))
    return np.concatenate([-levels[::-1], levels])


@pytest.mark.parametrize("count", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["normal", "laplace"])
def test_the_error_is_that_of_lloyds_iteration_on_the_values(kind, count):
    values = getattr(np.random.default_rng(0), kind)(size=4000).astype(np.float32)
    codebook = fitted(values, count)
    reference = iterated(values, count)
    assert lost(values, codebook.levels) == pytest.approx(lost(values, reference), rel=2e-3)


@pytest.mark.parametrize("count", [2, 4, 8, 16])
@pytest.mark.parametrize("law", TAILS)
def test_levels_of_many_values_are_those_of_their_density(law, count):
    quantiles = (np.arange(200_000) + 0.5) / 200_000
    values = getattr(stats, law).ppf(quantiles).astype(np.float32)
    np.testing.assert_allclose(
        fitted(values, count).levels, density_fixed_point(law, count), rtol=0.005
    )


def test_each_level_is_the_mean_of_the_values_that_take_it():
    values = np.random.default_rng(1).standard_t(3, size=20_000).astype(np.float32)
    codebook = fitted(values, 8)
    codes = codebook.codes(values)
    means = [values[codes == i].mean(dtype=np.float64) for i in range(8)]
    np.testing.assert_allclose(codebook.levels, means, rtol=1e-6)
    assert (np.diff(codebook.levels) > 0).all()


def test_codes_rise_with_values():
    values = np.sort(np.random.default_rng(2).normal(size=5000).astype(np.float32))
    assert (np.diff(fitted(values, 16).codes(values).astype(int)) >= 0).all()


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [2.0, -3.0], [0.0, 0.0, 1.0, 4.0]])
def test_no_more_values_than_levels_are_kept_exactly(values):
    array = np.array(values, np.float32)
    codebook = fitted(array, 4)
    assert np.isfinite(codebook.levels).all()
    np.testing.assert_array_equal(codebook.levels[codebook.codes(array)], array)


def test_scale_does_not_matter():
    values = np.random.default_rng(3).normal(size=10_000).astype(np.float32)
    small = fitted(values * np.float32(2.0**-30), 4).levels
    np.testing.assert_array_equal(small, fitted(values, 4).levels * np.float32(2.0**-30))


def test_bins_are_in_the_order_of_values():
    values = np.array([-np.inf, -2, -1, -1e-45, 0.0, 1e-38, 1, 1.5, 3e38, np.inf], np.float32)
    bins = bins_of(values).astype(int)
    assert (np.diff(bins) >= 0).all()
    assert bins[3] < bins[4]
