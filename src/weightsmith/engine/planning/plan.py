"""The plan: everything that a merge will read, compute and write, known from headers alone; and what makes its output.

Planning asks an `Output` which tensors are to be computed and what they take; running gives their tiles to its
`Store`; sealing asks it for the files beside the weights and for what goes on record. No other module of the engine
knows which kinds of output there are: `outputs.choice` picks one, and each has a file of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Protocol

from weightsmith.checkpoints import Checkpoint
from weightsmith.deltas import BLOCK_BYTES, MOST_HELD
from weightsmith.engine.outputs.made_tensors import Reading
from weightsmith.engine.outputs.storage import Sink
from weightsmith.engine.planning.backends import BackendChoice
from weightsmith.engine.planning.planned_tensors import PlannedTensor
from weightsmith.engine.planning.tiles import tile_elements
from weightsmith.engine.records.journal import Journal, TensorRecord
from weightsmith.engine.records.manifest import Manifest, Merged
from weightsmith.errors import RecipeError
from weightsmith.findings import Finding, errors_among
from weightsmith.graph import work_dtype
from weightsmith.progress import Progress
from weightsmith.recipes import Leaf, Recipe, Resolved, distinct_leaves
from weightsmith.tensors import DType, LazyTensor, ShardLayout
from weightsmith.vocabularies import AlignedRows, Papers
from weightsmith.wording import counted

# Reading a tokenizer and joining it with others takes this per token (measured: 750 to 850 for 32,000 and for 128,000
# tokens), and the allocator gives back half of it.
_TOKEN_BYTES = 850
KEPT_SHARE = 0.5


class Store(Protocol):
    """Where a run puts the tensors of an output; entered for the time of the run. `folder` has room for scratch."""

    folder: Path

    def __enter__(self) -> Store: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def has(self, name: str) -> bool:
        """True if an earlier run may have left a tensor here."""
        ...

    def make_without_reading(self, progress: Progress) -> set[str]:
        """Make what needs no pass over the inputs, and name the tensors that are done with that."""
        ...

    def sink(self, name: str, advance: Callable[[int], None]) -> Sink:
        """Where the tiles of a tensor go; `advance` is told of bytes that were written."""
        ...

    def stored(self, name: str) -> LazyTensor:
        """A finished tensor, to be read back once nothing is written any more."""
        ...

    def written(self, name: str) -> LazyTensor:
        """A finished tensor, to be read back while others are written."""
        ...

    def tensor_done(self, name: str) -> None:
        """Note that all tiles of a tensor are written."""
        ...

    def finish(self) -> None:
        """Make everything durable, and nothing but it be there."""
        ...

    def digests(self, records: Mapping[str, TensorRecord]) -> dict[str, str]:
        """The digest of every stored tensor by its name in the files; `records` are those of the computed ones."""
        ...


class OneFile(Protocol):
    """An output that is one file, with its manifest inside."""

    def check(self, *, force: bool, reads: Sequence[Path]) -> Path:
        """The absolute place, before anything is computed; raises OutputError where it is not free."""
        ...

    def write(
        self, store: Store, manifest: Manifest, place: Path, *, force: bool, reads: Sequence[Path]
    ) -> None:
        """Write what a store holds, with the record."""
        ...


class Output(Protocol):
    """One kind of output, with all that is known of this one before anything is read.

    `readings` are the tensors to compute, in the order of the files. `is_resumable`: what is finished lies in the
    staging folder, where the next run and other machines find it. `merges_models`: inputs and result are models that
    can be compared tensor by tensor. `no_model` says, as a sentence, why the result cannot be opened as one model; it
    is empty where it can. `library` is what the model card names, None for that of the result's configuration.
    """

    @property
    def readings(self) -> Sequence[Reading]: ...

    @property
    def is_resumable(self) -> bool: ...

    @property
    def merges_models(self) -> bool: ...

    @property
    def no_model(self) -> str: ...

    @property
    def library(self) -> str | None: ...

    @property
    def more_inputs(self) -> Sequence[Path]:
        """Places that are read beside the checkpoints of the formulas."""
        ...

    def earlier_problem(self, place: Path, thorough: bool) -> str:
        """What stands against replacing what lies at a place; see `publishing.earlier.Problem`."""
        ...

    def one_file(self, out: Path) -> OneFile | None:
        """How the output is written as one file, where that is what a name asks for; else it is a folder."""
        ...

    @property
    def held_bytes(self) -> int:
        """Memory that the output takes while it is made, beside tiles and matrices."""
        ...

    def is_given(self, label: str) -> bool:
        """Whether a checkpoint of the formulas is an input that the recipe names."""
        ...

    def layout(self, shard_bytes: int) -> ShardLayout:
        """Where every computed tensor will lie."""
        ...

    def write_bytes(self, layout: ShardLayout) -> int:
        """Bytes of the weight files."""
        ...

    def store(self, plan: Plan, folder: Path) -> Store:
        """What takes the tensors of a run into its staging folder."""
        ...

    def store_to_compare(self, plan: Plan) -> Store:
        """What takes tensors that are computed again for their digests alone, and keeps no file."""
        ...

    def names_to_compare(self, recorded: Sequence[str]) -> Sequence[str]:
        """Names of stored tensors, in an order that spreads over the output; `recorded` are those on record."""
        ...

    def needed_for(self, names: Sequence[str]) -> set[str] | None:
        """The tensors to compute so that stored ones get their digests; None for all."""
        ...

    def merged(
        self, plan: Plan, records: Mapping[str, TensorRecord], store: Store, out: Path
    ) -> Merged:
        """What was read and written, for the record of an output that will appear at `out`."""
        ...

    def write_beside(
        self,
        plan: Plan,
        merged: Merged,
        records: Mapping[str, TensorRecord],
        journal: Journal,
        folder: Path,
    ) -> None:
        """Write the files that belong to the weights, durably; recipe, card and manifest are written for all kinds."""
        ...

    def check_opens(self, plan: Plan, merged: Merged, folder: Path) -> None:
        """Raise OutputError where the finished files do not read back as they must."""
        ...


@dataclass(frozen=True)
class Plan:
    """A merge, decided to the last byte but not yet run; `papers` is what lies beside the weights, None with errors.

    `output` is the kind of result and what is made of the tensors. `measured` are tensors that are not written, but
    streamed for statistics of the model.
    """

    resolved: Resolved
    output: Output
    tensors: tuple[PlannedTensor, ...]
    layout: ShardLayout
    backend: BackendChoice
    threads: int
    memory_bytes: int
    tile_elements: int
    findings: tuple[Finding, ...]
    digest: str
    papers: Papers | None = None
    measured: tuple[PlannedTensor, ...] = ()

    @property
    def recipe(self) -> Recipe:
        """The recipe that was planned."""
        return self.resolved.recipe

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every folder and file that is read: the recipe's, its checkpoints' and those behind them."""
        checkpoints = self.resolved.checkpoints.values()
        places = (place for checkpoint in checkpoints for place in checkpoint.inputs)
        return tuple(dict.fromkeys((*self.recipe.files, *places, *self.output.more_inputs)))

    @property
    def read_bytes(self) -> int:
        """Bytes read from the inputs, all passes together."""
        return sum(tensor.read_bytes for tensor in (*self.tensors, *self.measured))

    @property
    def write_bytes(self) -> int:
        """Bytes of the output's weight files, or about as many."""
        return self.output.write_bytes(self.layout)

    @property
    def errors(self) -> list[Finding]:
        """Findings that forbid to run the plan."""
        return errors_among(self.findings)

    @cached_property
    def peak_bytes(self) -> int:
        """Predicted anonymous memory, the interpreter included: of planning or of the merge, whichever takes more."""
        tiles = max((self._tile_bytes(t) for t in self.tensors), default=0)
        matrices = self.window * self._held_bytes + self._decomposed * self._matrix_bytes
        reading = vocabulary_bytes(self.resolved)
        merging = (
            self.threads * tiles
            + matrices
            + self._vector_bytes
            + self._alignment_bytes
            + self._change_bytes
            + int(KEPT_SHARE * reading)
        )
        return self.backend.resident_bytes + max(reading, merging) + self.output.held_bytes

    @property
    def _alignment_bytes(self) -> int:
        """The indices of aligned tables, and the fits of their rules, as many at a time as there are threads."""
        fits = [fit for tensor in self.aligned for fit in tensor.fits]
        largest = sorted((fit.fit_bytes for fit in fits), reverse=True)[: self.threads]
        index = sum(tensor.index_bytes for tensor in self.aligned)
        return index + sum(largest) + sum(fit.kept_bytes for fit in fits)

    @property
    def _change_bytes(self) -> int:
        """The factors of tensors with adapters, and the blocks that are computed of them."""
        leaves = {
            leaf for tensor in self.tensors for leaf in distinct_leaves(tensor.output.formula)
        }
        held = sorted((self.leaf(leaf).cost.held_bytes for leaf in leaves), reverse=True)
        blocks = self.threads * BLOCK_BYTES if any(held) else 0
        return sum(held[:MOST_HELD]) + blocks

    @property
    def aligned(self) -> list[AlignedRows]:
        """The tables that are put into another vocabulary's order."""
        checkpoints = self.resolved.checkpoints.values()
        tensors = (tensor for checkpoint in checkpoints for tensor in checkpoint.tensors.values())
        return [tensor for tensor in tensors if isinstance(tensor, AlignedRows)]

    @cached_property
    def window(self) -> int:
        """How many tensors are worked on at a time: fewer where whole matrices fill the memory."""
        usual = self.threads + 1
        one = self._held_bytes + self._matrix_bytes
        return max(1, min(usual, self.memory_bytes // one)) if one else usual

    @property
    def _decomposed(self) -> int:
        """How many matrix methods run at a time."""
        return min(self.threads, self.window)

    def bytes_per_element(self, tensor: PlannedTensor) -> int:
        """Bytes of buffers and scratch per element of a tile."""
        return bytes_per_element(tensor, self.resolved.checkpoints, self.backend)

    def _tile_bytes(self, tensor: PlannedTensor) -> int:
        elements = tile_elements(tensor.output.shape, self.tile_elements, tensor.rows)
        held = min(elements, max(1, math.prod(tensor.output.shape)))
        sums = sum(columns.tile_bytes(held, tensor.output.shape) for columns in tensor.columns)
        return self.bytes_per_element(tensor) * held + sums

    @property
    def _vector_bytes(self) -> int:
        """Numbers per column of the tensors at work, twice, because functions of them make others."""
        found = (
            sum(8 * columns.count(math.prod(t.output.shape)) for columns in t.columns)
            for t in self.tensors
        )
        return 2 * self.window * max(found, default=0)

    @cached_property
    def _held_bytes(self) -> int:
        """What a tensor with a matrix method keeps between its tasks: results, and what it reads."""
        return max((self._work_bytes(t) for t in self.tensors if t.whole), default=0)

    @cached_property
    def _matrix_bytes(self) -> int:
        """What the largest matrix method takes while it runs (see `_decomposition_bytes`)."""
        found = [
            (shape, inputs)
            for t in self.tensors
            if t.whole
            for shape, inputs in [(t.output.shape, t.matrices), *((s, 1) for s in self._shapes(t))]
        ]
        return max((_decomposition_bytes(shape, inputs) for shape, inputs in found), default=0)

    def _work_bytes(self, tensor: PlannedTensor) -> int:
        leaves = distinct_leaves(tensor.output.formula)
        work = DType.FLOAT64 if tensor.wide else work_dtype(self.leaf(f).dtype for f in leaves)
        shapes = (tensor.output.shape, *self._shapes(tensor))
        more = max(0, tensor.results - 1) * math.prod(tensor.output.shape)
        return work.itemsize * (sum(math.prod(shape) for shape in shapes) + more)

    def _shapes(self, tensor: PlannedTensor) -> list[tuple[int, ...]]:
        return [self.leaf(leaf).shape for leaf in distinct_leaves(tensor.output.formula)]

    def leaf(self, leaf: Leaf) -> LazyTensor:
        """The stored tensor of a leaf."""
        return self.resolved.checkpoints[leaf.checkpoint].tensors[leaf.tensor]


def require_runnable(plan: Plan) -> None:
    """Raise RecipeError with every error of the plan, if there is one."""
    if plan.errors:
        lines = "\n".join(f"  - {finding.sentence}" for finding in plan.errors)
        errors = counted(len(plan.errors), "error")
        raise RecipeError(f"This plan cannot be run; it has {errors}:\n{lines}")


def _decomposition_bytes(shape: tuple[int, ...], inputs: int) -> int:
    """Memory of a method on `inputs` matrices of m x n numbers with k = min(m, n), in float64.

    Two arrays of m n numbers for each (itself, and its directions), four more (the copy that is overwritten, those
    of the result, the result), and eight of k^2 (a Gram matrix or right vectors twice, 4 k^2 of LAPACK's workspace,
    and a product). Stacks of matrices are counted as one matrix of their last two axes.
    """
    shortest = min(shape[-2:], default=1)
    return 8 * ((2 * inputs + 4) * math.prod(shape) + 8 * shortest**2)


def bytes_per_element(
    tensor: PlannedTensor, checkpoints: Mapping[str, Checkpoint], backend: BackendChoice
) -> int:
    """Bytes of a tile's buffers, of what is read and of what is written, and of scratch, per element."""
    leaves = distinct_leaves(tensor.output.formula)
    stored = [checkpoints[leaf.checkpoint].tensors[leaf.tensor] for leaf in leaves]
    buffers = sum(t.dtype.itemsize for t in stored) + tensor.written_bytes
    return buffers + backend.scratch_bytes_per_element(len(stored))


def vocabulary_bytes(resolved: Resolved) -> int:
    """Memory that reading the tokenizers takes."""
    return 0 if resolved.vocabulary is None else _TOKEN_BYTES * resolved.vocabulary.read_tokens
