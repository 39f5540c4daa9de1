"""What an adapter is, by tensor and in sum: forms, ranks, scales, and how large and how spread its changes are."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weightsmith.adapters import Adapter, Form, Update, fitted_updates, open_adapter
from weightsmith.checkpoints import Checkpoint
from weightsmith.deltas import Change, Full, Matrix, Stacked, read_elements
from weightsmith.lora.algebra import spectrum
from weightsmith.lora.factoring import factored
from weightsmith.tensors import DType, LazyTensor

# Singular values below this share of the largest do not count as directions.
COUNTED = 1e-3
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """One change. `parameters` and `nbytes` count what it stores and no change before it shares.

    `values` are its singular values, falling (those of all experts of a fused tensor together); `norm` is their
    Frobenius norm, `share` of the base's tensor's norm where the base is known. `effective_rank` is exp(-sum p log p)
    with p = values / sum(values) (Roy & Vetterli 2007), `directions` the number of values above `COUNTED` times the
    largest. A tensor that is replaced has no values, and a norm only beside a base. DoRA's figures are those of its
    change before it is normed. What follows from a base's tensor too has figures beside one alone.
    """

    target: str
    component: str | None
    form: Form
    shape: tuple[int, ...] | None
    dtypes: tuple[DType, ...]
    parameters: int
    nbytes: int
    rank: int | None
    alpha: float | None
    scale: float
    input_first: bool
    is_dora: bool
    norm: float | None = None
    share: float | None = None
    values: tuple[float, ...] = ()

    @property
    def effective_rank(self) -> float:
        """The number of directions that the change is spread over; 0 for a change of zero."""
        if not any(self.values):
            return 0.0
        # Of the largest, so that the sum of huge ones is finite.
        parts = [value / self.values[0] for value in self.values]
        shares = [part / math.fsum(parts) for part in parts]
        return math.exp(-math.fsum(p * math.log(p) for p in shares if p > 0.0))

    @property
    def directions(self) -> int:
        """Singular values above `COUNTED` times the largest."""
        return sum(value > self.values[0] * COUNTED for value in self.values)

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "tensor": self.target,
            "component": self.component,
            "form": self.form.value,
            "shape": None if self.shape is None else list(self.shape),
            "dtypes": [str(dtype) for dtype in self.dtypes],
            "bytes": self.nbytes,
            "rank": self.rank,
            "alpha": self.alpha,
            "scale": self.scale,
            "dora": self.is_dora,
            "norm": self.norm,
            "share": self.share,
            "directions": self.directions,
            "effective_rank": self.effective_rank,
            "singular_values": list(self.values),
        }


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """An adapter in whole; `parameters` and `nbytes` count all that is stored; `unsaved` is that of `Adapter`."""

    name: str
    dialect: str
    base_reference: str | None
    tensors: tuple[TensorFacts, ...]
    forms: dict[str, int] = field(default_factory=dict)
    unsaved: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Numbers that the adapter stores."""
        return sum(tensor.parameters for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Their bytes."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def norm(self) -> float:
        """The Frobenius norm of all changes whose norm is known."""
        return math.hypot(*(t.norm for t in self.tensors if t.norm is not None))

    @property
    def is_dora(self) -> bool:
        """Whether any change is normed."""
        return any(tensor.is_dora for tensor in self.tensors)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that occur, rising."""
        return tuple(sorted({tensor.rank for tensor in self.tensors if tensor.rank is not None}))

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "name": self.name,
            "dialect": self.dialect,
            "base": self.base_reference,
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "norm": self.norm,
            "ranks": list(self.ranks),
            "forms": dict(self.forms),
            "tensors": [tensor.to_mapping() for tensor in self.tensors],
        }


def adapter_facts(
    adapter: Adapter,
    base: Checkpoint | None = None,
    *,
    component: str | None = None,
) -> AdapterFacts:
    """What there is to say of an opened adapter; with `base` also how large its changes are beside the base's tensors.

    Singular values come from two QRs and a small SVD for every product of low rank; a change that is stored whole is
    decomposed whole. Raises NonFiniteError for damaged factors, and what `fitted_updates` raises where a base is
    given.
    """
    updates = dict(adapter.updates)
    if base is not None:
        updates = fitted_updates(base, adapter, component=component)
    found = []
    counted: set[LazyTensor] = set()
    for name, update in sorted(updates.items()):
        tensor = None if base is None else base.tensors[name]
        # What several changes share is stored once.
        parts = [part for part in dict.fromkeys(update.stored) if part not in counted]
        counted.update(parts)
        found.append(_facts(name, update, tensor, parts))
    forms = collections.Counter(update.form.value for update in updates.values())
    return AdapterFacts(
        adapter.name,
        adapter.dialect,
        adapter.base_reference,
        tuple(found),
        dict(sorted(forms.items())),
        adapter.unsaved,
    )


def inspect_adapter(
    path: str, base: Checkpoint | None = None, *, component: str | None = None
) -> AdapterFacts:
    """`adapter_facts` of the adapter at `path`; raises what `open_adapter` raises."""
    return adapter_facts(open_adapter(path), base, component=component)


def _facts(
    name: str, update: Update, base: LazyTensor | None, parts: Sequence[LazyTensor]
) -> TensorFacts:
    values: Matrix = np.zeros(0)
    size: float | None = None
    if update.load is not None and update.replacement is None:
        values = _values(update.load())
        # A scale may be any number, so squares could overflow.
        size = math.hypot(*values.tolist())
    elif base is not None and update.replacement is not None and update.rows is None:
        size = _distance(update.replacement, base)
    whole = None if base is None or size is None else _distance(base, None)
    return TensorFacts(
        name if base is not None else update.target,
        update.component,
        update.form,
        update.shape if base is None else base.shape,
        tuple(dict.fromkeys(part.dtype for part in update.stored)),
        sum(part.numel for part in parts),
        sum(part.nbytes for part in parts),
        update.rank,
        update.alpha,
        update.scale,
        update.input_first,
        update.magnitude is not None,
        size,
        size / whole if whole and size is not None else None,
        tuple(float(value) for value in values),
    )


def _values(change: Change) -> Matrix:
    if isinstance(change, Stacked):
        found = np.concatenate([_values(part) for part in change.parts])
        ordered: Matrix = np.sort(found)[::-1]
        return ordered
    if isinstance(change, Full) and 1 in change.shape:
        size = math.hypot(*change.rows(0, change.shape[0]).reshape(-1).tolist())
        return np.array([size] if size else [])
    values: Matrix = spectrum(factored(change)).values
    return values


def _distance(tensor: LazyTensor, other: LazyTensor | None) -> float:
    """The Frobenius norm of a tensor, or of its difference from another of its shape, a piece at a time."""
    total = 0.0
    for start in range(0, tensor.numel, _PIECE):
        stop = min(start + _PIECE, tensor.numel)
        piece = read_elements(tensor, start, stop)
        if other is not None:
            piece = piece - read_elements(other, start, stop)
        total += float(np.square(piece).sum())
    return math.sqrt(total)
