"""Making a plan: a recipe and the headers of its checkpoints give everything that a merge will do."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from weightsmith.adapters import open_model
from weightsmith.engine.outputs.choice import resolve_output
from weightsmith.engine.planning.backends import BackendChoice, choose_backend
from weightsmith.engine.planning.plan import (
    KEPT_SHARE,
    Output,
    Plan,
    bytes_per_element,
    vocabulary_bytes,
)
from weightsmith.engine.planning.planned_tensors import PlannedTensor, planned_tensors, works_of
from weightsmith.engine.planning.trace import Tracer
from weightsmith.engine.planning.written_companions import companions_of_result
from weightsmith.errors import UsageError
from weightsmith.findings import Finding, Severity
from weightsmith.graph import source, statistic_of, walk
from weightsmith.recipes import (
    Opener,
    Recipe,
    Resolved,
    Values,
    distinct_leaves,
    fill,
    merges_in,
    open_recipe,
)
from weightsmith.tensors import ShardLayout, collection_paused, format_size, thread_count
from weightsmith.vocabularies import AlignedRows, VocabularyChange

DEFAULT_MEMORY = 256 * 2**20
_SMALLEST_TILE = 1 << 18
# The order of arithmetic and the on-disk form of results; a change makes interrupted runs start afresh.
FORMAT = 3


def make_plan(
    recipe: Recipe,
    *,
    values: Values | Literal["start"] | None = None,
    opener: Opener = open_model,
    threads: int | None = None,
    memory_bytes: int = DEFAULT_MEMORY,
    device: str = "cpu",
    backend: str = "auto",
) -> Plan:
    """Plan a recipe from headers alone.

    `values` are those of free numbers (see `recipes.fill`); without them it is planned for those that they start from,
    and cannot be run. Raises RecipeError or CheckpointError
    where the recipe or a header cannot be understood at all; what can be described is a finding of the plan instead.
    """
    workers = thread_count(threads)
    if memory_bytes < 1:
        raise UsageError(
            f"A merge cannot have {memory_bytes} bytes of memory; give a number from 1."
        )
    with collection_paused():
        free = open_recipe(recipe, opener) if values is None else None
        if values is not None:
            recipe = fill(recipe, values, opener)
        elif free is not None:
            recipe = free.filled("start")
        resolved, output = resolve_output(recipe, opener)
        choice = choose_backend(device, backend)
        made = _planned(resolved, output, choice, workers, memory_bytes)
        return made if free is None else replace(made, free=free)


def _planned(
    resolved: Resolved, output: Output, choice: BackendChoice, workers: int, memory_bytes: int
) -> Plan:
    planned, measured, findings = planned_tensors(resolved, output.readings)
    layout = output.layout(resolved.shard_bytes)
    widest = max((bytes_per_element(work, choice) for work, _ in works_of(planned)), default=1)
    kept = choice.resident_bytes + int(KEPT_SHARE * vocabulary_bytes(resolved))
    budget = max(memory_bytes - kept, memory_bytes // 4) // workers
    tile = min(max(budget // max(widest, 1), _SMALLEST_TILE), choice.largest_tile)
    made, about_companions = companions_of_result(resolved)
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
        findings=(
            *resolved.findings,
            *findings,
            *about_companions,
            *choice.findings,
            *_assertion_findings(resolved),
        ),
        digest=_digest(resolved, planned, layout, choice),
        companions=made,
        measured=measured,
    )
    return replace(plan, findings=(*plan.findings, *_memory_findings(plan)))


def _without_vocabularies(resolved: Resolved) -> Resolved:
    """The same without the tokens themselves, which nobody needs once the companion files are made."""
    if resolved.vocabulary is None:
        return resolved
    return replace(resolved, vocabulary=replace(resolved.vocabulary, change=VocabularyChange()))


def _assertion_findings(resolved: Resolved) -> Iterator[Finding]:
    """Errors for assertions whose references are merges by statistics of the whole model, which are not measured."""
    tracer, outputs = Tracer(), {output.name: output for output in resolved.outputs}
    for clause in resolved.assertions:
        merged = {
            reference.likeness: (name, reference)
            for name, reference in zip(clause.tensors, clause.references, strict=False)
            if any(merges_in(reference))
        }
        for name, reference in merged.values():
            graph = tracer.formula_value(reference, outputs[name], lambda _: source(0))
            if any(statistic_of(node) is not None for node in walk([graph])):
                yield Finding(
                    Severity.ERROR,
                    "assertion",
                    name,
                    f"`{clause.text}` compares with a recipe whose method measures the whole model",
                    "merge that recipe first, and name its output in its place",
                )
                break


def _memory_findings(plan: Plan) -> list[Finding]:
    if not plan.tensors or plan.peak_bytes <= plan.memory_bytes:
        return []
    largest = max(
        plan.tensors, key=lambda t: (t.work.whole or t.work.rows, math.prod(t.output.shape))
    )
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
    if any(tensor.fits for tensor in plan.aligned):
        return "allow more with --memory, use fewer threads, or a rule for missing rows that fits nothing"
    if vocabulary_bytes(plan.resolved) > plan.peak_bytes / 2:
        return "allow more with --memory: reading the tokenizers takes most of it"
    if plan.backend.resident_bytes > plan.memory_bytes:
        return (
            f"allow more with --memory: the program itself takes {format_size(plan.backend.resident_bytes)}, "
            "whatever is merged"
        )
    if any(work.whole or work.rows for work, _ in plan.works):
        return "allow more with --memory, use fewer threads, or a method that needs no whole rows or matrices"
    return "allow more with --memory, or use fewer threads"


def _digest(
    resolved: Resolved,
    planned: Sequence[PlannedTensor],
    layout: ShardLayout,
    backend: BackendChoice,
) -> str:
    """Identity of a plan: equal digests mean that a staging folder of one run can be continued by another."""
    state = hashlib.blake2b(digest_size=16)
    for line in _identity(resolved, layout, backend):
        state.update(json.dumps(line, default=str).encode())
    for line in _formulas(planned):
        state.update(json.dumps(line).encode())
    return state.hexdigest()


def _identity(resolved: Resolved, layout: ShardLayout, backend: BackendChoice) -> Iterator[Any]:
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
    for shard in layout.shards:
        yield [shard.file_name, shard.size]


def _formulas(planned: Sequence[PlannedTensor]) -> Iterator[list[Any]]:
    """The formula of the first tensor of each kind, and for every tensor its kind and what it reads."""
    kinds: dict[int, int] = {}
    for tensor in planned:
        output, kind = tensor.output, kinds.get(id(tensor.work))
        if kind is None:
            kind = kinds[id(tensor.work)] = len(kinds)
            yield [repr(output.formula), str(output.dtype), output.shape]
        yield [output.name, kind, *[leaf.tensor for leaf in distinct_leaves(output.formula)]]
