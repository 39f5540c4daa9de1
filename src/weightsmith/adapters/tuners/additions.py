"""DeLoRA, MiSS, SHiRA and FourierFT: changes that are added to a weight, in forms of their own.

DeLoRA (Bini et al. 2025, arXiv:2503.18225): D = lambda / r B diag(1 / (|a_i| |b_i|)) A diag(w), w being the norms of
the base's columns. MiSS (Kang & Yin 2024, arXiv:2409.15371): every stretch of r columns changes alike, by a block of
outputs x r; with `bat` W_ij changes by W_ij B_i + B_i. SHiRA (Bhardwaj et al. 2024, arXiv:2406.13175): single elements
change. FourierFT (Gao et al. 2024, arXiv:2405.03003): D = s Re(IDFT(F)) with few coefficients F.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightsmith.adapters.adapter import Update
from weightsmith.adapters.effects import Effect, TargetTensor
from weightsmith.adapters.torch_numbers import LONGEST_PERMUTATION, TorchGenerator
from weightsmith.adapters.tuners.module_tensors import Array, ModuleTensors, check_shape, vector
from weightsmith.adapters.updates import finite, together, wrong
from weightsmith.deltas import BlockAffine, Change, LowRankChange, SparseChange
from weightsmith.errors import CompatibilityError
from weightsmith.tensors import LazyTensor

# Norms below this count as this in PEFT.
_SMALLEST_NORM = 1e-4


def bounded(tensors: ModuleTensors) -> list[Update]:
    """DeLoRA: A is r x inputs, B outputs x r, lambda one number, `delora_w_norm` w."""
    down, up, bound, norms = tensors.needed(
        "delora_A", "delora_B", "delora_lambda", "delora_w_norm"
    )
    check_shape(down, (None, None))
    rank, inputs = down.shape
    check_shape(up, (None, rank))
    check_shape(bound, (1,))
    check_shape(norms, (inputs,))

    def effect(target: TargetTensor) -> Effect:
        target.matrix(down, up.shape[0], inputs, turned=None)

        def load() -> Change:
            a, b = finite(down), finite(up)
            lengths = np.maximum(np.linalg.norm(a, axis=1), _SMALLEST_NORM)
            lengths *= np.maximum(np.linalg.norm(b, axis=0), _SMALLEST_NORM)
            return LowRankChange(b * (vector(bound) / rank / lengths), a * vector(norms))

        return Effect(load=load)

    return [tensors.update((down, up, bound, norms), effect, rank=rank)]


def sharded(tensors: ModuleTensors) -> list[Update]:
    """MiSS: `miss_block` is r x outputs; r x `mini_r`, repeated to all outputs, with `mini`; B_i with `bat`."""
    (block,) = tensors.needed("miss_block")
    variant = tensors.config.content.get("init_weights")
    if variant == "bat":
        return [tensors.update((block,), _blockwise(block))]
    check_shape(block, (None, None))
    rank, outputs = block.shape

    def effect(target: TargetTensor) -> Effect:
        found = target.matrix(block, None if variant == "mini" else outputs, turned=None)
        times, rest = divmod(found.outputs, outputs)
        if rest or rank > found.inputs:
            raise _of_another(target, block)

        def load() -> Change:
            places = np.arange(found.inputs) % rank
            repeated = np.equal.outer(np.arange(rank), places).astype(np.float64)
            return LowRankChange(np.tile(finite(block), times).T, repeated)

        return Effect(load=load)

    return [tensors.update((block,), effect, rank=rank)]


def _blockwise(block: LazyTensor) -> Callable[[TargetTensor], Effect]:
    check_shape(block, (None, None, None))
    count, size, _ = block.shape
    check_shape(block, (count, size, size))

    def effect(target: TargetTensor) -> Effect:
        found = target.matrix(block, count * size, turned=None)
        if found.inputs % size:
            raise _of_another(target, block)
        return Effect(rewrite=lambda: BlockAffine(found.shape, finite(block)))

    return effect


def sparse(tensors: ModuleTensors) -> list[Update]:
    """SHiRA: `shira_weight` has the changes, `shira_indices` (2 x as many) the outputs and inputs that they are at."""
    indices, values = together(tensors.target, tensors.parts, ("shira_indices", "shira_weight"))
    tensors.needed("shira_weight")
    check_shape(values, (None,))
    check_shape(indices, (2, values.numel))

    def effect(target: TargetTensor) -> Effect:
        found = target.matrix(indices, turned=None)

        def load() -> Change:
            rows, columns = _integers(indices)
            if (
                min(rows.min(), columns.min()) < 0
                or rows.max() >= found.outputs
                or columns.max() >= found.inputs
            ):
                raise _of_another(target, indices)
            places = rows * found.inputs + columns
            order = np.argsort(places, kind="stable")
            if (np.diff(places[order]) == 0).any():
                raise wrong(
                    f"{indices.location} names an element twice",
                    "the adapter is damaged, fetch it again",
                )
            return SparseChange(found.shape, places[order], finite(values)[order])

        return Effect(load=load)

    return [tensors.update((indices, values), effect)]


def _integers(indices: LazyTensor) -> NDArray[np.int64]:
    """Stored indices; PEFT writes them as float32 on Windows."""
    if indices.dtype.is_float:
        return finite(indices).astype(np.int64)
    data = np.empty(indices.nbytes, np.uint8)
    indices.read_into(0, indices.numel, data.data)
    return data.view(f"<i{indices.dtype.itemsize}").astype(np.int64).reshape(indices.shape)


def spectral(tensors: ModuleTensors) -> list[Update]:
    """FourierFT: `fourierft_spectrum` has coefficients for places that follow from `random_loc_seed`."""
    (spectrum,) = tensors.needed("fourierft_spectrum")
    check_shape(spectrum, (None,))
    scale = tensors.config.number("scaling", 150.0)
    seed = int(tensors.config.number("random_loc_seed", 777))

    def effect(target: TargetTensor) -> Effect:
        found = target.matrix(spectrum, turned=tensors.config.fan_in_fan_out)
        if spectrum.numel > found.outputs * found.inputs:
            raise _of_another(target, spectrum)
        numbers = found.outputs * found.inputs
        if numbers > LONGEST_PERMUTATION:
            raise CompatibilityError(
                f"{target.tensor.location} has {numbers:,} elements, and the places of {spectrum.location} in so many "
                "are not written and drawn in another way by torch: merge the adapter with PEFT."
            )

        def load() -> Change:
            places = TorchGenerator(seed).first_of_permutation(numbers, spectrum.numel)
            first, second = np.divmod(places, found.inputs)
            # The transform of a transposed spectrum is the transpose.
            pair = (second, first) if found.turned else (first, second)
            return FourierChange(found.shape, *pair, finite(spectrum), scale)

        return Effect(load=load, turned=found.turned)

    return [tensors.update((spectrum,), effect, scale=scale)]


@dataclass(frozen=True, slots=True, eq=False)
class FourierChange:
    """scale * Re(IDFT(F)), F having `values` at (`first`, `second`) and else 0, row by row."""

    shape: tuple[int, int]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    values: Array
    scale: float

    def rows(self, start: int, stop: int) -> Array:
        """Rows [start, stop), whole."""
        rows, columns = self.shape
        order = np.argsort(self.second, kind="stable")
        kept, begins = np.unique(self.second[order], return_index=True)
        # Whole turns are taken off first, so that angles keep their digits.
        turns = np.outer(np.arange(start, stop), self.first[order]) % rows
        terms = self.values[order] * np.exp(2j * np.pi * turns / rows)
        lines = np.zeros((stop - start, columns), np.complex128)
        lines[:, kept] = np.add.reduceat(terms, begins, axis=1)
        found: Array = np.fft.ifft(lines, axis=1).real * (self.scale / rows)
        return found


def _of_another(target: TargetTensor, source: LazyTensor) -> CompatibilityError:
    return CompatibilityError(
        f"{target.tensor.location} has the shape {list(target.shape)}, for which {source.location} of shape "
        f"{list(source.shape)} is not: give the base that the adapter was trained on."
    )
