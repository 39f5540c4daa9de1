"""An adapter in memory: factors of low rank by tensor, which algebra takes and writers write."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from weightsmith.adapters import Adapter, Update, applied, is_embedding
from weightsmith.checkpoints import Checkpoint
from weightsmith.deltas import (
    Change,
    Full,
    LowRankChange,
    Matrix,
    Stacked,
    column_factors,
    over_norms,
    read_matrix,
)
from weightsmith.errors import CompatibilityError, NonFiniteError
from weightsmith.lora.base_tensors import base_tensor
from weightsmith.lora.factoring import factored
from weightsmith.tensors import DType, narrow, promote, shown

Array = NDArray[np.float32]


FactorsKind = Literal["linear", "embedding", "conv"]


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """The change of low rank that an adapter makes to one tensor, in the orientation in which the base stores it.

    `target` is the tensor's name in the base, `shape` its shape. A convolution counts as the matrix of its outputs by
    all others. `input_first`: the base stores inputs by outputs, as GPT-2's Conv1D does. One expert of a fused tensor
    (experts x rows x columns) has its number in `part`, and a change of the size of its own matrix.
    """

    target: str
    change: LowRankChange
    shape: tuple[int, ...]
    kind: FactorsKind = "linear"
    input_first: bool = False
    part: int | None = None

    @property
    def key(self) -> str:
        """Target and expert: what factors are found by."""
        return self.target if self.part is None else f"{self.target}[{self.part}]"


@dataclass(frozen=True, slots=True, eq=False)
class LowRankAdapter:
    """Every change that an adapter makes, in memory.

    `factors` are by `Factors.key`. `replaced` are whole tensors that take the place of the base's (modules_to_save);
    `added` changes that are added whole, of biases and norms. `dtype` is that in which factors are stored.
    """

    factors: Mapping[str, Factors]
    replaced: Mapping[str, Array] = field(default_factory=dict)
    added: Mapping[str, Array] = field(default_factory=dict)
    base_reference: str | None = None
    dtype: DType = DType.FLOAT32

    @property
    def parameters(self) -> int:
        """Numbers that the factors hold."""
        changes = [f.change for f in self.factors.values()]
        return sum(c.left.size + c.right.size for c in changes)


def low_rank_adapter(
    adapter: Adapter,
    base: Checkpoint | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
) -> LowRankAdapter:
    """Load an adapter, every change as a product of low rank.

    LoRA and LoCon are taken as they are. LoHa has rank r1 r2 exactly, LoKr the product of the ranks of its halves;
    full changes are decomposed. These, and DoRA's, are cut to `rank` or `energy` (see `algebra.kept_rank`) where
    given, and else exact to rounding. DoRA divides by norms of the base, so its change is W' - W of full rank, and
    trained rows of a table replace it whole: both need `base`. Targets are the adapter's own names, those of a base
    with that base (`attaching.fitted_updates`). Raises CompatibilityError where a base is needed and not given, lacks
    a tensor, or has another shape.
    """
    factors: dict[str, Factors] = {}
    replaced: dict[str, Array] = {}
    added: dict[str, Array] = {}
    for update in (without_copy(u, base) for u in adapter.updates.values()):
        _refuse_unsettled(adapter, update)
        if update.replacement is not None:
            replaced[update.key] = _replaced(adapter, update, base)
            continue
        change = _change(adapter, update, base)
        if _is_vector(update, change):
            added[update.key] = narrow(change.rows(0, change.shape[0]).reshape(-1), DType.FLOAT32)
            continue
        for found in _factors(update, change, rank, energy):
            factors[found.key] = found
    return LowRankAdapter(factors, replaced, added, adapter.base_reference, _dtype(adapter))


def without_copy(update: Update, base: Checkpoint | None) -> Update:
    """The update without the copy of the base's tensor that PEFT saves beside factors of an embedding."""
    copied = update.replacement
    original = None if base is None else base.tensors.get(update.key)
    if copied is None or original is None or update.load is None or copied.shape != original.shape:
        return update
    same = np.array_equal(read_matrix(copied), read_matrix(original))
    return replace(update, replacement=None) if same else update


