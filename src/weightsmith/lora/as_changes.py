"""Adapters apart from their base: each as a checkpoint of the changes it makes, and a checkpoint that changes nothing.

A recipe over these computes with task vectors themselves, the base being zero everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from weightsmith.adapters import Adapter, fitted_updates
from weightsmith.checkpoints import Checkpoint, assemble
from weightsmith.deltas import Change, ChangedTensor, Full, Matrix, Stacked, read_elements
from weightsmith.errors import CompatibilityError
from weightsmith.lora.algebra import zeros
from weightsmith.lora.alignment import aligned
from weightsmith.lora.base_tensors import base_tensor
from weightsmith.lora.low_rank_adapters import Array, Factors, LowRankAdapter, low_rank_adapter
from weightsmith.tensors import DType, LazyTensor, Shaped, kernel_shape, shown


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """An adapter with its factors in memory; `source` is what the recipe calls it, `stored` all that it stores.

    `by_target` are the stored tensors behind the change of each target, `inputs` all places that it is read from.
    `flattened`: its targets have `_` where a base has `.`, and no base told what they are.
    """

    source: str
    path: Path
    dialect: str
    adapter: LowRankAdapter
    stored: tuple[LazyTensor, ...]
    by_target: Mapping[str, tuple[LazyTensor, ...]]
    flattened: bool = False
    inputs: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class ChangedTarget:
    """A tensor that any of the adapters changes, as methods see it.

    `units` are its factors without numbers that matter, one for a matrix and one for each expert of a fused tensor;
    none where the change is kept whole. `original` gives the base's tensor where an adapter replaces it, and raises
    CompatibilityError where none is known. `in_space`: what is seen are coordinates, not elements.
    """

    name: str
    shape: tuple[int, ...]
    units: tuple[Factors, ...] = ()
    original: Callable[[], LazyTensor] | None = None
    in_space: bool = False

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of the change as one matrix."""
        if self.units:
            rows, columns = self.units[0].change.shape
            return rows * len(self.units), columns
        return kernel_shape(self.shape)

    @property
    def input_first(self) -> bool:
        """Whether what is seen is a matrix of inputs by outputs."""
        return bool(self.units) and self.units[0].input_first and not self.in_space


@dataclass(frozen=True, slots=True)
class NoChange(Shaped):
    """A `LazyTensor` of zeros."""

    name: str
    shape: tuple[int, ...]
    dtype: DType = field(default=DType.FLOAT32)

    @property
    def location(self) -> str:
        """The tensor, for messages."""
        return f"the change of tensor {shown(self.name)}"

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Write zeros."""
        view = memoryview(buffer).cast("B")
        view[:] = bytes(view.nbytes)


def load_changes(adapter: Adapter, base: Checkpoint | None) -> LowRankAdapter:
    """The changes of an adapter, by the base's names and in its orientation where the base is given.

    Raises what `low_rank_adapter` and `attach` raise.
    """
    return low_rank_adapter(named_by(base, adapter), base)


def named_by(base: Checkpoint | None, adapter: Adapter) -> Adapter:
    """The adapter by the base's names and in its orientation; as it is where there is no base."""
    if base is None:
        return adapter
    updates = {
        name: replace(update, target=name, component=None)
        for name, update in fitted_updates(base, adapter).items()
    }
    return replace(adapter, updates=updates, flattened=False)


def targets_of(loaded: Sequence[Loaded], base: Checkpoint | None) -> dict[str, ChangedTarget]:
    """Every tensor that one of the adapters changes, in the order of the adapters.

    Raises CompatibilityError where adapters see a tensor in different shapes or orientations.
    """
    aligned([one.adapter for one in loaded], [shown(one.source) for one in loaded])
    seen: dict[str, list[tuple[Loaded, ChangedTarget]]] = {}
    for one in loaded:
        for target in _targets(one, base):
            seen.setdefault(target.name, []).append((one, target))
    return {name: _joined(found) for name, found in seen.items()}


def changes_of(
    one: Loaded,
    targets: Mapping[str, ChangedTarget],
    dtype: DType = DType.FLOAT32,
    coordinates: Mapping[str, LazyTensor] | None = None,
) -> Checkpoint:
    """An adapter as a checkpoint of its changes; tensors that it leaves alone are zero.

    `coordinates` has those of the targets that are seen in a space, `dtype` is that of the others.
    """
    own = _by_target(one.adapter)
    tensors: dict[str, LazyTensor] = {}
    for name, target in targets.items():
        if coordinates is not None and name in coordinates:
            tensors[name] = coordinates[name]
            continue
        none = NoChange(name, target.shape, dtype)
        load = _change(one.adapter, target, own.get(name, []))
        stored = one.by_target.get(name, ())
        # Factors that are in memory already are none that this tensor holds.
        tensors[name] = none if load is None else ChangedTensor(none, (), load, beside=stored)
    return _assembled(tensors, targets, one.path, one.source)


