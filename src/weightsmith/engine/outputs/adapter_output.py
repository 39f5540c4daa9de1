"""An adapter: changes summed as factors, or computed dense and cut, in the files of a dialect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.checkpoints import BareAdapter, Checkpoint, open_output
from weightsmith.deltas import LowRankChange, Matrix, read_matrix
from weightsmith.engine.outputs.made_tensors import MadeTensor, Reading
from weightsmith.engine.outputs.memory_stores import MemoryStore
from weightsmith.engine.planning.adapter_plan import resolve_adapters
from weightsmith.engine.planning.adapter_result import AdapterResult
from weightsmith.engine.planning.plan import OneFile, Store
from weightsmith.engine.records.journal import Journal, TensorRecord
from weightsmith.engine.records.manifest import (
    BehindInput,
    Input,
    Manifest,
    Merged,
    behind_inputs,
    seen_from,
)
from weightsmith.errors import NonFiniteError, OutputError
from weightsmith.lora import (
    KOHYA_WEIGHTS,
    SUFFIX,
    Array,
    ChangedTarget,
    Dialect,
    Factors,
    Files,
    LowRankAdapter,
    RankBound,
    TruncatedChange,
    adapter_files,
    check_output,
    clustered,
    concatenated,
    earlier_problem,
    put,
    spectrum,
    truncate_matrix,
    truncate_spectrum,
    words,
    write_into,
)
from weightsmith.lora import zeros as no_change
from weightsmith.progress import Progress
from weightsmith.publishing import MANIFEST, MANIFEST_KEY, manifest_problem
from weightsmith.recipes import Opener, OutputTensor, Recipe, Resolved
from weightsmith.tensors import (
    DType,
    LazyTensor,
    MemoryTensor,
    ShardLayout,
    checkpoint_digest,
    digest_tensor,
    narrow,
    one_blas_thread,
    plan_layout,
    shown,
)

if TYPE_CHECKING:
    from weightsmith.engine.planning.plan import Plan

_NO_MODEL = "The recipe makes an adapter, which is no model of its own: merge it into a folder and give BASE+FOLDER."


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """The files of an adapter. Tensors are the changes that it makes, each of which is let go of once it is factored.

    An interrupted run starts afresh, since what it has finished was in memory.
    """

    result: AdapterResult
    outputs: Sequence[OutputTensor]
    is_resumable: bool = False
    merges_models: bool = False
    no_model: str = _NO_MODEL
    library: str | None = "peft"
    relation: str = "adapter"

    @classmethod
    @one_blas_thread()
    def of_adapters(
        cls, recipe: Recipe, opener: Opener, found: BareAdapter
    ) -> tuple[Resolved, AdapterFolder]:
        """A recipe over adapters, resolved, and what it makes; raises what `resolve_adapters` does."""
        resolved, result = resolve_adapters(recipe, opener, found)
        return resolved, cls(result, resolved.outputs)

    @property
    def readings(self) -> Sequence[Reading]:
        """Every change in a reading of its own."""
        return [(MadeTensor(tensor),) for tensor in self.outputs]

    @property
    def more_inputs(self) -> Sequence[Path]:
        """Where adapters and base lie, of which formulas have changes and zeros."""
        return self.result.inputs

    @property
    def held_bytes(self) -> int:
        """The factors, and what decomposing takes."""
        return self.result.held_bytes

    def is_given(self, label: str) -> bool:
        """Not where zeros stand for a base that the recipe does not name."""
        return self.result.is_given(label)

    def layout(self, shard_bytes: int) -> ShardLayout:
        """One range of bytes for all changes, which only tells how far a run is."""
        return plan_layout([MadeTensor(tensor).stored for tensor in self.outputs], 2**62)

    def write_bytes(self, layout: ShardLayout) -> int:
        """Those of the factors, about."""
        return self.result.nbytes

    def store(self, plan: Plan, folder: Path) -> Store:
        """Factors in memory, written to the folder in the end."""
        return FactorStore(plan.layout, self, folder)

    def store_to_compare(self, plan: Plan) -> Store:
        """The same, and no files."""
        return FactorStore(plan.layout, self, None)

    def names_to_compare(self, recorded: Sequence[str]) -> Sequence[str]:
        """Those on record, which are the dialect's."""
        return recorded

    def needed_for(self, names: Sequence[str]) -> set[str] | None:
        """All of them: names in the file are those of factors."""
        return None

    def merged(
        self, plan: Plan, records: Mapping[str, TensorRecord], store: Store, out: Path
    ) -> Merged:
        """The adapters with the digests of what they store, the base with those of what is behind it."""
        assert isinstance(store, FactorStore)
        inputs = {
            label: self._input(label, checkpoint, out)
            for label, checkpoint in plan.resolved.checkpoints.items()
            if self.is_given(label)
        }
        return Merged(inputs, store.digests(records), store.ordered(store.losses))

    def _input(self, label: str, checkpoint: Checkpoint, out: Path) -> Input:
        one = self.result.loaded.get(label)
        read = self._read_of_base() if one is None else one.stored
        digests = {tensor.name: digest_tensor(tensor) for tensor in read}
        return Input(
            reference=checkpoint.source,
            path=seen_from(out, checkpoint.path),
            hub_id=None,
            revision=None,
            digest=checkpoint_digest(digests),
            tensors=digests,
            behind=() if one is not None else self._behind_base(out),
        )

    def _read_of_base(self) -> list[LazyTensor]:
        """The tensors of the base that are read: those that an adapter replaces, unless they stay as they are there."""
        return [
            target.original()
            for name, target in self.result.targets.items()
            if target.original is not None and name not in self.result.kept
        ]

    def _behind_base(self, out: Path) -> tuple[BehindInput, ...]:
        """What the base is decoded with, as far as it is read."""
        base = self.result.base
        return () if base is None else behind_inputs(base, self._read_of_base(), out)

    def earlier_problem(self, place: Path, thorough: bool) -> str:
        """Nothing against an adapter as weightsmith wrote it, with a manifest or without."""
        if (place / MANIFEST).is_file():
            return manifest_problem(place, thorough)
        return earlier_problem("adapter", place, thorough)

    def one_file(self, out: Path) -> OneFile | None:
        """The file at a name that ends in .safetensors."""
        return _AdapterFile(self.result.dialect, out) if out.suffix == SUFFIX else None

    def write_beside(
        self,
        plan: Plan,
        merged: Merged,
        records: Mapping[str, TensorRecord],
        journal: Journal,
        folder: Path,
    ) -> None:
        """Nothing: the configuration of an adapter is written with its weights."""

    def check_opens(self, plan: Plan, merged: Merged, folder: Path) -> None:
        """Read the names of the factors back."""
        if open_output(folder).tensors.keys() != merged.outputs.keys():
            raise OutputError(
                f"The finished files in {str(folder)!r} do not read back as they were written; the disk may be faulty, "
                "run again."
            )


