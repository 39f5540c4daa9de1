"""VeRA and RandLoRA, whose factors are random and shared by all modules, and scaled by what is trained.

VeRA (Kopiczko et al. 2024, arXiv:2310.11454): D = diag(b) B diag(d) A, of whose B and A each module takes the first
rows and columns. RandLoRA (Albert et al. 2025, arXiv:2502.00987): D = s sum_n B_n diag(lambda_n) A diag(gamma_n) for
n = 1 .. smaller side / r, s = alpha / r, and its transpose where there are fewer outputs than inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from weightsmith.adapters.adapter import Update
from weightsmith.adapters.effects import Effect, TargetTensor
from weightsmith.adapters.torch_numbers import TorchGenerator
from weightsmith.adapters.tuners.module_tensors import Array, ModuleTensors, check_shape, vector
from weightsmith.adapters.updates import finite, require_floats, wrong
from weightsmith.deltas import Change, LowRankChange, transposed
from weightsmith.errors import CompatibilityError
from weightsmith.tensors import LazyTensor, shown


def projected(tensors: ModuleTensors) -> list[Update]:
    """VeRA: `vera_lambda_b` has a number for each output, `vera_lambda_d` one for each rank.

    Projections that are not stored (`save_projection` false) are drawn again as PEFT draws them.
    """
    by_output, by_rank = tensors.needed("vera_lambda_b", "vera_lambda_d")
    shared = _shared(tensors, "vera_A", "vera_B")
    rank = by_rank.numel
    key = int(tensors.config.number("projection_prng_key", 0))
    if shared is not None:
        check_shape(shared[0], (rank, None))
        check_shape(shared[1], (None, rank))

    def effect(target: TargetTensor) -> Effect:
        turned = tensors.config.fan_in_fan_out
        found = target.matrix(by_output, by_output.numel, None, turned=turned)
        if shared is not None:
            _check_sizes(target, found.outputs, shared[1].shape[0], shared[1])
            _check_sizes(target, found.inputs, shared[0].shape[1], shared[0])
        widest = (0, 0) if shared is not None else _widest(target, tensors)

        def load() -> Change:
            if shared is not None:
                down, up = finite(shared[0]), finite(shared[1])
            else:
                down, up = _drawn(rank, widest, key)
            change = LowRankChange(
                vector(by_output)[:, None] * up[: found.outputs],
                vector(by_rank)[:, None] * down[:, : found.inputs],
            )
            return transposed(change) if found.turned else change

        return Effect(load=load, turned=found.turned)

    sources = (by_output, by_rank, *(shared or ()))
    return [tensors.update(sources, effect, rank=rank)]


def _shared(tensors: ModuleTensors, down: str, up: str) -> tuple[LazyTensor, LazyTensor] | None:
    """The shared factors, None where neither is stored; CheckpointError where one is not."""
    found = [tensors.shared.get(name, tensors.parts.get(name)) for name in (down, up)]
    if found[0] is None and found[1] is None:
        return None
    if found[0] is None or found[1] is None:
        there = found[0] or found[1]
        assert there is not None
        raise wrong(
            f"{there.location} has no partner {shown(up if found[1] is None else down)}, without which no change is "
            "known",
            "the adapter is incomplete, fetch it again",
        )
    require_floats(found[0], found[1])
    return found[0], found[1]


def _check_sizes(target: TargetTensor, wanted: int, there: int, source: LazyTensor) -> None:
    if there < wanted:
        raise CompatibilityError(
            f"{target.tensor.location} has a side of {wanted}, but {source.location} of shape {list(source.shape)} is "
            "for smaller ones: give the base that the adapter was trained on."
        )


def _widest(target: TargetTensor, tensors: ModuleTensors) -> tuple[int, int]:
    """Most outputs and most inputs among the modules of the adapter, for which PEFT draws the projections."""
    beside = target.beside or {}
    outputs = {path: parts["vera_lambda_b"].numel for path, parts in tensors.modules.items()}
    numbers = {path: math.prod(beside[f"{path}.weight"]) for path in outputs}
    return max(outputs.values()), max(numbers[path] // outputs[path] for path in outputs)


def _drawn(rank: int, widest: tuple[int, int], key: int) -> tuple[Array, Array]:
    """A and B as PEFT draws them one after the other: uniform below sqrt(6 / columns)."""
    generator = TorchGenerator(key)
    outputs, inputs = widest
    down = generator.uniform((rank, inputs), math.sqrt(6.0 / inputs))
    up = generator.uniform((outputs, rank), math.sqrt(6.0 / rank))
    return down.astype(np.float64), up.astype(np.float64)


def based(tensors: ModuleTensors) -> list[Update]:
    """RandLoRA: `randlora_lambda` is r x bases, `randlora_gamma` bases x smaller side.

    The shared A is r x 1 x smallest side, B largest side x bases x r; a module takes the first of each. PEFT multiplies
    base n and rank k of B with the pair that lies in their place in A, counted rank by rank: so does this.
    """
    by_rank, by_input = tensors.needed("randlora_lambda", "randlora_gamma")
    check_shape(by_rank, (None, None))
    rank, bases = by_rank.shape
    check_shape(by_input, (bases, None))
    shared = _shared(tensors, "randlora_A", "randlora_B")
    if shared is None:
        raise CompatibilityError(
            f"{tensors.config.where} is of a RandLoRA whose bases are not stored, and what PEFT draws for them depends "
            "on the machine: load it with PEFT where it was trained and save it with 'save_projection' set."
        )
    down, up = shared
    check_shape(down, (rank, 1, None))
    check_shape(up, (None, None, rank))
    scale = tensors.config.number("randlora_alpha", 640) / rank

    def effect(target: TargetTensor) -> Effect:
        found = target.matrix(by_input, turned=tensors.config.fan_in_fan_out)
        small, large = sorted(found.shape)
        _check_sizes(target, small, down.shape[2], down)
        _check_sizes(target, large, up.shape[0], up)
        if small != by_input.shape[1] or bases != -(-small // rank) or up.shape[1] < bases:
            raise CompatibilityError(
                f"{target.tensor.location} has the shape {list(target.shape)}, but {by_input.location} of shape "
                f"{list(by_input.shape)} is for another: give the base that the adapter was trained on."
            )

        def load() -> Change:
            left = finite(up)[:large, :bases].reshape(large, -1)
            right = ScaledBases(finite(down)[:, 0, :small], finite(by_rank), finite(by_input))
            # A square is taken for one with as many inputs as its smaller side.
            is_wide = found.outputs < found.inputs
            return BasesChange(found.shape, left, right, scale, is_wide != found.turned)

        return Effect(load=load, turned=found.turned)

    return [tensors.update((by_rank, by_input, down, up), effect, rank=None, scale=scale)]


@dataclass(frozen=True, slots=True, eq=False)
class ScaledBases:
    """lambda_kn A_kj gamma_nj, A being r x side: as long as a whole weight, so that only a part is ever there."""

    base: Array
    by_rank: Array
    by_column: Array

    def of_rank(self, rank: int, columns: slice) -> Array:
        """Bases x columns for one rank."""
        found: Array = (
            self.by_rank[rank][:, None] * self.base[rank, columns] * self.by_column[:, columns]
        )
        return found


@dataclass(frozen=True, slots=True, eq=False)
class BasesChange:
    """scale * left @ right, or its transpose: RandLoRA's full-rank sum; left is side x (bases r)."""

    shape: tuple[int, int]
    left: Array
    right: ScaledBases
    scale: float
    is_transposed: bool

    def rows(self, start: int, stop: int) -> Array:
        """Rows [start, stop), whole."""
        found = np.zeros((stop - start, self.shape[1]))
        bases = len(self.right.by_column)
        for rank in range(len(self.right.base)):
            # Of left these columns, as PEFT pairs them.
            pairs = slice(rank * bases, (rank + 1) * bases)
            if self.is_transposed:
                found += (self.left[:, pairs] @ self.right.of_rank(rank, slice(start, stop))).T
            else:
                found += self.left[start:stop, pairs] @ self.right.of_rank(rank, slice(None))
        return found * self.scale
