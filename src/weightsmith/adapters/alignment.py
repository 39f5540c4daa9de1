"""Adapters of one base side by side: which tensors each of them changes, and tensors that they bring whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from weightsmith.adapters.low_rank import Array, Factors, LowRankAdapter
from weightsmith.checkpoints.checkpoint import Checkpoint
from weightsmith.deltas.changed import read_matrix
from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.findings import Finding, Severity
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.messages import shown
from weightsmith.tensors.narrowing import narrow

# By key, the factors of each adapter, None for one that leaves the tensor alone.
Rows = dict[str, list[Factors | None]]


def aligned(adapters: Sequence[LowRankAdapter], labels: Sequence[str]) -> Rows:
    """Every tensor that any of the adapters changes, in the order of the adapters, with each one's factors.

    Raises CompatibilityError where two adapters see one tensor in different shapes or orientations.
    """
    rows: Rows = {}
    for i, adapter in enumerate(adapters):
        for key, factors in adapter.factors.items():
            rows.setdefault(key, [None] * len(adapters))[i] = factors
    whole: dict[str, bool] = {}
    for row in rows.values():
        _check_alike(row, labels)
        found = next(f for f in row if f is not None)
        if whole.setdefault(found.target, found.part is None) is not (found.part is None):
            raise CompatibilityError(
                f"{shown(found.target)} is changed expert by expert in one adapter and as one matrix in another; "
                "convert one of them first."
            )
    return rows


def absences(rows: Rows, labels: Sequence[str]) -> list[Finding]:
    """A note for each adapter that leaves tensors alone which others change."""
    found = []
    for i, label in enumerate(labels):
        missing = [key for key, row in rows.items() if row[i] is None]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            found.append(
                Finding(
                    Severity.NOTE,
                    "absent-change",
                    label,
                    f"{label} does not change {shown(missing[0])}{more}, which others do: its change there counts as 0",
                )
            )
    return found


def labels_of(adapters: Sequence[LowRankAdapter], labels: Sequence[str]) -> list[str]:
    """Names for messages: those given, or `adapter 1`, `adapter 2`..."""
    if not adapters:
        raise UsageError("There are no adapters to combine; give at least one.")
    if labels and len(labels) != len(adapters):
        raise UsageError(f"{len(labels)} labels do not name {len(adapters)} adapters.")
    return list(labels) or [f"adapter {i + 1}" for i in range(len(adapters))]


def whole_tensors(
    adapters: Sequence[LowRankAdapter],
    weights: Sequence[float],
    base: Checkpoint | None,
    labels: Sequence[str],
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Replaced and added tensors of the combination; the first are all targets that any adapter replaces.

        added       sum_i w_i b_i
        replaced    W + sum_i w_i (R_i - W), W the base's tensor, changes of other adapters to it among them

    A tensor that one adapter replaces with weight 1 and no other changes, or that is the same in all of them with
    weights that sum to 1, stays as it is and needs no base. Raises CompatibilityError where a base is needed and not
    given, lacks the tensor, or shapes differ.
    """
    taking = [(a, w, label) for a, w, label in zip(adapters, weights, labels, strict=True) if w]
    replaced: dict[str, Array] = {}
    for target in dict.fromkeys(name for a, _, _ in taking for name in a.replaced):
        holders = [(w, a.replaced[target]) for a, w, _ in taking if target in a.replaced]
        others = [w * _change_to(target, a) for a, w, _ in taking if _touches(target, a)]
        same = all(np.array_equal(holders[0][1], r) for _, r in holders[1:])
        if same and not others and abs(math.fsum(w for w, _ in holders) - 1.0) < 1e-12:
            replaced[target] = holders[0][1]
            continue
        who = next(label for a, _, label in taking if target in a.replaced)
        original = _base_tensor(target, base, who, [r.shape for _, r in holders])
        changes = [*(w * (r - original) for w, r in holders), *others]
        total = original + sum(change.reshape(original.shape) for change in changes)
        replaced[target] = narrow(total, DType.FLOAT32)
    return replaced, _added(taking, replaced)


def _added(
    taking: Sequence[tuple[LowRankAdapter, float, str]], replaced: Mapping[str, Array]
) -> dict[str, Array]:
    added: dict[str, Array] = {}
    names = dict.fromkeys(name for adapter, _, _ in taking for name in adapter.added)
    for name in (n for n in names if n not in replaced):
        parts = [(w, a.added[name], label) for a, w, label in taking if name in a.added]
        for _, part, label in parts[1:]:
            if part.shape != parts[0][1].shape:
                raise CompatibilityError(
                    f"{shown(name)} has the shape {part.shape} in {label} and {parts[0][1].shape} in {parts[0][2]}: "
                    "they are adapters of different bases."
                )
        total = sum(w * part.astype(np.float64) for w, part, _ in parts)
        added[name] = np.asarray(total, np.float32)
    return added


def _touches(target: str, adapter: LowRankAdapter) -> bool:
    """Whether an adapter changes a tensor without replacing it."""
    return target in adapter.added or any(f.target == target for f in adapter.factors.values())


def _change_to(
    target: str, adapter: LowRankAdapter
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    if target in adapter.added:
        return adapter.added[target].astype(np.float64)
    parts = [f for f in adapter.factors.values() if f.target == target]
    if parts[0].part is None:
        return parts[0].change.rows(0, parts[0].change.shape[0])
    whole = np.zeros(parts[0].shape)
    for factors in parts:
        whole[factors.part] = factors.change.rows(0, factors.change.shape[0])
    return whole


def _base_tensor(
    target: str, base: Checkpoint | None, label: str, shapes: Sequence[tuple[int, ...]]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    if base is None:
        raise CompatibilityError(
            f"{label} replaces {shown(target)} whole, and combining that with others or with a weight other than 1 "
            "means combining changes of the base's tensor; give the base."
        )
    stored = base.tensors.get(target)
    if stored is None:
        raise CompatibilityError(
            f"{base.identity} has no tensor {shown(target)}, which {label} replaces; give the base of the adapters."
        )
    for shape in shapes:
        if tuple(shape) != tuple(stored.shape):
            raise CompatibilityError(
                f"{stored.location} has the shape {tuple(stored.shape)}, but an adapter replaces it by {tuple(shape)}; "
                "adapters with other vocabularies cannot be combined."
            )
    return read_matrix(stored)


def _check_alike(row: Sequence[Factors | None], labels: Sequence[str]) -> None:
    present = [(f, label) for f, label in zip(row, labels, strict=True) if f is not None]
    first, first_label = present[0]
    for factors, label in present[1:]:
        seen = (factors.change.shape, factors.input_first)
        if seen != (first.change.shape, first.input_first):
            raise CompatibilityError(
                f"{shown(first.key)} is changed by {_size(first)} in {first_label} and {_size(factors)} in {label}: "
                "they are adapters of different bases."
            )


def _size(factors: Factors) -> str:
    rows, columns = factors.change.shape
    return f"{rows} x {columns}{', inputs first,' if factors.input_first else ''}"
