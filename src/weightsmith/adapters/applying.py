"""One tensor of a base with what adapters do to it: shapes and orientation are settled, nothing is read yet."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from weightsmith.adapters.adapter import Form, Update
from weightsmith.adapters.effects import TargetTensor
from weightsmith.adapters.resized_vocabularies import check_alone, is_resized
from weightsmith.adapters.updates import loaded
from weightsmith.deltas import (
    Change,
    ChangedTensor,
    ReplacedRows,
    Rewriting,
    Rewritten,
    Towards,
    Weighted,
    renamed,
    transposed,
)
from weightsmith.errors import CompatibilityError
from weightsmith.tensors import LazyTensor, kernel_shape

_OF_EMBEDDINGS = ("lora_embedding_", "hira_embedding_", "oft_embedding_")


def is_embedding(update: Update) -> bool:
    """Whether an update is of PEFT's embeddings, whose factors are stored the other way round."""
    return any(part in source.name for source in update.sources for part in _OF_EMBEDDINGS)


def fitted(
    update: Update,
    base: LazyTensor,
    *,
    input_first: bool | None,
    beside: Mapping[str, tuple[int, ...]] | None = None,
) -> Update:
    """The update in the orientation in which the base stores its tensor, with its effect on that.

    `beside` are the shapes of all tensors that the adapter changes. Shapes decide where they can; of a square matrix,
    `input_first` says whether the base stores inputs x outputs (None where that is unknown, so that the adapter's word
    counts). Raises CompatibilityError where neither orientation has the base's shape, and for a base that holds no
    floats.
    """
    if not base.dtype.is_float:
        raise CompatibilityError(
            f"{base.location} holds {base.dtype}, so it is quantised or no weight, but an adapter changes it: give the "
            "base before it was quantised."
        )
    if update.replacement is not None:
        _check_replacement(update, base)
    if update.replacement is not None and is_resized(update, base):
        # The change is one of what takes the base's place.
        base = update.replacement
    if update.effect is not None:
        return _effective(update, base, input_first, beside)
    if update.load is None:
        return update
    shape = update.shape
    if shape is None:
        return update
    turned = _turned(update)
    fits = _same(shape, base.shape)
    fits_turned = turned is not None and _trimmed(turned) == _trimmed(base.shape)
    if fits and fits_turned:
        return update if input_first in (None, update.input_first) else _flipped(update)
    if fits:
        return update
    if fits_turned:
        return _flipped(update)
    raise CompatibilityError(
        f"{base.location} has the shape {list(base.shape)}, but {update.sources[0].location} and its partners change "
        f"one of {list(shape)}: give the base that the adapter was trained on."
    )


def _effective(
    update: Update,
    base: LazyTensor,
    input_first: bool | None,
    beside: Mapping[str, tuple[int, ...]] | None,
) -> Update:
    assert update.effect is not None
    found = update.effect(TargetTensor(base, input_first, beside))
    load, rewrite = found.load, found.rewrite
    if rewrite is not None:
        load = functools.partial(_difference, update.replacement or base, rewrite)
    return replace(
        update,
        effect=None,
        load=load,
        rewrite=rewrite,
        shape=base.shape,
        input_first=found.turned,
    )


def _difference(base: LazyTensor, rewrite: Callable[[], Rewriting]) -> Change:
    return Rewritten(base, rewrite())


def applied(update: Update, base: LazyTensor) -> LazyTensor:
    """The base's tensor with one update in full; the update is `fitted`."""
    below = base
    if update.replacement is not None:
        if update.rows is not None:
            below = ReplacedRows(base, update.replacement, update.rows)
        else:
            below = renamed(update.replacement, base.name)
    if update.load is None:
        return below
    magnitude = update.magnitude
    factors = tuple(s for s in update.sources if s not in (magnitude, update.replacement))
    made = loaded(update) if update.rewrite is None else update.rewrite
    return ChangedTensor(below, factors, made, magnitude, update.by_column)


def combined(base: LazyTensor, updates: Sequence[tuple[Update, float]]) -> LazyTensor:
    """base + the weighted sum of what each update alone would change of it; all updates are `fitted`.

    One update with weight 1 is applied as it is. A weight of 0 leaves its update out.
    """
    counted = [(update, weight) for update, weight in updates if weight != 0.0]
    check_alone(counted, base)
    if not counted:
        return base
    if len(counted) == 1 and counted[0][1] == 1.0:
        return applied(counted[0][0], base)
    parts = [(weight, _change(update, base)) for update, weight in counted]
    read = [s for update, _ in counted for s in update.stored]
    factors = tuple(dict.fromkeys(s for update, _ in counted for s in update.sources))
    beside = tuple(s for s in dict.fromkeys(read) if s not in factors)

    def load() -> Change:
        found = [(weight, change()) for weight, change in parts]
        # Fused experts count as the matrix of all their rows, other tensors by their first axis.
        columns = next((c.shape[1] for _, c in found if not isinstance(c, Towards)), None)
        return Weighted(
            [(w, replace(c, columns=columns) if isinstance(c, Towards) else c) for w, c in found]
        )

    return ChangedTensor(base, factors, load, beside=beside)


def _change(update: Update, base: LazyTensor) -> Callable[[], Change]:
    if update.load is not None and update.magnitude is None and update.replacement is None:
        return update.load
    other = applied(update, base)
    return lambda: Towards(base, other)


def _check_replacement(update: Update, base: LazyTensor) -> None:
    stored = update.replacement
    assert stored is not None
    if update.form is Form.ROWS and update.rows is not None:
        rows = base.shape[0] if base.shape else 0
        if len(base.shape) != 2 or base.shape[1:] != stored.shape[1:] or max(update.rows) >= rows:
            raise CompatibilityError(
                f"{stored.location} has rows for the tokens up to {max(update.rows)} of size {stored.shape[1]}, but "
                f"{base.location} has the shape {list(base.shape)}: give the base that the adapter was trained on."
            )
        return
    if stored.shape == base.shape or is_resized(update, base):
        return
    raise CompatibilityError(
        f"{stored.location} of shape {list(stored.shape)} is to replace {base.location} of shape {list(base.shape)}: "
        "give the base that the adapter was trained on."
    )


def _turned(update: Update) -> tuple[int, ...] | None:
    """The shape with inputs and outputs exchanged, if it is that of a matrix or of fused experts."""
    shape = update.shape
    if shape is None or is_embedding(update):
        return None
    # Factors of a convolution have its kernel's axes, those of experts are matrices.
    is_experts = update.form is Form.LORA and all(len(s.shape) == 2 for s in update.sources)
    if len(shape) == 2 or (len(shape) == 3 and is_experts):
        return (*shape[:-2], shape[-1], shape[-2])
    return None


def _same(shape: tuple[int, ...], stored: tuple[int, ...]) -> bool:
    """Whether a change of one shape is one of another: kernels of size 1 may be written or not, as may all kernels."""
    if _trimmed(shape) == _trimmed(stored):
        return True
    return len(shape) == 2 < len(stored) and shape == kernel_shape(stored)


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    kept = list(shape)
    while len(kept) > 2 and kept[-1] == 1:
        kept.pop()
    return tuple(kept)


def _flipped(update: Update) -> Update:
    load = loaded(update)
    return replace(
        update,
        load=lambda: transposed(load()),
        shape=_turned(update),
        input_first=not update.input_first,
        by_column=not update.by_column,
    )
