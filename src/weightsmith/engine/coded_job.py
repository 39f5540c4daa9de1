"""The parts of one coded tensor - shared vector, masks, rescalers - computed in one reading of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from weightsmith.engine.outputs.storage import Sink, Storage
from weightsmith.engine.scheduler import Round, Rounds, Worker
from weightsmith.engine.tensor_job import Finished, TensorJob, first_bad
from weightsmith.engine.tiles import digest_rounds, piece_digests, tile_task, tiles_of
from weightsmith.recipes.formula import OutputTensor
from weightsmith.tensors.digests import tensor_digest
from weightsmith.tensors.graph import Value
from weightsmith.tensors.passes import (
    PassSpec,
    TilePass,
    TileResult,
    has_row_nodes,
    used_sources,
)
from weightsmith.tensors.stored import LazyTensor

_OUT = -1


@dataclass(slots=True)
class CodedPart:
    """One part: the job of its formula, where its stored bytes go, and where they can be read back."""

    job: TensorJob
    output: OutputTensor
    storage: Storage
    placed: Sink
    back: Callable[[], LazyTensor]
    sink: Sink = field(init=False)

    def __post_init__(self) -> None:
        self.sink = self.storage.sink(self.placed, self.output.dtype, self.job.shape)

    @property
    def spec(self) -> PassSpec:
        """The pass that gives the part, its statistics being known."""
        job = self.job
        dtypes = tuple(tensor.dtype for tensor in job.sources)
        known = dict(job.known)
        return PassSpec(
            job.shape, dtypes, job.output, self.output.dtype, known=known, wide=job.wide
        )


@dataclass(frozen=True, slots=True)
class _TileOfParts:
    results: list[TileResult]
    written: list[list[bytes]]
    read: dict[int, list[bytes]]


def compute_parts(parts: Sequence[CodedPart]) -> Rounds:
    """Measure what the parts still need, then write them all; returns a `Finished` for each.

    All parts are formulas over the same stored tensors, and every one of these is read once for all of them.
    """
    for part in parts:
        yield from part.job.resolve()
    specs = [part.spec for part in parts]
    first = parts[0].job
    compiled = [first.settings.backend.compile(spec) for spec in specs]
    rows = any(has_row_nodes(_outputs(spec), spec.known) for spec in specs)
    shared = range(first.stored_sources)

    def run(worker: Worker, start: int, count: int) -> _TileOfParts:
        found = _TileOfParts([], [], {})
        buffers: dict[int, memoryview] = {}
        for i in shared:
            buffers[i] = _read(worker, i, first.sources[i], start, count)
            found.read[i] = piece_digests(buffers[i], first.shape, first.sources[i].dtype)
        for part, spec, tile_pass in zip(parts, specs, compiled, strict=True):
            _write_tile(worker, part, spec, tile_pass, (start, count), buffers, found)
        return found

    tiles = tiles_of(first.shape, first.settings.tile_elements, rows)
    results: list[_TileOfParts] = yield Round([tile_task(run, *tile) for tile in tiles])
    sources = {
        i: tensor_digest(
            first.sources[i].dtype,
            first.sources[i].shape,
            [digest for tile in results for digest in tile.read[i]],
        )
        for i in shared
    }
    finished = []
    for at, part in enumerate(parts):
        if part.storage.is_plain:
            pieces = [digest for tile in results for digest in tile.written[at]]
            digest = tensor_digest(part.output.dtype, part.job.shape, pieces)
        else:
            digest = yield from digest_rounds(part.back(), first.settings.tile_elements)
        finished.append(_finished(digest, sources, [tile.results[at] for tile in results]))
    return finished


def _write_tile(
    worker: Worker,
    part: CodedPart,
    spec: PassSpec,
    tile_pass: TilePass,
    tile: tuple[int, int],
    buffers: dict[int, memoryview],
    found: _TileOfParts,
) -> None:
    start, count = tile
    used = used_sources(_outputs(spec), spec.known)
    views: list[memoryview | None] = []
    for i, tensor in enumerate(part.job.sources):
        if i not in used:
            views.append(None)
        elif i in buffers:
            views.append(buffers[i])
        else:
            views.append(_read(worker, i, tensor, start, count))
    dtype = part.output.dtype
    out = worker.buffer(_OUT, count * dtype.itemsize)
    found.results.append(tile_pass.run(views, start, count, out))
    part.sink.write(start, out)
    is_plain = part.storage.is_plain
    found.written.append(piece_digests(out, part.job.shape, dtype) if is_plain else [])


def _outputs(spec: PassSpec) -> list[Value]:
    return [] if spec.output is None else [spec.output]


def _read(worker: Worker, key: int, tensor: LazyTensor, start: int, count: int) -> memoryview:
    data = worker.buffer(key, count * tensor.dtype.itemsize)
    tensor.read_into(start, start + count, data)
    return data


def _finished(digest: str, sources: dict[int, str], results: Sequence[TileResult]) -> Finished:
    by_source = zip(*[r.nonfinite_sources for r in results], strict=True) if results else iter(())
    return Finished(
        digest,
        dict(sources),
        first_bad([r.nonfinite_output for r in results]),
        tuple(first_bad(list(found)) for found in by_source)[: len(sources)],
    )
