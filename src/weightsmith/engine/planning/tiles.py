"""Tiles: how a tensor is cut up to be streamed, and the rounds that only read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from weightsmith.engine.running.scheduler import Round, Rounds, Task, Worker
from weightsmith.tensors import DType, LazyTensor, piece_digest, piece_elements, tensor_digest

_SAMPLE_RUN = 4096
_SAMPLE_SMALLEST, _SAMPLE_LARGEST = 1 << 16, 1 << 20
_SAMPLE_SHARE = 32  # of so many elements one is sampled, unless they are few


def tile_elements(shape: Sequence[int], target: int, rows: bool) -> int:
    """Elements per tile: a whole number of pieces near `target`; whole rows (at the least) where `rows` are needed."""
    piece = piece_elements(shape)
    row_length = shape[-1] if shape else 1
    if rows and (len(shape) < 2 or piece % max(row_length, 1)):
        return max(math.prod(shape), 1)
    return piece * max(1, target // piece)


def sample_runs(shape: Sequence[int], rows: bool) -> list[tuple[int, int]]:
    """Evenly spread ranges of elements (whole rows where `rows` are needed) that stand for the tensor."""
    numel = math.prod(shape)
    row_length = shape[-1] if shape else 1
    run = _SAMPLE_RUN
    if rows:
        run = row_length * -(-_SAMPLE_RUN // max(row_length, 1))
    wanted = min(max(numel // _SAMPLE_SHARE, _SAMPLE_SMALLEST), _SAMPLE_LARGEST)
    step = max(run, numel * run // wanted // run * run)
    return [(at, min(run, numel - at)) for at in range(0, numel, step)]


def sample_step(population: int) -> int:
    """How far apart the runs begin of which the sample of a model with `population` elements is made."""
    return _SAMPLE_RUN * max(1, min(_SAMPLE_SHARE, population // _SAMPLE_LARGEST))


def model_sample_runs(
    shape: Sequence[int], rows: bool, offset: int, step: int
) -> list[tuple[int, int]]:
    """A tensor's part of the sample of a model in which it begins at `offset`: as often as it is large, or never."""
    numel = math.prod(shape)
    first = -offset % step
    if not rows:
        return [(at, min(_SAMPLE_RUN, numel - at)) for at in range(first, numel, step)]
    row_length = max(shape[-1] if shape else 1, 1)
    length = -(-_SAMPLE_RUN // row_length)  # in rows
    starts = range(first, numel, step * length * row_length // _SAMPLE_RUN)
    runs = [(at // row_length * row_length, length * row_length) for at in starts]
    return [(at, min(size, numel - at)) for at, size in runs]


def runs_by_tile(
    runs: Sequence[tuple[int, int]], tile: int
) -> Iterator[tuple[int, Sequence[tuple[int, int]]]]:
    """Runs of elements in groups that fill a tile, or of one longer run, each with how many elements are before it."""
    before = first = held = 0
    for at, (_, count) in enumerate(runs):
        if held and held + count > tile:
            yield before, runs[first:at]
            before, first, held = before + held, at, 0
        held += count
    if held:
        yield before, runs[first:]


def piece_digests(data: memoryview, shape: Sequence[int], dtype: DType) -> list[bytes]:
    """Digests of the pieces in a tile's bytes."""
    step = piece_elements(shape) * dtype.itemsize
    return [piece_digest(data[at : at + step]) for at in range(0, len(data), step)]


def tiles_of(shape: Sequence[int], target: int, rows: bool = False) -> list[tuple[int, int]]:
    """The tiles (start, count) of a tensor; see `tile_elements`."""
    numel = math.prod(shape)
    step = tile_elements(shape, target, rows)
    return [(start, min(step, numel - start)) for start in range(0, numel, step)]


def plain_round(run: Callable[[Worker, int, int], Any], shape: Sequence[int], target: int) -> Round:
    """`run` on every tile of a tensor that is read or copied without regard to rows."""
    return Round([tile_task(run, start, count) for start, count in tiles_of(shape, target)])


def digest_rounds(tensor: LazyTensor, target: int) -> Rounds:
    """Read a tensor once and return its digest."""

    def run(worker: Worker, start: int, count: int) -> list[bytes]:
        data = worker.buffer(0, count * tensor.dtype.itemsize)
        tensor.read_into(start, start + count, data)
        return piece_digests(data, tensor.shape, tensor.dtype)

    results = yield plain_round(run, tensor.shape, target)
    return tensor_digest(
        tensor.dtype, tensor.shape, [digest for part in results for digest in part]
    )


def tile_task(run: Callable[[Worker, int, int], Any], start: int, count: int) -> Task:
    """A task that runs `run` on one tile."""
    return lambda worker: run(worker, start, count)
