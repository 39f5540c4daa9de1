"""The plan: everything that a merge will read, compute and write, known from headers alone."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightsmith.adapters.adapted_models import open_model
from weightsmith.checkpoints import Checkpoint
from weightsmith.deltas.changed import BLOCK_BYTES, MOST_HELD
from weightsmith.engine.backends import BackendChoice, choose_backend
from weightsmith.engine.outputs.choice import resolve_output
from weightsmith.engine.outputs.output import Output
from weightsmith.engine.papers import result_papers
from weightsmith.engine.planned_tensors import PlannedTensor, planned_tensors
from weightsmith.engine.tiles import tile_elements
from weightsmith.errors import RecipeError, UsageError
from weightsmith.findings import Finding, Severity, errors_among
from weightsmith.graph.passes import work_dtype
from weightsmith.recipes import Recipe
from weightsmith.recipes.resolution.formula import Leaf, OutputTensor, Resolved, distinct_leaves
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.files.layout import ShardLayout
from weightsmith.tensors.files.strict_json import collection_paused
from weightsmith.tensors.sizes import format_size
from weightsmith.tensors.stored import LazyTensor
from weightsmith.tensors.threads import thread_count
from weightsmith.vocabularies.aligned_rows import AlignedRows
from weightsmith.vocabularies.companion_files import Papers, VocabularyChange
from weightsmith.wording import counted

DEFAULT_MEMORY = 256 * 2**20
_SMALLEST_TILE = 1 << 18
# Reading a tokenizer and joining it with others takes this per token (measured: 750 to 850 for 32,000 and for 128,000
# tokens), and the allocator gives back half of it.
_TOKEN_BYTES = 850
_KEPT_SHARE = 0.5
# The order of arithmetic and the on-disk form of results; a change makes interrupted runs start afresh.
FORMAT = 2


@dataclass(frozen=True, slots=True)
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

    @property
    def peak_bytes(self) -> int:
        """Predicted anonymous memory, the interpreter included: of planning or of the merge, whichever takes more."""
        tiles = max((self._tile_bytes(t) for t in self.tensors), default=0)
        matrices = self.window * self._held_bytes + self._decomposed * self._matrix_bytes
        reading = _vocabulary_bytes(self.resolved)
        merging = (
            self.threads * tiles
            + matrices
            + self._vector_bytes
            + self._alignment_bytes
            + self._change_bytes
            + int(_KEPT_SHARE * reading)
        )
        return self.backend.resident_bytes + max(reading, merging) + self.output.held_bytes

    @property
    def _alignment_bytes(self) -> int:
        """The indices of aligned tables, and the fits of their rules, as many at a time as there are threads."""
        fits = [fit for tensor in self._aligned for fit in tensor.fits]
        largest = sorted((fit.fit_bytes for fit in fits), reverse=True)[: self.threads]
        index = sum(tensor.index_bytes for tensor in self._aligned)
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
    def _aligned(self) -> list[AlignedRows]:
        """The tables that are put into another vocabulary's order."""
        checkpoints = self.resolved.checkpoints.values()
        tensors = (tensor for checkpoint in checkpoints for tensor in checkpoint.tensors.values())
        return [tensor for tensor in tensors if isinstance(tensor, AlignedRows)]

    @property
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
        return _bytes_per_element(tensor, self.resolved.checkpoints, self.backend)

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

    @property
    def _held_bytes(self) -> int:
        """What a tensor with a matrix method keeps between its tasks: results, and what it reads."""
        return max((self._work_bytes(t) for t in self.tensors if t.whole), default=0)

    @property
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


def make_plan(
    recipe: Recipe,
    *,
    opener: Callable[[str], Checkpoint] = open_model,
    threads: int | None = None,
    memory_bytes: int = DEFAULT_MEMORY,
    device: str = "cpu",
    backend: str = "auto",
) -> Plan:
    """Plan a recipe from headers alone.

    Raises RecipeError or CheckpointError where the recipe or a header cannot be understood at all;
    what can be described is a finding of the plan instead.
    """
    workers = thread_count(threads)
    if memory_bytes < 1:
        raise UsageError(
            f"A merge cannot have {memory_bytes} bytes of memory; give a number from 1."
        )
    with collection_paused():
        resolved, output = resolve_output(recipe, opener)
        return _planned(resolved, output, choose_backend(device, backend), workers, memory_bytes)


