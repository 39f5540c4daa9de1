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

from weightsmith.deltas import BLOCK_BYTES, MOST_HELD
from weightsmith.engine.outputs.made_tensors import Reading
from weightsmith.engine.outputs.storage import Sink
from weightsmith.engine.planning.backends import BackendChoice
from weightsmith.engine.planning.planned_tensors import PlannedTensor, TensorWork, works_of
from weightsmith.engine.planning.tiles import tile_elements
from weightsmith.engine.records.journal import Journal, TensorRecord
from weightsmith.engine.records.manifest import Manifest, Merged
from weightsmith.errors import RecipeError
from weightsmith.findings import Finding, errors_among
from weightsmith.progress import Progress
from weightsmith.recipes import Leaf, OpenRecipe, Recipe, Resolved, distinct_leaves
from weightsmith.tensors import LazyTensor, ShardLayout, format_size
from weightsmith.vocabularies import AlignedRows, CompanionFiles
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
    is empty where it can. `library` is what the model card names, None for that of the result's configuration, and
    `relation` the Hub's word for what the result is to the models that it names.
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
    def relation(self) -> str: ...

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
    """A merge, decided to the last byte but not yet run; `companions` is what lies beside the weights, None with
    errors.

    `output` is the kind of result and what is made of the tensors. `measured` are tensors that are not written, but
    streamed for statistics of the model. `free` is the recipe where it has free numbers, for whose starting values
    everything else was worked out.
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
    companions: CompanionFiles | None = None
    measured: tuple[PlannedTensor, ...] = ()
    free: OpenRecipe | None = None

    def __repr__(self) -> str:
        # What a notebook shows; the fields of a large model's plan would be megabytes.
        sizes = f"reads {format_size(self.read_bytes)}, writes {format_size(self.write_bytes)}"
        errors = counted(len(self.errors), "error")
        return f"<Plan of {counted(len(self.tensors), 'tensor')}: {sizes}, {errors}>"

    @cached_property
    def works(self) -> list[tuple[TensorWork, int]]:
        """What is done for each kind of tensor, and how many there are of it."""
        return works_of(self.tensors)

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

    @cached_property
    def input_bytes(self) -> int:
        """Bytes of all stored tensors that are read, each counted once."""
        leaves = {leaf for t in self.tensors for leaf in distinct_leaves(t.output.formula)}
        return sum(self.leaf(leaf).cost.stored_bytes for leaf in leaves)

    @property
    def read_bytes(self) -> int:
        """Bytes read from the inputs, all passes together."""
        every = (*self.works, *works_of(self.measured))
        return sum(work.read_bytes * count for work, count in every)

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
        tiles = max((self._tile_bytes(work) for work, _ in self.works), default=0)
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
            leaf
            for tensor in self.tensors
            if any(source.cost.held_bytes for source in tensor.work.sources)
            for leaf in distinct_leaves(tensor.output.formula)
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

    def _tile_bytes(self, work: TensorWork) -> int:
        elements = tile_elements(work.shape, self.tile_elements, work.rows)
        held = min(elements, max(1, math.prod(work.shape)))
        sums = sum(columns.tile_bytes(held, work.shape) for columns in work.columns)
        return bytes_per_element(work, self.backend) * held + sums

    @property
    def _vector_bytes(self) -> int:
        """Numbers per column of the tensors at work, twice, because functions of them make others."""
        found = (
            sum(8 * columns.count(math.prod(work.shape)) for columns in work.columns)
            for work, _ in self.works
        )
        return 2 * self.window * max(found, default=0)

    @cached_property
    def _held_bytes(self) -> int:
        """What a tensor with a matrix method keeps between its tasks: results, and what it reads."""
        return max((work.held_bytes for work, _ in self.works if work.whole), default=0)

    @cached_property
    def _matrix_bytes(self) -> int:
        """What the largest matrix method takes while it runs (see `_decomposition_bytes`)."""
        found = [
            (shape, inputs)
            for work, _ in self.works
            if work.whole
            for shape, inputs in [
                (work.shape, work.matrices),
                *((s.shape, 1) for s in work.sources),
            ]
        ]
        return max((_decomposition_bytes(shape, inputs) for shape, inputs in found), default=0)

    def leaf(self, leaf: Leaf) -> LazyTensor:
        """The stored tensor of a leaf."""
        return self.resolved.checkpoints[leaf.checkpoint].tensors[leaf.tensor]


def require_runnable(plan: Plan) -> None:
    """Raise RecipeError with every error of the plan, if there is one, and where numbers have no value."""
    refuse_errors(plan)
    refuse_free(plan, "give them with --values FILE, or --values start")


def refuse_free(plan: Plan, advice: str) -> None:
    """Raise RecipeError where numbers or masks have no value; `advice` is what to do about it."""
    if plan.free is None:
        return
    names = [*plan.free.numbers, *plan.free.masks]
    kinds = [
        counted(len(found), noun)
        for found, noun in ((plan.free.numbers, "free number"), (plan.free.masks, "free mask"))
        if found
    ]
    raise RecipeError(
        f"The recipe has {' and '.join(kinds)} without a value, the first being {names[0]!r}; {advice}."
    )


def refuse_errors(plan: Plan) -> None:
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


def bytes_per_element(work: TensorWork, backend: BackendChoice) -> int:
    """Bytes of a tile's buffers, of what is read and of what is written, and of scratch, per element."""
    buffers = sum(source.dtype.itemsize for source in work.sources) + work.written_bytes
    return buffers + backend.scratch_bytes_per_element(len(work.sources))


def vocabulary_bytes(resolved: Resolved) -> int:
    """Memory that reading the tokenizers takes."""
    return 0 if resolved.vocabulary is None else _TOKEN_BYTES * resolved.vocabulary.read_tokens
