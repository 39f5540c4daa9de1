"""Numbers per row and per column: known to the passes after the one that computed them, the same for every tiling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightsmith.engine.outputs.storage import Target
from weightsmith.engine.planning.trace import StatisticMember
from weightsmith.engine.running import tensor_job
from weightsmith.engine.running.job_facts import JobSettings
from weightsmith.engine.running.model_scope import resolve_model_scope
from weightsmith.engine.running.scheduler import Job, Scheduler
from weightsmith.engine.running.tensor_job import TensorJob
from weightsmith.graph import graph
from weightsmith.graph.backends import native
from weightsmith.graph.backends.torch_backend import TorchBackend
from weightsmith.graph.by_column import column_total
from weightsmith.graph.columns import Columns
from weightsmith.graph.graph import Scope, Value, source, walk
from weightsmith.graph.model_statistics import ModelStatistic
from weightsmith.graph.passes import (
    Backend,
    PassSpec,
    TilePass,
    is_row_reduction,
    pass_roots,
    rows_to_keep,
)
from weightsmith.graph.site import Site
from weightsmith.methods.pairs.arcee_fusion import ArceeFusion, softmax
from weightsmith.methods.parts import registry
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.memory import MemoryTensor
from weightsmith.tensors.place import Kind, Place

BACKENDS = ["torch", *(["native"] if native.available() else [])]


def backend_of(name: str) -> Backend:
    return TorchBackend() if name == "torch" else native.load()


class Recorded:
    """A backend that remembers which passes it was asked for."""

    def __init__(self, backend: Backend) -> None:
        self.name = backend.name
        self.specs: list[PassSpec] = []
        self._backend = backend

    def compile(self, spec: PassSpec) -> TilePass:
        self.specs.append(spec)
        return self._backend.compile(spec)

    def linalg(self) -> Any:
        return self._backend.linalg()


class Collected:
    """A sink in memory."""

    def __init__(self, nbytes: int, itemsize: int) -> None:
        self.data = bytearray(nbytes)
        self._itemsize = itemsize

    def write(self, start: int, data: memoryview) -> None:
        at = start * self._itemsize
        self.data[at : at + len(data)] = data


def computed(
    backend: Backend,
    output: Value,
    arrays: Sequence[np.ndarray],
    tile: int = 1 << 18,
    threads: int = 1,
) -> np.ndarray:
    """What a job of the engine writes, as float32."""
    dtype = DType.FLOAT64 if arrays[0].dtype == np.float64 else DType.FLOAT32
    shape = arrays[0].shape
    sources = [
        MemoryTensor(f"t{i}", dtype, shape, bytearray(a.tobytes())) for i, a in enumerate(arrays)
    ]
    job = TensorJob("t", shape, (output,), list(sources), JobSettings(backend, tile))
    sink = Collected(4 * math.prod(shape), 4)

    def run() -> Job:
        yield from job.compute([Target(DType.FLOAT32, sink)])

    Scheduler(threads).run([run()])
    return np.frombuffer(sink.data, dtype=np.float32).reshape(shape)


MODEL = ModelStatistic("merge", "threshold")


def drawn(shape: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape).astype(np.float32)
    return [base, (base + 0.1 * rng.normal(size=shape)).astype(np.float32)]


def fused(shape: tuple[int, ...]) -> Value:
    """Arcee Fusion: two softmaxes and a divergence per row, then quantiles of the tensor."""
    return ArceeFusion().combine(source(0), [source(1)], Site(Place("t"), shape))


def rows_computed(spec: PassSpec) -> list[Any]:
    nodes = walk(pass_roots(spec), spec.known)
    return [n for n in nodes if is_row_reduction(n) and n not in spec.known]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("shape", [(700, 500), (3, 300, 400), (3000,), (40, 16), (0, 32)], ids=str)
def test_kept_rows_change_no_byte(
    name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = drawn(shape)
    kept = computed(backend_of(name), fused(shape), arrays)
    monkeypatch.setattr(tensor_job, "rows_to_keep", lambda *_: ())
    again = computed(backend_of(name), fused(shape), arrays)
    assert kept.tobytes() == again.tobytes()


@settings(max_examples=10, deadline=None)
@given(
    rows=st.integers(300, 900),
    columns=st.integers(400, 900),
    tile=st.sampled_from([1, 1 << 18, 1 << 20]),
    threads=st.integers(1, 3),
)
def test_neither_tiles_nor_threads_change_a_byte(
    rows: int, columns: int, tile: int, threads: int
) -> None:
    shape = (rows, columns)
    arrays = drawn(shape, rows)
    backend = backend_of(BACKENDS[-1])
    one = computed(backend, fused(shape), arrays, 1 << 22)
    other = computed(backend, fused(shape), arrays, tile, threads)
    assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("name", BACKENDS)
def test_only_a_sample_and_the_first_full_pass_compute_the_rows(name: str) -> None:
    shape = (700, 500)
    backend = Recorded(backend_of(name))
    computed(backend, fused(shape), drawn(shape))
    computing = [len(rows_computed(spec)) for spec in backend.specs]
    assert computing == [5, 5] + [0] * (len(computing) - 2)
    assert len(computing) > 2
    assert [len(spec.kept) for spec in backend.specs] == [0, 1] + [0] * (len(computing) - 2)


def test_a_sample_of_a_later_level_computes_its_own_rows() -> None:
    shape = (700, 500)
    x = source(0) / graph.total(abs(source(0)), Scope.ROW)
    first = graph.norm(x)
    output = graph.where(graph.above(x + first, graph.largest(x + first, 5000)), x, 0.0)
    backend = Recorded(backend_of(BACKENDS[-1]))
    arrays = drawn(shape)
    found = computed(backend, output, arrays)
    measured, sampled, *later = backend.specs
    assert len(measured.kept) == 1
    assert len(rows_computed(sampled)) == 1
    assert all(not rows_computed(spec) for spec in later)
    assert np.count_nonzero(found) == 5000


def test_a_sample_of_a_whole_model_computes_its_own_rows() -> None:
    shape = (700, 500)
    x = source(0) / graph.total(abs(source(0)), Scope.ROW)
    scaled = x + graph.norm(x)
    cut = graph.largest_share(scaled, 0.1, MODEL)
    output = graph.where(graph.above(scaled, cut), 1.0, 0.0)
    backend = Recorded(backend_of(BACKENDS[-1]))
    settings = JobSettings(backend, 1 << 18)
    jobs: list[TensorJob] = []
    for name, array in zip("ab", drawn(shape), strict=True):
        stored = MemoryTensor(name, DType.FLOAT32, shape, bytearray(array.tobytes()))
        members = {cut: StatisticMember(MODEL, name)}
        jobs.append(TensorJob(name, shape, (output,), [stored], settings, members))
    scheduler = Scheduler(1)
    resolve_model_scope(jobs, scheduler)
    sinks = [Collected(4 * math.prod(shape), 4) for _ in jobs]
    scheduler.run(
        job.compute([Target(DType.FLOAT32, sink)]) for job, sink in zip(jobs, sinks, strict=True)
    )
    assert [len(spec.kept) for spec in backend.specs[:2]] == [1, 1]
    sampled, measured = backend.specs[2:4], backend.specs[4:]
    assert [len(rows_computed(spec)) for spec in sampled] == [1, 1]
    assert not any(rows_computed(spec) for spec in measured)
    found = sum(np.frombuffer(sink.data, np.float32).sum() for sink in sinks)
    assert found == 2 * math.prod(shape) // 10


def test_only_the_outer_rows_that_later_passes_need_are_kept() -> None:
    inner = softmax(source(0))
    outer = graph.total(inner * inner, Scope.ROW)
    unused = graph.peak(source(0) * 3.0, Scope.ROW)
    norm, other = graph.norm(source(0) * outer), graph.total(source(0) * unused)
    output = source(0) * outer * norm * other
    levels = [norm.inputs[0], other]
    assert rows_to_keep([output], levels, {}, (64, 64)) == (outer,)
    assert rows_to_keep([output], levels, {outer: np.ones(64)}, (64, 64)) == ()


@pytest.mark.parametrize("shape", [(), (5,), (64, 15), ((1 << 18) + 1, 16), (0, 64)], ids=str)
def test_rows_that_are_short_or_very_many_are_not_kept(shape: tuple[int, ...]) -> None:
    row = graph.total(source(0), Scope.ROW)
    norm = graph.norm(source(0) - row)
    assert rows_to_keep([source(0) * row * norm], [norm.inputs[0]], {}, shape) == ()


def weighted(shape: tuple[int, ...], n: int, role: str = "mlp.up") -> Value:
    """WIDEN: sums of squares per column, ranked."""
    widen = registry.get("widen").build({}, [{}] * n, where="test")
    return widen.combine(
        source(0), [source(i + 1) for i in range(n)], Site(Place("t", Kind(role)), shape)
    )


@settings(max_examples=12, deadline=None)
@given(
    shape=st.sampled_from([(700, 500), (6, 200, 300), (900, 3, 5, 30), (2, 300000), (70000, 8)]),
    role=st.sampled_from(["mlp.up", "embedding"]),
    tile=st.sampled_from([1, 1 << 18, 1 << 20]),
    threads=st.integers(1, 3),
    level=st.integers(0, 2),
)
def test_columns_are_weighted_alike_whatever_tiles_threads_and_instructions(
    shape: tuple[int, ...], role: str, tile: int, threads: int, level: int
) -> None:
    arrays = [*drawn(shape), drawn(shape, 1)[1]]
    if not native.available():
        pytest.skip(native.why_not())
    one = computed(native.load(0), weighted(shape, 2, role), arrays, 1 << 22)
    other = computed(native.load(level), weighted(shape, 2, role), arrays, tile, threads)
    assert one.tobytes() == other.tobytes()


@pytest.mark.skipif(not native.available(), reason="no native kernels here")
@pytest.mark.parametrize("role", ["mlp.up", "embedding"])
@pytest.mark.parametrize("shape", [(700, 500), (6, 200, 300), (900, 3, 5, 30)], ids=str)
def test_both_backends_weigh_columns_alike(shape: tuple[int, ...], role: str) -> None:
    # Integers, so that both backends' sums are exact.
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-9, 9, shape).astype(np.float32) for _ in range(3)]
    ours, theirs = (
        computed(backend_of(name), weighted(shape, 2, role), arrays) for name in BACKENDS
    )
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("name", BACKENDS)
def test_a_model_reads_its_inputs_once_per_level_of_column_sums(name: str) -> None:
    shape = (700, 500)
    backend = Recorded(backend_of(name))
    centred = source(0) - column_total(source(0), Columns(700, 500)) / 700.0
    largest = graph.apply(np.max, graph.apply(np.abs, column_total(centred, Columns(700, 500))))
    arrays = drawn(shape)
    found = computed(backend, centred * 0.0 + largest, arrays)
    assert len(backend.specs) == 3
    wide = arrays[0].astype(np.float64)
    exact = arrays[0] - (wide.sum(0) / 700.0).astype(np.float32)
    np.testing.assert_allclose(found, abs(exact.astype(np.float64).sum(0)).max(), rtol=1e-6)


def test_a_cut_of_values_with_column_numbers_is_exact() -> None:
    """Its sample sees other columns' numbers, and is a guess only."""
    shape = (700, 500)
    scaled = source(0) / column_total(abs(source(0)), Columns(700, 500))
    output = graph.where(graph.above(scaled, graph.largest(scaled, 4321)), 1.0, 0.0)
    arrays = drawn(shape)
    arrays[0] *= np.linspace(1.0, 50.0, 500, dtype=np.float32)
    found = computed(backend_of(BACKENDS[-1]), output, arrays)
    sums = abs(arrays[0].astype(np.float64)).sum(0).astype(np.float32)
    size = abs(arrays[0] / sums)
    assert found.sum() == 4321
    assert size[found > 0].min() >= size[found == 0].max()