def unchanged(
    targets: Mapping[str, ChangedTarget], path: Path, source: str, dtype: DType = DType.FLOAT32
) -> Checkpoint:
    """The base's part: a checkpoint of zeros."""
    tensors: dict[str, LazyTensor] = {
        n: NoChange(n, t.shape, DType.FLOAT64 if t.in_space else dtype) for n, t in targets.items()
    }
    return _assembled(tensors, targets, path, source)


@dataclass(frozen=True, slots=True, eq=False)
class _Constant:
    """A function that gives a change which is in memory already."""

    change: Change

    def __call__(self) -> Change:
        return self.change


@dataclass(frozen=True, slots=True, eq=False)
class _Replacement:
    """The change from the base's tensor to the one that takes its place."""

    whole: Array
    original: LazyTensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return kernel_shape(self.whole.shape)

    def rows(self, start: int, stop: int) -> Matrix:
        """Rows [start, stop), whole."""
        columns = self.shape[1]
        low, high = start * columns, stop * columns
        new = self.whole.reshape(-1)[low:high].astype(np.float64)
        return (new - read_elements(self.original, low, high)).reshape(-1, columns)


@dataclass(frozen=True, slots=True, eq=False)
class _Replacing:
    """A function that gives the change of a tensor that is replaced; raises what finding the base's raises."""

    whole: Array
    original: Callable[[], LazyTensor]

    def __call__(self) -> Change:
        return _Replacement(self.whole, self.original())


def _assembled(
    tensors: dict[str, LazyTensor], targets: Mapping[str, ChangedTarget], path: Path, source: str
) -> Checkpoint:
    made = assemble(tensors, None, path=path, source=source)
    places = {
        name: replace(role, input_first=targets[name].input_first) if targets[name].units else role
        for name, role in made.places.items()
    }
    # Two tensors that are tied in the base may be changed apart.
    return replace(made, places=places, ties=())


def _by_target(adapter: LowRankAdapter) -> dict[str, list[Factors]]:
    found: dict[str, list[Factors]] = {}
    for factors in adapter.factors.values():
        found.setdefault(factors.target, []).append(factors)
    return found


def _all_units(units: Sequence[Factors]) -> tuple[Factors, ...]:
    """One unit for a matrix; for fused experts one for each, of those that are changed or not."""
    first = units[0]
    empty = replace(first, change=zeros(*first.change.shape))
    if first.part is None:
        return (empty,)
    return tuple(replace(empty, part=part) for part in range(first.shape[0]))


def _targets(one: Loaded, base: Checkpoint | None) -> Iterator[ChangedTarget]:
    adapter = one.adapter
    for name, whole in adapter.replaced.items():
        yield ChangedTarget(name, whole.shape, (), _original(name, whole.shape, one, base))
    for name, whole in adapter.added.items():
        yield ChangedTarget(name, whole.shape)
    for name, units in _by_target(adapter).items():
        if name not in adapter.replaced:
            yield ChangedTarget(name, units[0].shape, _all_units(units))


def _joined(found: Sequence[tuple[Loaded, ChangedTarget]]) -> ChangedTarget:
    """One tensor as all adapters see it: kept whole where one of them does."""
    first, target = found[0]
    for one, other in found[1:]:
        if _form(other, target) != _form(target, other):
            raise CompatibilityError(
                f"{shown(target.name)} is changed as {_words(target)} by {shown(first.source)} and as {_words(other)} "
                f"by {shown(one.source)}: they are adapters of different bases."
            )
    originals = [other for _, other in found if other.original is not None]
    saved_modules = [other for _, other in found if not other.units]
    return (originals or saved_modules or [target])[0]


def _form(target: ChangedTarget, other: ChangedTarget) -> object:
    """What a tensor must have in common with another adapter's."""
    both_are_factored = bool(target.units and other.units)
    return math.prod(target.shape), both_are_factored and target.units[0].input_first


def _words(target: ChangedTarget) -> str:
    first = " with inputs first" if target.units and target.units[0].input_first else ""
    return f"{list(target.shape)}{first}"


def _original(
    name: str, shape: tuple[int, ...], one: Loaded, base: Checkpoint | None
) -> Callable[[], LazyTensor]:
    """A function that finds what a tensor is replaced in; called only where that is needed."""

    def find() -> LazyTensor:
        return base_tensor(base, name, f"{shown(one.source)} replaces {shown(name)} whole", shape)

    return find


def _change(
    adapter: LowRankAdapter, target: ChangedTarget, own: Sequence[Factors]
) -> Callable[[], Change] | None:
    """What gives the change that an adapter makes; None where it makes none."""
    name = target.name
    if name in adapter.replaced and target.original is not None:
        return _Replacing(adapter.replaced[name], target.original)
    if name in adapter.added:
        added = adapter.added[name].astype(np.float64)
        return _Constant(Full(added.reshape(target.matrix)))
    if not own:
        return None
    if own[0].part is None:
        return _Constant(own[0].change)
    parts = {factors.part: factors.change for factors in own}
    empty = zeros(*own[0].change.shape)
    return _Constant(Stacked(tuple(parts.get(part, empty) for part in range(own[0].shape[0]))))