def _refuse_unsettled(adapter: Adapter, update: Update) -> None:
    """Raise CompatibilityError for a change that follows from the base's tensor, which is not known."""
    if update.effect is not None:
        raise CompatibilityError(
            f"Adapter {shown(adapter.source)} is of the type {update.form.name}, whose change of {shown(update.key)} "
            "depends on the base: name the base of the adapters (`base_model` in a recipe, --base on the command line)."
        )


def _replaced(adapter: Adapter, update: Update, base: Checkpoint | None) -> Array:
    """The whole tensor that takes the base's place."""
    assert update.replacement is not None
    below = update.replacement
    if update.rows is not None or update.magnitude is not None:
        why = f"Adapter {shown(adapter.source)} replaces some rows of the table {shown(update.key)}"
        below = base_tensor(base, update.key, why)
    whole: Array = narrow(read_matrix(applied(update, below)), DType.FLOAT32)
    return whole


def _is_vector(update: Update, change: Change) -> bool:
    if update.shape is not None:
        return len(update.shape) == 1
    return isinstance(change, Full) and 1 in change.shape and update.target.endswith(".bias")


def _factors(
    update: Update, change: Change, rank: int | None, energy: float | None
) -> list[Factors]:
    stacked = isinstance(change, Stacked)
    parts = change.parts if isinstance(change, Stacked) else (change,)
    shape = update.shape or ((len(parts), *parts[0].shape) if stacked else change.shape)
    found = []
    for number, part in enumerate(parts):
        with np.errstate(over="ignore", invalid="ignore"):
            low_rank = factored(part, rank=rank, energy=energy)
        _require_bounded(update, low_rank)
        found.append(
            Factors(
                update.key,
                low_rank,
                tuple(shape),
                _kind(update, shape, stacked),
                update.input_first,
                number if stacked else None,
            )
        )
    return found


def _require_bounded(update: Update, change: LowRankChange) -> None:
    """Raise NonFiniteError for a change so large that no tensor of float32 could be given it.

    |s sum_k b_ik a_kj| <= |s| r max|b| max|a|.
    """
    largest = [float(abs(part).max(initial=0.0)) for part in (change.left, change.right)]
    with np.errstate(over="ignore"):
        bound = np.prod([abs(change.scale), change.rank, *largest])
    if not bound <= np.finfo(np.float32).max:
        raise NonFiniteError(
            f"{update.sources[0].location} and its partners make a change that overflows float32: look for damage in "
            f"its factors and in its scale, which is {update.scale:g}."
        )


def _kind(
    update: Update, shape: tuple[int, ...], stacked: bool
) -> Literal["linear", "embedding", "conv"]:
    if is_embedding(update):
        return "embedding"
    return "conv" if len(shape) > 2 and not stacked else "linear"


def _change(adapter: Adapter, update: Update, base: Checkpoint | None) -> Change:
    assert update.load is not None
    if update.magnitude is None:
        return update.load()
    why = f"Adapter {shown(adapter.source)} is a DoRA, which divides by norms of the weights, at {shown(update.key)}"
    stored = base_tensor(base, update.key, why)
    change = update.load()
    if stored.numel != math.prod(change.shape):
        raise CompatibilityError(
            f"{stored.location} has the shape {stored.shape}, but adapter {shown(adapter.source)} changes "
            f"{change.shape[0]} x {change.shape[1]} elements; give the base that the adapter was trained on."
        )
    before = read_matrix(stored).reshape(change.shape)
    return Full(_renormed(before, change, read_matrix(update.magnitude), update.by_column))


def _renormed(before: Matrix, change: Change, magnitude: Matrix, by_column: bool) -> Matrix:
    """g (W + D) / ||W + D|| - W, norms by output; in float64, so that the difference keeps its digits."""
    changed = before + change.rows(0, change.shape[0])
    magnitude, squares = magnitude.reshape(-1), np.square(changed)
    if by_column:
        difference: Matrix = changed * column_factors(magnitude, squares.sum(axis=0)) - before
    else:
        difference = changed * over_norms(magnitude, np.sqrt(squares.sum(axis=1)))[:, None] - before
    return difference


def _dtype(adapter: Adapter) -> DType:
    """The widest type of the stored factors; float32 where there are none."""
    stored = [s.dtype for u in adapter.updates.values() for s in u.sources if s.dtype.is_float]
    found = promote(stored) if stored else DType.FLOAT32
    return DType.FLOAT32 if found is DType.FLOAT64 else found
