"""OFT and BOFT, which rotate the inputs of a weight: W' = diag(s) W R^T with an orthogonal R.

OFT (Qiu et al. 2023, arXiv:2306.07280): R is block-diagonal, each block the Cayley transform of a skew-symmetric Q,
R = (I - Q) (I + Q)^-1, or the beginning of its Neumann series, as OFTv2 (Qiu et al. 2025, arXiv:2506.19847) has it:
I + 2 Q + 2 Q^2 + ... + Q^n. BOFT (Liu et al. 2024, arXiv:2311.06243): R = R_m ... R_1, each block-diagonal in a
butterfly order, R_i = P_i D_i P_i^T, and s scales the outputs.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from weightsmith.adapters.adapter import Update
from weightsmith.adapters.effects import Effect, TargetTensor
from weightsmith.adapters.peft_config import PeftConfig
from weightsmith.adapters.tuners.module_tensors import Array, ModuleTensors, check_shape, vector
from weightsmith.adapters.updates import finite, wrong
from weightsmith.deltas import BlockRotation, Rotated
from weightsmith.errors import CompatibilityError
from weightsmith.tensors import LazyTensor

# PEFT's series of before has another last term.
_FIRST_OF_SERIES = (0, 18)
# PEFT has 5 unless told otherwise, and a file of strangers may say any number.
_MOST_TERMS = 1000


def rotated(tensors: ModuleTensors) -> list[Update]:
    """OFT: `oft_R` is blocks x n, the n numbers above the diagonal of each Q, row by row; one block may stand for all.

    Rows of an embedding are rotated as outputs are, W' = W R. With `coft` Q is cut to the norm eps / sqrt(blocks).
    """
    name = "oft_embedding_R" if "oft_embedding_R" in tensors.parts else "oft_R"
    (angles,) = tensors.needed(name)
    check_shape(angles, (None, None))
    _refuse_old_series(tensors.config)
    size = (1 + math.isqrt(1 + 8 * angles.shape[1])) // 2
    if size * (size - 1) // 2 != angles.shape[1]:
        raise wrong(
            f"{angles.location} has {angles.shape[1]} numbers for each block, which no square matrix has above its "
            "diagonal",
            "the adapter was saved in pieces or is damaged, fetch it again",
        )
    is_shared = tensors.config.flag("block_share")
    inputs = None if is_shared else size * angles.shape[0]

    def effect(target: TargetTensor) -> Effect:
        found = target.matrix(angles, None, inputs, turned=None)
        if found.inputs % size:
            raise _not_divided(target, found.inputs, size, angles)

        def rewrite() -> Rotated:
            blocks = _of_angles(finite(angles), size, tensors.config)
            ordered = blocks if name == "oft_embedding_R" else blocks.transpose(0, 2, 1)
            return Rotated(found.shape, (BlockRotation(ordered),))

        return Effect(rewrite=rewrite)

    return [tensors.update((angles,), effect)]


def butterflied(tensors: ModuleTensors) -> list[Update]:
    """BOFT: `boft_R` is factors x blocks x size x size, of which (R - R^T) / 2 is taken, `boft_s` has s."""
    numbers, scales = tensors.needed("boft_R", "boft_s")
    check_shape(numbers, (None, None, None, None))
    factors, count, size, _ = numbers.shape
    check_shape(numbers, (factors, count, size, size))
    if factors > 1 and (size % 2 or count % (1 << (factors - 1))):
        raise wrong(
            f"{numbers.location} has the shape {list(numbers.shape)}, which no butterfly of {factors} factors has",
            "the adapter was saved in pieces or is damaged, fetch it again",
        )

    def effect(target: TargetTensor) -> Effect:
        found = target.matrix(numbers, scales.numel, count * size, turned=None)

        def rewrite() -> Rotated:
            given = finite(numbers)
            steps = []
            for factor in range(factors):
                turned = _cayley((given[factor] - given[factor].transpose(0, 2, 1)) / 2.0)
                order = _butterfly(count * size, size, factor) if factors > 1 else None
                steps.append(BlockRotation(turned.transpose(0, 2, 1), order))
            return Rotated(found.shape, tuple(steps), vector(scales))

        return Effect(rewrite=rewrite)

    return [tensors.update((numbers, scales), effect)]


def _not_divided(
    target: TargetTensor, inputs: int, size: int, source: LazyTensor
) -> CompatibilityError:
    return CompatibilityError(
        f"{target.tensor.location} has {inputs} inputs, which blocks of {size} as in {source.location} do not divide: "
        "give the base that the adapter was trained on."
    )


def _refuse_old_series(config: PeftConfig) -> None:
    if not config.content.get("use_cayley_neumann", True):
        return
    said = str(config.content.get("peft_version") or "0")
    numbers = [int(part) if part.isdigit() else 0 for part in said.split(".")[:2]]
    if tuple([*numbers, 0][:2]) < _FIRST_OF_SERIES:
        raise CompatibilityError(
            f"{config.where} is of an OFT that PEFT before 0.18 trained with the Cayley-Neumann series, which newer "
            "versions compute otherwise: merge it with the PEFT that trained it."
        )


def _of_angles(angles: Array, size: int, config: PeftConfig) -> Array:
    skew = np.zeros((len(angles), size, size))
    above = np.triu_indices(size, 1)
    skew[:, above[0], above[1]] = angles
    skew -= skew.transpose(0, 2, 1)
    if config.flag("coft"):
        skew = _bounded(skew, config.number("eps", 6e-5))
    if not config.content.get("use_cayley_neumann", True):
        return _cayley(skew)
    return _series(skew, _terms(config))


def _terms(config: PeftConfig) -> int:
    terms = config.number("num_cayley_neumann_terms", 5)
    if not 0 < terms <= _MOST_TERMS or terms != int(terms):
        raise config.wrong(
            f"'num_cayley_neumann_terms' is {terms}, no whole number from 1 to {_MOST_TERMS}"
        )
    return int(terms)


def _bounded(skew: Array, eps: float) -> Array:
    """Each block cut to the norm eps / sqrt(blocks), as constrained OFT has it."""
    most = eps / math.sqrt(len(skew))
    norms = np.linalg.norm(skew, axis=(1, 2), keepdims=True)
    cut: Array = np.where(norms <= most, skew, most * skew / np.where(norms > 0.0, norms, 1.0))
    return cut


def _cayley(skew: Array) -> Array:
    """(I - Q) (I + Q)^-1, by which the transposes solve a system: (I + Q)^T R^T = (I - Q)^T."""
    unit = np.eye(skew.shape[-1])
    solved = np.linalg.solve((unit + skew).transpose(0, 2, 1), (unit - skew).transpose(0, 2, 1))
    return np.ascontiguousarray(solved.transpose(0, 2, 1))


def _series(skew: Array, terms: int) -> Array:
    """The beginning of the series of (I + Q) (I - Q)^-1, as PEFT has it: its sign of Q is the other one.

    I for one term, I + 2 Q for two, I + 2 Q + 2 Q^2 + Q^3 for three and four, and one power more for each one more.
    """
    found = np.repeat(np.eye(skew.shape[-1])[None], len(skew), axis=0)
    if terms > 1:
        found += 2.0 * skew
    if terms > 2:
        power = skew @ skew
        found += 2.0 * power
        for _ in range(3, terms - 1):
            power = power @ skew
            found += 2.0 * power
        found += power @ skew
    return found


def _butterfly(inputs: int, size: int, factor: int) -> NDArray[np.int64]:
    """The order of a factor: within stretches of 2^factor blocks, the even half-blocks before the odd ones."""
    halves = 2 << factor
    within = np.arange(size * halves // 2).reshape(halves, size // 2)
    stretch = np.concatenate([within[0::2], within[1::2]]).reshape(-1)
    firsts = np.arange(0, inputs, len(stretch))
    order: NDArray[np.int64] = (firsts[:, None] + stretch[None, :]).reshape(-1)
    return order
