"""Singular directions in bands of falling precision (Delta-CoMe; Ping et al. 2024, arXiv:2406.08903), really packed.

    change = sum_i s_i u_i v_i^T      direction i in b_i of 8, 4, 3, 2 or 1 bits

A direction in b bits adds s^2 (1 - (1 - D_b)^2) to the squared error, D_b being the distortion of a Lloyd-Max codebook
for a Gaussian, which the elements of a direction nearly are; bits are given where they take most error away per bit,
until the budget is spent. Each band has one codebook for the left and one for the right directions, which are scaled to
unit mean square: Lloyd-Max up to 4 bits, evenly spaced between the extremes for 8. No calibration.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.deltas.codecs.codebook import fitted_codebook
from weightsmith.deltas.codecs.codec import CodecChoice, Encoded, Parameters, StoredChange
from weightsmith.deltas.codecs.coded_streams import BlockStream, joined
from weightsmith.deltas.codecs.codes import Codes, packed_codes, plain_bytes, unpacked_codes
from weightsmith.deltas.codecs.delta_codec import Delta, histogram_of
from weightsmith.deltas.codecs.directions import significant_rank
from weightsmith.deltas.codecs.low_rank_codec import on_product
from weightsmith.errors import UsageError
from weightsmith.tensors import DType, LazyTensor, matrix_shape

# Bits of a band, and the mean squared error that they leave of a Gaussian of unit variance.
_DISTORTION = {8: 1e-4, 4: 0.009497, 3: 0.03454, 2: 0.1175, 1: 0.3634}
_BITS = tuple(_DISTORTION)
_BUDGETS = (0.125, 0.25, 0.5, 1.0, 2.0)
# Bits of a direction's strength, and of all codebooks and of the table where every band is used.
_STRENGTH = 32
_OVERHEAD = 2 * 32 * (2 + 16 + 8 + 4 + 2) + 2 * 32 * len(_BITS)
_STREAM = ("codes", "table")


@dataclass(frozen=True, slots=True)
class Band:
    """Directions [start, stop) in so many bits per number."""

    start: int
    stop: int
    bits: int


class Banded:
    """Quantised singular directions."""

    name = "banded"

    def choices(self, delta: Delta) -> Sequence[CodecChoice]:
        """Several numbers of bits per element of the change."""
        rows, columns = delta.matrix
        fits = [b for b in _BUDGETS if b * rows * columns >= 2 * (rows + columns)]
        return [CodecChoice(self.name, {"bits": bits}) for bits in fits]

    def encode(self, delta: Delta, settings: Parameters) -> Encoded:
        """Settings: bits per element of the change, or bands, a list of [directions, bits] from the strongest on."""
        found = delta.directions
        bands = _wanted_bands(delta, settings)
        left = found.left.T * math.sqrt(found.left.shape[0])
        right = found.right * math.sqrt(found.right.shape[1])
        blocks, codebooks = [], []
        for band in bands:
            coded = [_coded(side[band.start : band.stop], band.bits) for side in (left, right)]
            blocks.append([piece for piece, _ in coded])
            codebooks += [levels for _, levels in coded]
        kept = bands[-1].stop
        scale = 1 / math.sqrt(delta.numel)
        stream, table = joined(blocks, 2)
        parts: dict[str, NDArray[Any]] = {
            "strengths": (found.values[:kept] * scale).astype(np.float32),
            "codebooks": np.concatenate(codebooks),
            "codes": stream,
            "table": table,
        }
        return Encoded(self.name, {"bands": [[b.stop - b.start, b.bits] for b in bands]}, parts)

    def decoded(self, stored: StoredChange) -> LazyTensor:
        """base + the sum of the directions, in float64."""
        rows, columns = matrix_shape(stored.shape)
        bands = _stored_bands(stored, min(rows, columns))
        kept = bands[-1].stop
        strengths = stored.array("strengths", DType.FLOAT32, (kept,)).astype(np.float64)
        sizes = [2 if b.bits == 8 else 1 << b.bits for b in bands for _ in range(2)]
        codebooks = stored.array("codebooks", DType.FLOAT32, (sum(sizes),))
        levels = np.split(codebooks, np.cumsum(sizes)[:-1])
        limits = np.array(
            [
                [plain_bytes((b.stop - b.start) * n, 1 << b.bits) for n in (rows, columns)]
                for b in bands
            ]
        )
        stream = BlockStream(stored, _STREAM, (0, 2), len(bands), lambda _table: limits)

        def side(number: int) -> NDArray[np.float64]:
            """Rows are directions for both sides; 0 is left, 1 right."""
            length = (rows, columns)[number]
            found = []
            for i, band in enumerate(bands):
                count = (band.stop - band.start) * length
                codes = unpacked_codes(stream.block(i)[number], count, 1 << band.bits)
                if codes is None:
                    raise stored.damaged(f"cannot be decompressed in band {i}")
                values = _band_levels(levels[2 * i + number], band.bits)[codes]
                found.append(values.reshape(-1, length))
            return np.concatenate(found).astype(np.float64)

        return on_product(stored, lambda: side(0).T * strengths, lambda: side(1))


def bands_for(strengths: NDArray[np.float64], cost: int, budget: int) -> list[Band]:
    """Bands that take most error away with `budget` bits in all, `cost` being the numbers that one direction has.

    Steps along each direction's curve of error by bits, which is convex, are taken in the order of their gain per bit.
    """
    steps = _steps()
    gains = np.square(strengths)[:, None] * np.array([gain for _, gain in steps])
    widths = np.tile(np.array([width for width, _ in steps]), (len(strengths), 1))
    order = np.argsort(-gains, axis=None, kind="stable")
    costs = widths * cost
    costs[:, 0] += _STRENGTH
    spent = np.cumsum(costs.reshape(-1)[order]) + _OVERHEAD
    taken = np.zeros(gains.size, np.bool_)
    taken[order[: np.searchsorted(spent, budget, side="right")]] = True
    bits = ((taken.reshape(gains.shape) & (gains > 0)) * widths).sum(axis=1)
    return _bands_of(bits)


def _steps() -> list[tuple[int, float]]:
    """Bits added and error taken away per bit, from nothing to the finest band."""
    levels = [(0, 1.0)]
    levels += [(bits, 1 - (1 - _DISTORTION[bits]) ** 2) for bits in sorted(_BITS)]
    return [
        (b - a, (before - after) / (b - a))
        for (a, before), (b, after) in itertools.pairwise(levels)
    ]


def _bands_of(bits: NDArray[np.int64]) -> list[Band]:
    """Runs of equal bits; they never rise, for strengths fall."""
    found = [
        Band(int(np.searchsorted(-bits, -b)), int(np.searchsorted(-bits, -b, side="right")), b)
        for b in _BITS
    ]
    return [band for band in found if band.start < band.stop]


def _wanted_bands(delta: Delta, settings: Parameters) -> list[Band]:
    strengths = delta.directions.values
    listed = settings.get("bands")
    if listed is not None:
        found = _parsed(listed, len(strengths))
        if found is None:
            raise UsageError(
                f"{listed!r} are no bands for {delta.target.location}: give [directions, bits] with bits among "
                f"{', '.join(str(b) for b in _BITS)} and at most {len(strengths)} directions in all."
            )
        return found
    bits = settings.get("bits")
    if not isinstance(bits, (int, float)) or not bits > 0:
        raise UsageError(f"{bits!r} is no number of bits per element: give one above 0.")
    rows, columns = delta.matrix
    known = strengths[: significant_rank(delta.directions)]
    found = bands_for(known, rows + columns, int(bits * delta.numel))
    return found or [Band(0, 1, min(_BITS))]


def _stored_bands(stored: StoredChange, most: int) -> list[Band]:
    found = _parsed(stored.parameters.get("bands"), most)
    if found is None:
        raise stored.damaged("has bands that its shape does not allow")
    return found


def _parsed(listed: object, most: int) -> list[Band] | None:
    if not isinstance(listed, (list, tuple)) or not 1 <= len(listed) <= most:
        return None
    found: list[Band] = []
    for entry in listed:
        if not isinstance(entry, (list, tuple)) or [type(n) for n in entry] != [int, int]:
            return None
        start = found[-1].stop if found else 0
        found.append(Band(start, start + entry[0], entry[1]))
        if entry[0] < 1 or entry[1] not in _BITS:
            return None
    return found if found[-1].stop <= most else None


def _coded(side: NDArray[np.float64], bits: int) -> tuple[bytes, NDArray[np.float32]]:
    """The codes of a band's directions, one after the other, and what its levels are made of."""
    values = np.ascontiguousarray(side, np.float32).reshape(-1)
    if bits == 8:
        ends = np.array([values.min(), values.max()], np.float32)
        return packed_codes(_evenly(values, ends), 256), ends
    codebook = fitted_codebook(histogram_of(iter([values])), 1 << bits)
    return packed_codes(codebook.codes(values), 1 << bits), codebook.levels


def _evenly(values: NDArray[np.float32], ends: NDArray[np.float32]) -> Codes:
    width = (float(ends[1]) - float(ends[0])) / 255 or 1.0
    codes: Codes = np.rint((values - float(ends[0])) / width).astype(np.uint8)
    return codes


def _band_levels(levels: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    if bits != 8:
        return levels
    return np.linspace(float(levels[0]), float(levels[1]), 256).astype(np.float32)
