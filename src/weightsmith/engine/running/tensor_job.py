"""Computing the tensors of one reading: which passes, over which tiles, and what is kept between them.

A job is a generator for `scheduler.Scheduler`: it yields rounds of tile tasks and goes on with their results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import numpy as np

from weightsmith.engine.outputs.storage import Target
from weightsmith.engine.planning.tiles import (
    digest_rounds,
    model_sample_runs,
    piece_digests,
    runs_by_tile,
    sample_runs,
    tile_task,
    tiles_of,
)
from weightsmith.engine.planning.trace import StatisticMember
from weightsmith.engine.running.job_facts import Finished, JobSettings
from weightsmith.engine.running.scheduler import Round, Rounds, Task, Worker
from weightsmith.engine.running.unlocated import noting
from weightsmith.graph import (
    Collect,
    ColumnSums,
    Gate,
    Node,
    PassSpec,
    Request,
    Scalar,
    Scope,
    Selection,
    ShareOf,
    SummedHistograms,
    Threshold,
    TileResult,
    Value,
    exact_sum,
    gate_for,
    has_row_nodes,
    is_row_reduction,
    matrix_nodes,
    pass_roots,
    reduction_levels,
    rows_to_keep,
    selected_count,
    source,
    substitute,
    used_sources,
    walk,
    work_dtype,
)
from weightsmith.tensors import (
    DType,
    LazyTensor,
    MemorySink,
    MemoryTensor,
    read_runs,
    tensor_digest,
)


@dataclass(slots=True)
class TensorJob:
    """The computation of one output tensor, or of several of one shape that are made in the same passes.

    `outputs` are the graphs (values to write, or reductions to measure), `sources` the tensors behind their source
    nodes, `members` their part in statistics of the model by their reductions. `known` grows as reductions are
    measured; model-wide results are put there by `model_scope` before the outputs are computed. `wide` computes in
    float64 though no source is; all outputs have the same work precision. `key` names the tensors of all outputs.
    """

    name: str
    shape: tuple[int, ...]
    outputs: tuple[Node, ...]
    sources: list[LazyTensor]
    settings: JobSettings
    members: dict[Node, StatisticMember] = field(default_factory=dict)
    known: dict[Node, Any] = field(default_factory=dict)
    wide: bool = False
    key: tuple[str, ...] = ()
    _source_digests: dict[int, str] = field(default_factory=dict)
    _stored_sources: int = field(init=False)
    # Matrix methods by their place in the graph as it was traced.
    _places: dict[Node, int] = field(init=False)

    def __post_init__(self) -> None:
        self._stored_sources = len(self.sources)
        self._places = {node: place for place, node in enumerate(matrix_nodes(self.outputs))}

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    # Rounds ------------------------------------------------------------------------------------------------------

    def compute(self, targets: Sequence[Target]) -> Rounds:
        """Run all passes and write every output to its target; returns a `Finished` for each."""
        results: list[_Tile] = yield from self._write(targets)
        if records := self.settings.records_sources:
            yield from self._digest_unread()
        by_source = zip(*[t.result.nonfinite_sources for t in results], strict=True)
        bad = [first_bad(found) for found in by_source][: self._stored_sources]
        finished = []
        for at, target in enumerate(targets):
            reads = range(self._stored_sources) if target.reads is None else target.reads
            finished.append(
                Finished(
                    (yield from self._digest_of(at, target, results)),
                    {i: self._source_digests[s] for i, s in enumerate(reads)} if records else {},
                    first_bad([t.result.nonfinite_outputs[at] for t in results]),
                    tuple(bad[source] for source in reads) if bad else (),
                )
            )
        return finished

    def _digest_of(self, at: int, target: Target, results: Sequence[_Tile]) -> Rounds:
        """The digest of what was stored of an output."""
        if target.storage.is_plain:
            pieces = [digest for tile in results for digest in tile.written[at]]
            return tensor_digest(target.dtype, self.shape, pieces)
        assert target.back is not None
        return (yield from digest_rounds(target.back(), self.settings.tile_elements))

    def _write(self, targets: Sequence[Target]) -> Rounds:
        """Run all passes and write the outputs; returns what each tile gave and wrote."""
        yield from self.resolve()
        written = zip(cast("tuple[Value, ...]", self.outputs), targets, strict=True)
        spec = self._spec(outputs=tuple((output, target.dtype) for output, target in written))
        return (yield from self._stream(spec, targets))

    def resolve(self, *, for_model: bool = False) -> Rounds:
        """Measure every reduction that the outputs still need (all but model-wide ones, which must be known by now).

        With `for_model`, only what open model-wide reductions need.
        """
        while True:
            yield from self._resolve_whole(for_model)
            levels = reduction_levels(self._roots(for_model), self.known)
            ready = [r for r in levels[0] if r.scope is not Scope.MODEL] if levels else []
            if not ready:
                return None
            yield from self._measure(ready)

    def _roots(self, for_model: bool) -> list[Node]:
        if not for_model:
            return list(self.outputs)
        levels = reduction_levels(self.outputs, self.known)
        return [r for level in levels for r in level if r.scope is Scope.MODEL]

    def pending_model_reductions(self) -> list[Scalar | Threshold]:
        """Model-wide reductions that can be measured now, in graph order."""
        levels = reduction_levels(self.outputs, self.known)
        return [r for r in levels[0] if r.scope is Scope.MODEL] if levels else []

    def measure_part(
        self,
        requests: Sequence[tuple[Scalar | Threshold, Request | None]],
        only_tile: int | None = None,
        gates: Sequence[Gate | None] = (),
    ) -> Rounds:
        """Measure reductions on this tensor: for each, its partials or the parts of its tiles.

        `gates` bound the memory of the parts of several tensors; histograms stay in them.
        """
        own: Sequence[Gate | ColumnSums | None] = gates
        own = own or [self._gate(*asked) for asked in requests]
        spec = self._spec(reductions=tuple(requests))
        if only_tile is None and not gates:
            kept = rows_to_keep(self.outputs, [r for r, _ in requests], self.known, self.shape)
            spec = replace(spec, kept=kept)
        tiles = yield from self._stream(spec, only_tile=only_tile, gates=own)
        results = [tile.result for tile in tiles]
        for i, node in enumerate(spec.kept):
            self.known[node] = np.concatenate([result.kept[i] for result in results])
        parts = [[result.partials[i] for result in results] for i in range(len(requests))]
        for i, gate in enumerate(own):
            if isinstance(gate, SummedHistograms):
                parts[i] = [] if gates else [gate.total]
            elif isinstance(gate, ColumnSums):
                parts[i] = [gate.result]
        return parts

    def _gate(
        self, reduction: Scalar | Threshold, request: Request | None
    ) -> Gate | ColumnSums | None:
        if isinstance(reduction, Scalar) and reduction.columns is not None:
            return ColumnSums(reduction.op, reduction.columns, self.shape)
        return gate_for(request)

    def sample_part(
        self,
        requests: Sequence[tuple[Scalar | Threshold, Request | None]],
        gates: Sequence[Gate | None],
        place: tuple[int, int] | None = None,
    ) -> Rounds:
        """As `measure_part`, over a sample of the tensor, or over its part of a model's: see `model_sample_runs`.

        Its rows are not those that earlier passes kept.
        """
        known = {n: found for n, found in self.known.items() if not is_row_reduction(n)}
        spec = replace(self._spec(reductions=tuple(requests)), known=known)
        rows = has_row_nodes(pass_roots(spec), known)
        runs = (
            model_sample_runs(self.shape, rows, *place) if place else sample_runs(self.shape, rows)
        )
        yield from self._sample(spec, runs, gates)

    def model_results(self) -> dict[StatisticMember, Any]:
        """The model-wide results that are known, for another job of the same tensor to adopt."""
        return {m: self.known[node] for node, m in self.members.items() if node in self.known}

    def adopt(self, results: Mapping[StatisticMember, Any]) -> None:
        """Take model-wide results that were measured before."""
        self.known.update({node: results[m] for node, m in self.members.items() if m in results})

    # Reductions --------------------------------------------------------------------------------------------------

    def _measure(self, reductions: Sequence[Scalar | Threshold]) -> Rounds:
        selections = {r: self._selection(r) for r in reductions if isinstance(r, Threshold)}
        while samples := [
            (r, request) for r, s in selections.items() if (request := s.sample_request) is not None
        ]:
            sums = [SummedHistograms() for _ in samples]
            yield from self.sample_part(samples, sums)
            for (reduction, request), found in zip(samples, sums, strict=True):
                selections[reduction].absorb_sample(request, [found.total])
        simple = [r for r in reductions if not isinstance(r, Threshold)]
        while simple or any(s.result is None for s in selections.values()):
            yield from self._measure_round(
                simple, {r: s for r, s in selections.items() if s.result is None}
            )
            simple = []
        self.known.update({r: s.result for r, s in selections.items()})

    def _measure_round(
        self, simple: Sequence[Scalar | Threshold], selections: Mapping[Threshold, Selection]
    ) -> Rounds:
        asked = {threshold: selection.request() for threshold, selection in selections.items()}
        whole = [
            (c, r)
            for c, r in asked.items()
            if not (isinstance(r, Collect) and r.only_part is not None)
        ]
        requests: list[tuple[Scalar | Threshold, Request | None]] = [(r, None) for r in simple]
        requests += whole
        if requests:
            parts = yield from self.measure_part(requests)
            for (reduction, request), found in zip(requests, parts, strict=True):
                if isinstance(reduction, Threshold):
                    assert request is not None
                    selections[reduction].absorb(request, found)
                elif reduction.columns is not None:
                    (self.known[reduction],) = found
                else:
                    self.known[reduction] = combine_partials(reduction.op, found)
        for threshold, request in asked.items():
            if isinstance(request, Collect) and request.only_part is not None:
                ((found,),) = yield from self.measure_part(
                    [(threshold, request)], only_tile=request.only_part
                )
                selections[threshold].absorb(request, [found])

    def _selection(self, threshold: Threshold) -> Selection:
        return Selection(self.wanted(threshold, self.numel), self.numel, self.key_bits)

    def wanted(self, threshold: Threshold, population: int) -> int | ShareOf:
        """k of a cut over `population` elements, or its rule."""
        return selected_count(threshold, self.known, population)

    @property
    def key_bits(self) -> int:
        """Bits of a magnitude's key in this tensor's work precision."""
        return 63 if self._work is DType.FLOAT64 else 31

    @property
    def _work(self) -> DType:
        return DType.FLOAT64 if self.wide else work_dtype(tensor.dtype for tensor in self.sources)

    # Matrix methods ----------------------------------------------------------------------------------------------

    def _resolve_whole(self, for_model: bool) -> Rounds:
        while matrix_nodes(self.outputs):
            node = next(
                (n for n in walk(self._roots(for_model), self.known) if self._is_ready_matrix(n)),
                None,
            )
            if node is None:
                return None
            assert isinstance(node, Value)
            results = yield from self._whole_results(node, for_model)
            parts = [n for n in walk(self.outputs) if n.op == "part" and n.inputs[0] is node]
            for part in parts or [node]:
                assert isinstance(part, Value)
                self.sources.append(results[part.attributes[0] if parts else 0])
                self._replace(part, source(len(self.sources) - 1))

    def _whole_results(self, node: Value, for_model: bool) -> Rounds:
        """The arrays of a matrix method: from the scratch file if the statistics needed them, else computed."""
        key = (self.key or self.name, self._places.get(node))
        scratch = None if key[1] is None else self.settings.scratch
        found = scratch.get(key) if scratch is not None else None
        if found is not None:
            return found
        arrays = []
        for matrix in node.inputs:
            assert isinstance(matrix, Value)
            shape = self._shape_of(matrix)
            inner = TensorJob(
                self.name,
                shape,
                (matrix,),
                self.sources,
                self.settings,
                self.members,
                self.known,
                self.wide,
            )
            inner._source_digests = self._source_digests
            inner._stored_sources = self._stored_sources
            kept = MemoryTensor.empty(self.name, self._work, shape)
            yield from inner._write([Target(self._work, MemorySink(kept))])
            arrays.append(np.frombuffer(kept.data, _numpy_dtype(self._work)).reshape(shape))
        (results,) = yield Round([self._matrix_task(node, arrays)])
        if scratch is not None and for_model:
            return scratch.put(key, self.name, self._work, self.shape, results)
        where = f"intermediate result of tensor {self.name!r}"
        return [MemoryTensor(self.name, self._work, self.shape, data, where) for data in results]

    def _shape_of(self, matrix: Value) -> tuple[int, ...]:
        """That of the tensor, or that of the statistics where a matrix is made of them alone."""
        shapes = [self.sources[i].shape for i in sorted(used_sources([matrix], self.known))]
        return shapes[0] if shapes and self.shape not in shapes else self.shape

    def _replace(self, node: Value, new: Value) -> None:
        self.outputs, replaced = substitute(self.outputs, node, new)
        self.members.update({replaced[n]: m for n, m in self.members.items() if n in replaced})
        self.known.update({replaced[n]: found for n, found in self.known.items() if n in replaced})
        self._places.update({replaced[n]: at for n, at in self._places.items() if n in replaced})

    def _is_ready_matrix(self, node: Node) -> bool:
        """True for a matrix method whose inputs wait for no model-wide statistic."""
        if node.op != "whole":
            return False
        levels = reduction_levels(node.inputs, self.known)
        return all(r.scope is not Scope.MODEL for level in levels for r in level)

    def _matrix_task(self, node: Value, arrays: Sequence[Any]) -> Task:
        return lambda _worker: noting(self.name, partial(self._call, node, arrays))

    def _call(self, node: Value, arrays: Sequence[Any]) -> list[memoryview]:
        linalg = self.settings.backend.linalg()
        function, *attributes = node.attributes
        if linalg is np:
            result = function(np, *arrays, *attributes)
        else:
            device = getattr(self.settings.backend, "device", "cpu")
            matrices = [linalg.from_numpy(a).to(device) for a in arrays]
            result = function(linalg, *matrices, *attributes)
        parts = result if isinstance(result, list) else [result]
        return [self._bytes_of(part if linalg is np else part.cpu().numpy()) for part in parts]

    def _bytes_of(self, array: Any) -> memoryview:
        flat = np.ascontiguousarray(array, _numpy_dtype(self._work)).reshape(-1)
        return flat.view(np.uint8).data

    # Tiles -------------------------------------------------------------------------------------------------------

    def _spec(
        self,
        *,
        outputs: tuple[tuple[Value, DType], ...] = (),
        reductions: tuple[tuple[Scalar | Threshold, Request | None], ...] = (),
    ) -> PassSpec:
        dtypes = tuple(tensor.dtype for tensor in self.sources)
        return PassSpec(self.shape, dtypes, outputs, reductions, dict(self.known), self.wide)

    def _tiles(self, spec: PassSpec) -> list[tuple[int, int]]:
        rows = has_row_nodes(pass_roots(spec), self.known)
        return tiles_of(self.shape, self.settings.tile_elements, rows)

    def _stream(
        self,
        spec: PassSpec,
        targets: Sequence[Target] = (),
        only_tile: int | None = None,
        gates: Sequence[Gate | ColumnSums | None] = (),
    ) -> Rounds:
        compiled = self.settings.backend.compile(spec)
        used = used_sources(pass_roots(spec), self.known)
        digesting = {i for i in used if i < self._stored_sources and i not in self._source_digests}
        records = only_tile is None and self.settings.records_sources
        digesting = digesting if records else set()
        sinks = [t.storage.sink(t.placed, t.dtype, self.shape) for t in targets]

        def run(worker: Worker, start: int, count: int) -> _Tile:
            buffers = self._read(worker, used, [(start, count)])
            digests = {i: self._digest_pieces(buffers[i], self.sources[i].dtype) for i in digesting}
            outs = [worker.buffer(~i, count * t.dtype.itemsize) for i, t in enumerate(targets)]
            result = compiled.run(buffers, start, count, outs)
            _admit(result, gates)
            written = []
            for target, out, sink in zip(targets, outs, sinks, strict=True):
                is_plain = target.storage.is_plain
                written.append(self._digest_pieces(out, target.dtype) if is_plain else [])
                sink.write(start, out)
            return _Tile(result, written, digests)

        tiles = self._tiles(spec) if only_tile is None else [self._tiles(spec)[only_tile]]
        results: list[_Tile] = yield Round([tile_task(run, *tile) for tile in tiles])
        for i in sorted(digesting):
            pieces = [digest for tile in results for digest in tile.read[i]]
            self._source_digests[i] = tensor_digest(
                self.sources[i].dtype, self.sources[i].shape, pieces
            )
        return results

    def digest_sources(self) -> Rounds:
        """The digests of all stored sources; those that no pass has read in full are read."""
        yield from self._digest_unread()
        return tuple(self._source_digests[i] for i in range(self._stored_sources))

    def _digest_unread(self) -> Rounds:
        """Digest sources that no pass had to read in full, so that the record of inputs is complete."""
        for i in range(self._stored_sources):
            if i not in self._source_digests:
                self._source_digests[i] = yield from digest_rounds(
                    self.sources[i], self.settings.tile_elements
                )

    def _digest_pieces(self, data: memoryview | None, dtype: DType) -> list[bytes]:
        assert data is not None
        return piece_digests(data, self.shape, dtype)

    def _read(
        self, worker: Worker, used: frozenset[int], runs: Sequence[tuple[int, int]]
    ) -> list[memoryview | None]:
        """The runs (start, count) of each used source, one after the other in one buffer."""
        buffers: list[memoryview | None] = [None] * len(self.sources)
        total = sum(count for _, count in runs)
        for slot, i in enumerate(sorted(used)):
            itemsize = self.sources[i].dtype.itemsize
            buffers[i] = view = worker.buffer(slot, total * itemsize)
            read_runs(self.sources[i], runs, view)
        return buffers

    def _sample(
        self, spec: PassSpec, runs: Sequence[tuple[int, int]], gates: Sequence[Gate | None]
    ) -> Rounds:
        """Run a pass over runs of elements, as many at once as fill a tile, joined as if they were neighbours."""
        compiled = self.settings.backend.compile(spec)
        used = used_sources(pass_roots(spec), spec.known)

        def run(start: int, own: Sequence[tuple[int, int]], worker: Worker) -> None:
            total = sum(count for _, count in own)
            _admit(compiled.run(self._read(worker, used, own), start, total), gates)

        batches = runs_by_tile(runs, self.settings.tile_elements)
        yield Round([partial(run, *batch) for batch in batches])


@dataclass(frozen=True, slots=True)
class _Tile:
    """What a tile gave, and the digests of the pieces that it wrote of each output and read of sources."""

    result: TileResult
    written: list[list[bytes]]
    read: dict[int, list[bytes]]


def _admit(result: TileResult, gates: Sequence[Gate | ColumnSums | None]) -> None:
    """Let what was measured through the gates that there are."""
    for i, gate in enumerate(gates):
        if gate is not None:
            result.partials[i] = gate.admit(result.partials[i])


def first_bad(found: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """How many elements of all tiles are not finite, and the flat index of the first (-1 for none)."""
    total = sum(number for number, _ in found)
    return total, next((first for number, first in found if number), -1)


def _numpy_dtype(dtype: DType) -> Any:
    return np.float64 if dtype is DType.FLOAT64 else np.float32


def combine_partials(op: str, parts: Sequence[Any]) -> float:
    """A reduction from its partials per piece: exact summation, so the order of tiles and tensors cannot matter."""
    numbers = [float(number) for part in parts for number in part]
    return max(numbers, default=-math.inf) if op == "peak" else exact_sum(numbers)
