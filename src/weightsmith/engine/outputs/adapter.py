"""An adapter: changes summed as factors, or computed dense and cut, in the files of a dialect."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from weightsmith.adapters.algebra import concatenated, spectrum
from weightsmith.adapters.algebra import zeros as no_change
from weightsmith.adapters.as_changes import Target
from weightsmith.adapters.bounds import CutChange, cut_matrix, cut_spectrum
from weightsmith.adapters.low_rank import Array, Factors, LowRankAdapter
from weightsmith.adapters.storing import KOHYA_WEIGHTS, write_into
from weightsmith.adapters.writing import adapter_files
from weightsmith.checkpoints import BareAdapter, Checkpoint, open_output
from weightsmith.deltas import read_matrix
from weightsmith.deltas.changes import LowRank, Matrix
from weightsmith.engine.adapter_plan import AdapterResult, resolve_adapters
from weightsmith.engine.journal import Journal, TensorRecord
from weightsmith.engine.manifest import BehindInput, Input, Merged, behind_inputs, seen_from
from weightsmith.engine.outputs.memory import MemoryStore
from weightsmith.engine.outputs.output import MadeTensor, Reading, Store
from weightsmith.engine.progress import Progress
from weightsmith.errors import OutputError
from weightsmith.recipes import Recipe
from weightsmith.recipes.formula import OutputTensor, Resolved
from weightsmith.tensors.blas import one_blas_thread
from weightsmith.tensors.digests import checkpoint_digest, digest_tensor
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.layout import ShardLayout, plan_layout
from weightsmith.tensors.narrowing import narrow

if TYPE_CHECKING:
    from weightsmith.engine.plan import Plan

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

    @classmethod
    @one_blas_thread()
    def of_adapters(
        cls, recipe: Recipe, opener: Callable[[str], Checkpoint], found: BareAdapter
    ) -> tuple[Resolved, AdapterFolder]:
        """A recipe over adapters, resolved, and what it makes; raises what `resolve_adapters` does."""
        resolved, result = resolve_adapters(recipe, opener, found)
        return resolved, cls(result, resolved.outputs)

    @property
    def readings(self) -> Sequence[Reading]:
        """Every change in a reading of its own."""
        return [(MadeTensor(tensor),) for tensor in self.outputs]

    @property
    def more_inputs(self) -> Sequence[Checkpoint]:
        """The base, of which formulas have the zeros that stand for it."""
        return () if self.result.base is None else (self.result.base,)

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
        """The same in a folder for the time of the comparison."""
        return _Temporary(plan.layout, self)

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
        digests = {} if one is None else {t.name: digest_tensor(t) for t in one.stored}
        return Input(
            reference=checkpoint.source,
            path=seen_from(out, checkpoint.path),
            hub_id=None,
            revision=None,
            digest=checkpoint_digest(digests),
            tensors=digests,
            behind=() if one is not None else self._behind_base(out),
        )

    def _behind_base(self, out: Path) -> tuple[BehindInput, ...]:
        """What the base is decoded with, as far as it is read: where an adapter replaces one of its tensors."""
        result = self.result
        if result.base is None:
            return ()
        read = (t.original for t in result.targets.values() if t.original is not None)
        return behind_inputs(result.base, read, out)

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


class FactorStore(MemoryStore):
    """Takes the dense change of one tensor after the other, keeps its factors, and writes them into `folder`."""

    def __init__(self, layout: ShardLayout, output: AdapterFolder, folder: Path) -> None:
        super().__init__(layout, lazy=True)
        self._target_folder = folder
        self._result = result = output.result
        targets = [result.targets[tensor.name] for tensor in output.outputs]
        keys = (key for t in targets for key in [t.name, *(unit.key for unit in t.units)])
        self._order = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        self.factors: dict[str, Factors] = {}
        self.whole: dict[str, Array] = {}
        self.losses: dict[str, float] = {}

    @one_blas_thread()
    def make_without_reading(self, progress: Progress) -> set[str]:
        """Add the factors of every tensor whose change is a sum."""
        for name in self._result.sums:
            self._add_sum(name)
            progress.advance(self._layout.placement(name).nbytes, name)
        return set(self._result.sums)

    def _add_sum(self, name: str) -> None:
        result = self._result
        changes = [
            (coefficient, result.loaded[label].adapter.factors)
            for label, coefficient in result.sums[name].items()
            if coefficient
        ]
        for unit in result.targets[name].units:
            parts = [(c, factors[unit.key].change) for c, factors in changes if unit.key in factors]
            change = concatenated(parts) if parts else no_change(*unit.change.shape)
            if not result.bound.is_open or change.rank > min(change.shape):
                change = self._kept(unit.key, cut_spectrum(spectrum(change), result.bound))
            self.factors[unit.key] = replace(unit, change=change)

    def tensor_done(self, name: str) -> None:
        """Decompose a finished change and let go of it."""
        tensor = self.tensors.pop(name)
        target = self._result.targets[name]
        dense = np.frombuffer(tensor.data, np.float32)
        if not target.units:
            self.whole[name] = dense.reshape(target.shape).copy()
            return
        bound = self._result.bound_of(name)
        for unit, matrix in zip(target.units, _matrices(dense, target), strict=True):
            change = self._kept(unit.key, cut_matrix(matrix, bound, unit.key))
            self.factors[unit.key] = replace(unit, change=change)

    def finish(self) -> None:
        """Write the adapter's files."""
        files = adapter_files(self._adapter(), self._result.dialect, base=self._result.base)
        write_into(files, self._target_folder, KOHYA_WEIGHTS)

    def digests(self, records: Mapping[str, TensorRecord]) -> dict[str, str]:
        """Those of the tensors in the files."""
        stored = open_output(self._target_folder).tensors
        return {name: digest_tensor(tensor) for name, tensor in stored.items()}

    def _adapter(self) -> LowRankAdapter:
        result = self._result
        replaced = {
            name: narrow(read_matrix(original) + whole, DType.FLOAT32)
            for name, whole in self.ordered(self.whole).items()
            if (original := result.targets[name].original) is not None
        }
        added = {n: whole for n, whole in self.ordered(self.whole).items() if n not in replaced}
        return LowRankAdapter(
            self.ordered(self.factors), replaced, added, _reference(result), result.dtype
        )

    def ordered(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """The same in the order of the outputs, whatever thread was first."""
        return {key: found[key] for key in sorted(found, key=self._order.__getitem__)}

    def _kept(self, key: str, cut: CutChange) -> LowRank:
        """A change after its cut, what that lost being on record."""
        if cut.lost > 0.0:
            self.losses[key] = cut.lost
        return cut.change


def _matrices(dense: Array, target: Target) -> list[Matrix]:
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


class _Temporary(FactorStore):
    """Factors whose files are gone when the store is left."""

    def __init__(self, layout: ShardLayout, output: AdapterFolder) -> None:
        self._place = tempfile.TemporaryDirectory()
        super().__init__(layout, output, Path(self._place.name))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._place.cleanup()