@dataclass(frozen=True, slots=True)
class _AdapterFile:
    """An adapter in one file, which has its record in the metadata."""

    dialect: Dialect
    out: Path

    def check(self, *, force: bool, reads: Sequence[Path]) -> Path:
        """The absolute place; raises OutputError where it is not free."""
        return check_output(self.out, self.dialect, force=force, reads=reads)

    def write(
        self, store: Store, manifest: Manifest, place: Path, *, force: bool, reads: Sequence[Path]
    ) -> None:
        """Write the file."""
        assert isinstance(store, FactorStore)
        record = {MANIFEST_KEY: manifest.to_json().decode()}
        files = replace(store.files, metadata={**store.files.metadata, **record})
        put(files, place, force=force, reads=reads)


class FactorStore(MemoryStore):
    """Takes one tensor after the other as it is computed, keeps its factors, and gives the files of the adapter.

    They are written into `folder` where one is given.
    """

    def __init__(self, layout: ShardLayout, output: AdapterFolder, folder: Path | None) -> None:
        super().__init__(layout, lazy=True)
        self._target_folder = folder
        self._result = result = output.result
        targets = [result.targets[tensor.name] for tensor in output.outputs]
        keys = (key for t in targets for key in [t.name, *(unit.key for unit in t.units)])
        coordinates = result.coordinates
        self.factors: dict[str, Factors] = {} if coordinates is None else coordinates.unmoved()
        order = dict.fromkeys([*keys, *self.factors])
        self._order = {key: place for place, key in enumerate(order)}
        self.replaced: dict[str, Array] = {}
        self.added: dict[str, Array] = {}
        self.losses: dict[str, float] = {}

    @one_blas_thread()
    def make_without_reading(self, progress: Progress) -> set[str]:
        """Take every tensor for which nothing is computed dense."""
        for name in self._result.settled:
            if name in self._result.sums:
                self._add_sum(name)
            elif (whole := self._result.kept[name]) is not None:
                self.replaced[name] = whole
            progress.advance(self._layout.placement(name).nbytes, name)
        return self._result.settled

    def _add_sum(self, name: str) -> None:
        result = self._result
        changes = [
            (coefficient, result.loaded[label].adapter.factors)
            for label, coefficient in result.sums[name].items()
            if coefficient
        ]
        bound = result.bound_of(name)
        for unit in result.targets[name].units:
            parts = [(c, factors[unit.key].change) for c, factors in changes if unit.key in factors]
            self.factors[unit.key] = replace(unit, change=self._reduced(unit, parts, bound))

    def _reduced(
        self, unit: Factors, parts: Sequence[tuple[float, LowRankChange]], bound: RankBound
    ) -> LowRankChange:
        """A weighted sum of changes of no more ranks than the bound allows, nor than the matrix can have."""
        if not parts:
            return no_change(*unit.change.shape)
        lego = self._result.lego
        if lego is None:
            change = concatenated(parts)
        else:
            change, bound = clustered(parts, lego), replace(bound, rank=None)
        if bound.is_open and change.rank <= min(change.shape):
            return change
        return self._kept(unit.key, truncate_spectrum(spectrum(change), bound))

    def tensor_done(self, name: str) -> None:
        """Decompose a finished change and let go of it."""
        tensor = self.tensors.pop(name)
        target = self._result.targets[name]
        dtype = np.float64 if tensor.dtype is DType.FLOAT64 else np.float32
        made = np.frombuffer(tensor.data, dtype).reshape(tensor.shape)
        if not target.units:
            self._keep_whole(target, made)
            return
        bound = self._result.bound_of(name)
        if target.in_space:
            self._leave_space(target, made, bound)
            return
        for unit, matrix in zip(target.units, _matrices(made, target), strict=True):
            change = self._kept(unit.key, truncate_matrix(matrix, bound, unit.key))
            self.factors[unit.key] = replace(unit, change=change)

    def _keep_whole(self, target: ChangedTarget, made: NDArray[Any]) -> None:
        if target.original is None:
            self.added[target.name] = made.astype(np.float32)
            return
        whole = read_matrix(target.original()) + made.reshape(target.shape)
        self.replaced[target.name] = narrow(whole, DType.FLOAT32)

    def _leave_space(self, target: ChangedTarget, made: NDArray[Any], bound: RankBound) -> None:
        coordinates = self._result.coordinates
        assert coordinates is not None
        if not np.isfinite(made).all():
            raise NonFiniteError(
                f"The combined change of {shown(target.name)} holds NaN or infinities."
            )
        truncated = coordinates.leave(target.name, np.asarray(made, np.float64), bound)
        change = self._kept(target.name, truncated)
        self.factors[target.name] = replace(target.units[0], change=change)

    @cached_property
    def files(self) -> Files:
        """The files of the adapter, once all its tensors are there."""
        return adapter_files(self.adapter(), self._result.dialect, base=self._result.base)

    def finish(self) -> None:
        """Write the adapter's files, if they go into a folder."""
        if self._target_folder is not None:
            write_into(self.files, self._target_folder, KOHYA_WEIGHTS)

    def digests(self, records: Mapping[str, TensorRecord]) -> dict[str, str]:
        """Those of the tensors as they are stored."""
        stored = (
            MemoryTensor(t.name, t.dtype, t.values.shape, words(t), shown(t.name))
            for t in self.files.tensors
        )
        return {tensor.name: digest_tensor(tensor) for tensor in stored}

    def adapter(self) -> LowRankAdapter:
        """The result in memory."""
        return LowRankAdapter(
            self.ordered(self.factors),
            self.ordered(self.replaced),
            self.ordered(self.added),
            _reference(self._result),
            self._result.dtype,
        )

    def ordered(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """The same in the order of the outputs, whatever thread was first."""
        return {key: found[key] for key in sorted(found, key=self._order.__getitem__)}

    def _kept(self, key: str, truncated: TruncatedChange) -> LowRankChange:
        """A change after its cut, what that lost being on record."""
        if truncated.lost > 0.0:
            self.losses[key] = truncated.lost
        return truncated.change


def _matrices(dense: NDArray[Any], target: ChangedTarget) -> list[Matrix]:
    rows, columns = target.units[0].change.shape
    stack = dense.reshape(len(target.units), rows, columns)
    return [np.asarray(matrix, np.float64) for matrix in stack]


def _reference(result: AdapterResult) -> str | None:
    """The base that the result names: by its Hub id, else as the adapters do."""
    if result.base is not None and result.base.hub_id is not None:
        return result.base.hub_id
    named = (one.adapter.base_reference for one in result.loaded.values())
    own = None if result.base is None else result.base.path.name
    return next((reference for reference in named if reference is not None), own)
