"""Updates of low rank from their stored factors, the same for every dialect: shapes are checked, scale is put in.

Whatever an adapter's file calls them, `up` is what the change's rows come from (B: outputs x rank), `down` what its
columns do (A: rank x inputs). Both may have the axes of a convolution behind them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from weightsmith.adapters.adapter import Form, Update
from weightsmith.deltas import Change, Full, LowRankChange, Stacked, read_matrix, transposed
from weightsmith.errors import CheckpointError, CompatibilityError, NonFiniteError
from weightsmith.tensors import LazyTensor, kernel_shape, shown

Array = NDArray[np.float64]
Parts = Mapping[str, LazyTensor]


@dataclass(frozen=True, slots=True)
class FactorScale:
    """What a product of factors is multiplied with, and the rank and alpha that it follows from."""

    factor: float
    rank: int
    alpha: float


def finite(tensor: LazyTensor) -> Array:
    """A stored tensor whole; raises NonFiniteError where it has NaN or an infinity, CheckpointError for no floats."""
    require_floats(tensor)
    found = read_matrix(tensor)
    if not np.isfinite(found).all():
        raise NonFiniteError(
            f"{tensor.location} holds NaN or an infinity: the training diverged or the file is damaged, use another "
            "version of the adapter."
        )
    return found


def require_floats(*tensors: LazyTensor) -> None:
    """Raise CheckpointError for a tensor that holds no floats, as its header says."""
    for tensor in tensors:
        if not tensor.dtype.is_float:
            raise CheckpointError(
                f"{tensor.location} holds {tensor.dtype}, but factors are floats: the adapter is quantised or damaged, "
                "fetch one that is not."
            )


def wrong(what: str, advice: str) -> CheckpointError:
    """An error about an adapter's tensors, in one sentence."""
    return CheckpointError(f"{what}: {advice}.")


def together(target: str, parts: Parts, needed: tuple[str, ...]) -> tuple[LazyTensor, ...]:
    """The parts `needed`, all of them; raises CheckpointError where one is missing."""
    missing = [name for name in needed if name not in parts]
    if missing:
        present = next(iter(parts.values()))
        raise wrong(
            f"{present.location} has no partner {missing[0]!r}, without which the change of {shown(target)} is unknown",
            "the adapter is incomplete, fetch it again",
        )
    return tuple(parts[name] for name in needed)


def linear_update(
    target: str, down: LazyTensor, up: LazyTensor, scale: FactorScale, *, input_first: bool = False
) -> Update:
    """scale * up @ down of a matrix or a convolution; `input_first` for a base that stores inputs x outputs."""
    rank, shape = ranked(down, up)
    if scale.rank != rank:
        raise wrong(
            f"{down.location} has rank {rank}, but the configuration says {scale.rank} for it",
            "the file and its configuration do not belong together, fetch both again",
        )

    def load() -> Change:
        found = LowRankChange(
            finite(up).reshape(shape[0], rank), finite(down).reshape(rank, -1), scale.factor
        )
        return transposed(found) if input_first else found

    return Update(
        target,
        Form.LORA,
        (down, up),
        load,
        tuple(reversed(shape)) if input_first else shape,
        rank,
        scale.alpha,
        scale.factor,
        input_first=input_first,
    )


def embedding_update(target: str, down: LazyTensor, up: LazyTensor, scale: FactorScale) -> Update:
    """scale * (up @ down)^T of a table of vocabulary x size: down is rank x vocabulary, up size x rank."""
    return replace(linear_update(target, down, up, scale, input_first=True), input_first=False)


def experts_update(
    target: str, down: LazyTensor, up: LazyTensor, scale: FactorScale, experts: int
) -> Update:
    """A change for each of the experts that one tensor (experts x outputs x inputs) holds.

    Ranks lie expert by expert in `down`, but interleaved in `up`: expert e has the rows [e r, (e + 1) r) of the one and
    the columns e, e + E, e + 2 E, ... of the other, as PEFT's target parameters have them.
    """
    ranked(down, up)
    (rows, inputs), outputs = (down.shape[0], math.prod(down.shape[1:])), up.shape[0]
    rank = rows // experts

    def load() -> Change:
        a = finite(down).reshape(experts, rank, inputs)
        b = finite(up).reshape(outputs, rank, experts)
        return Stacked(tuple(LowRankChange(b[:, :, e], a[e], scale.factor) for e in range(experts)))

    shape = (experts, outputs, inputs)
    return Update(target, Form.LORA, (down, up), load, shape, rank, scale.alpha, scale.factor)


def full_update(target: str, stored: LazyTensor, scale: float = 1.0) -> Update:
    """scale * stored, added whole."""

    def load() -> Change:
        found = finite(stored)
        return Full(found.reshape(kernel_shape(found.shape)), scale)

    return Update(target, Form.FULL, (stored,), load, stored.shape, scale=scale)


def replaced(target: str, stored: LazyTensor) -> Update:
    """`stored` in the place of the base's tensor."""
    return Update(target, Form.REPLACED, (stored,), shape=stored.shape, replacement=stored)


def loaded(update: Update) -> Callable[[], Change]:
    """How the change of an update is read; raises TypeError for one that only replaces."""
    if update.load is None:
        raise TypeError(f"{update.target!r} is replaced, so there is no change to load")
    return update.load


def ranked(down: LazyTensor, up: LazyTensor) -> tuple[int, tuple[int, ...]]:
    """The rank of two factors, and the shape of their product; CheckpointError where they have none.

    CompatibilityError for those of a convolution in groups: PEFT's `down` sees the inputs of all groups.
    """
    require_floats(down, up)
    if len(down.shape) < 2 or len(up.shape) < 2 or 0 in (*down.shape, *up.shape):
        odd = down if len(down.shape) < 2 or 0 in down.shape else up
        raise wrong(
            f"{odd.location} has the shape {list(odd.shape)}, which no factor of a matrix has",
            "the adapter was saved in pieces or is damaged, fetch it again",
        )
    rank = down.shape[0]
    groups, rest = divmod(rank, up.shape[1])
    if len(up.shape) == len(down.shape) > 2 and groups > 1 and not rest:
        raise CompatibilityError(
            f"{up.location} has {up.shape[1]} of {rank} ranks for each output, as factors of a convolution in groups "
            "have: they mix the groups' inputs, which no change of its kernels does, so load the adapter with PEFT."
        )
    if up.shape[1] != rank or math.prod(up.shape[2:]) != 1:
        raise wrong(
            f"{up.location} of shape {list(up.shape)} cannot be multiplied with {down.location} of shape "
            f"{list(down.shape)}",
            "the factors do not belong together, fetch the adapter again",
        )
    return rank, (up.shape[0], *down.shape[1:])