def _planned(
    resolved: Resolved, output: Output, choice: BackendChoice, workers: int, memory_bytes: int
) -> Plan:
    planned, measured, findings = planned_tensors(resolved, output)
    layout = output.layout(resolved.shard_bytes)
    widest = max((_bytes_per_element(t, resolved.checkpoints, choice) for t in planned), default=1)
    kept = choice.resident_bytes + int(_KEPT_SHARE * _vocabulary_bytes(resolved))
    budget = max(memory_bytes - kept, memory_bytes // 4) // workers
    tile = min(max(budget // max(widest, 1), _SMALLEST_TILE), choice.largest_tile)
    made, about_papers = result_papers(resolved)
    resolved = _without_vocabularies(resolved)
    plan = Plan(
        resolved=resolved,
        output=output,
        tensors=planned,
        layout=layout,
        backend=choice,
        threads=workers,
        memory_bytes=memory_bytes,
        tile_elements=tile,
        findings=(*resolved.findings, *findings, *about_papers, *choice.findings),
        digest=_digest(resolved, [t.output for t in planned], layout, choice),
        papers=made,
        measured=measured,
    )
    return replace(plan, findings=(*plan.findings, *_memory_findings(plan)))


def _vocabulary_bytes(resolved: Resolved) -> int:
    """Memory that reading the tokenizers takes."""
    return 0 if resolved.vocabulary is None else _TOKEN_BYTES * resolved.vocabulary.read_tokens


def _without_vocabularies(resolved: Resolved) -> Resolved:
    """The same without the tokens themselves, which nobody needs once the papers are made."""
    if resolved.vocabulary is None:
        return resolved
    return replace(resolved, vocabulary=replace(resolved.vocabulary, change=VocabularyChange()))


def _memory_findings(plan: Plan) -> list[Finding]:
    if plan.peak_bytes <= plan.memory_bytes:
        return []
    largest = max(plan.tensors, key=lambda t: (t.whole or t.rows, math.prod(t.output.shape)))
    return [
        Finding(
            Severity.WARNING,
            "memory",
            largest.output.name,
            f"the merge needs about {format_size(plan.peak_bytes)} of memory, more than the "
            f"{format_size(plan.memory_bytes)} allowed",
            _memory_fix(plan),
        )
    ]


def _memory_fix(plan: Plan) -> str:
    if any(tensor.fits for tensor in plan._aligned):
        return "allow more with --memory, use fewer threads, or a rule for missing rows that fits nothing"
    if _vocabulary_bytes(plan.resolved) > plan.peak_bytes / 2:
        return "allow more with --memory: reading the tokenizers takes most of it"
    if plan.backend.resident_bytes > plan.memory_bytes:
        return (
            f"allow more with --memory: the program itself takes {format_size(plan.backend.resident_bytes)}, "
            "whatever is merged"
        )
    if any(tensor.whole or tensor.rows for tensor in plan.tensors):
        return "allow more with --memory, use fewer threads, or a method that needs no whole rows or matrices"
    return "allow more with --memory, or use fewer threads"


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


def _bytes_per_element(
    tensor: PlannedTensor, checkpoints: Mapping[str, Checkpoint], backend: BackendChoice
) -> int:
    leaves = distinct_leaves(tensor.output.formula)
    stored = [checkpoints[leaf.checkpoint].tensors[leaf.tensor] for leaf in leaves]
    buffers = sum(t.dtype.itemsize for t in stored) + tensor.written_bytes
    return buffers + backend.scratch_bytes_per_element(len(stored))


def _digest(
    resolved: Resolved,
    outputs: Sequence[OutputTensor],
    layout: ShardLayout,
    backend: BackendChoice,
) -> str:
    """Identity of a plan: equal digests mean that a staging folder of one run can be continued by another."""
    state = hashlib.blake2b(digest_size=16)
    for line in _identity(resolved, outputs, layout, backend):
        state.update(json.dumps(line, default=str).encode())
    return state.hexdigest()


def _identity(
    resolved: Resolved,
    outputs: Sequence[OutputTensor],
    layout: ShardLayout,
    backend: BackendChoice,
) -> Iterator[Any]:
    rules = [resolved.nonfinite, resolved.equal_magnitudes.value]
    yield [FORMAT, resolved.seed, *rules, resolved.recipe.digest()]
    # The last bit of a sum may differ between backends, and one output never mixes them.
    yield [backend.kind, backend.device]
    for label, checkpoint in sorted(resolved.checkpoints.items()):
        yield label
        for path in sorted(checkpoint.files() or (checkpoint.path,)):
            status = path.stat()
            yield [path.name, status.st_size, status.st_mtime_ns]
        for adapter in checkpoint.attached:
            yield [adapter.strength, adapter.configuration]
        for tensor in checkpoint.tensors.values():
            if isinstance(tensor, AlignedRows):
                yield [tensor.name, tensor.identity]
    for output in outputs:
        yield [output.name, repr(output.formula), str(output.dtype), output.shape]
    for shard in layout.shards:
        yield [shard.file_name, shard.size]
