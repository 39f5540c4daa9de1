"""Several outputs of one reading: computed in the same passes, each with the bytes that it has alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from weightsmith.deltas.bits import MASK, packed_bytes
from weightsmith.engine.outputs.storage import BITS, CONSTANT, PLAIN, StorageForm, Target
from weightsmith.engine.running.job_facts import Finished, JobSettings
from weightsmith.engine.running.scheduler import Job, Scheduler
from weightsmith.engine.running.tensor_job import TensorJob
from weightsmith.graph.backends import native
from weightsmith.graph.backends.torch_backend import TorchBackend
from weightsmith.graph.graph import Value, above, largest_share, norm, source, value, where
from weightsmith.graph.passes import Backend
from weightsmith.tensors.digests import digest_tensor
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.memory import MemoryTensor

BACKENDS = ["torch", *(["native"] if native.available() else [])]
SHAPE = (96, 128)
TILE = 1 << 12


class Read(MemoryTensor):
    """A tensor that counts how many of its elements are read."""

    def __init__(self, name: str, data: np.ndarray) -> None:
        stored = memoryview(data.astype(np.float32).tobytes())
        super().__init__(name, DType.FLOAT32, data.shape, stored)
        self.elements = 0

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        self.elements += stop - start
        super().read_into(start, stop, buffer)


@dataclass
class Kept:
    """A sink in memory that can be read back."""

    dtype: DType
    shape: tuple[int, ...]
    data: bytearray = field(init=False)

    def __post_init__(self) -> None:
        self.data = bytearray(self.dtype.itemsize * int(np.prod(self.shape)))

    def write(self, start: int, data: memoryview) -> None:
        at = start * self.dtype.itemsize
        self.data[at : at + data.nbytes] = data.cast("B")

    def back(self) -> MemoryTensor:
        return MemoryTensor("kept", self.dtype, self.shape, memoryview(self.data))


def backend_of(name: str) -> Backend:
    return TorchBackend() if name == "torch" else native.load()


def run(
    backend: Backend,
    graphs: Sequence[Value],
    forms: Sequence[tuple[DType, StorageForm]],
    sources: Sequence[Read],
) -> tuple[list[Finished], list[bytes]]:
    """What a job with these outputs is recorded with, and the bytes that it stored."""
    kept = [Kept(form.dtype(dtype), form.shape(SHAPE)) for dtype, form in forms]
    targets = [
        Target(dtype, sink, form, sink.back)
        for (dtype, form), sink in zip(forms, kept, strict=True)
    ]
    job = TensorJob("t", SHAPE, tuple(graphs), list(sources), JobSettings(backend, TILE))
    found: list[Finished] = []

    def compute() -> Job:
        found.extend((yield from job.compute(targets)))

    Scheduler(2).run([compute()])
    return found, [bytes(sink.data) for sink in kept]


def inputs() -> list[Read]:
    rng = np.random.default_rng(5)
    return [Read(f"t{i}", rng.normal(size=SHAPE)) for i in range(3)]


def parts() -> tuple[list[Value], list[tuple[DType, StorageForm]]]:
    """Parts of one graph: a unified vector, a mask by an order statistic, a scale, and the sum rounded."""
    base, a, b = source(0), source(1), source(2)
    delta = (a - base) + (b - base)
    mask = above(delta, largest_share(delta, 0.2))
    scale = norm(a - base) / norm(delta)
    graphs = [delta, where(mask, 1.0, 0.0), value(scale), base + delta * scale]
    forms = [
        (DType.FLOAT32, PLAIN),
        (MASK, BITS),
        (DType.FLOAT32, CONSTANT),
        (DType.BFLOAT16, PLAIN),
    ]
    return graphs, forms


@pytest.mark.parametrize("name", BACKENDS)
def test_outputs_of_one_reading_have_the_bytes_and_digests_that_each_has_alone(name: str) -> None:
    backend = backend_of(name)
    graphs, forms = parts()
    together, stored = run(backend, graphs, forms, inputs())
    for at, (graph, form) in enumerate(zip(graphs, forms, strict=True)):
        (alone,), (own,) = run(backend, [graph], [form], inputs())
        assert stored[at] == own
        assert together[at].digest == alone.digest
        assert together[at].source_digests == alone.source_digests


@pytest.mark.parametrize("name", BACKENDS)
def test_outputs_of_one_reading_read_their_inputs_as_often_as_the_one_with_most_passes(
    name: str,
) -> None:
    backend = backend_of(name)
    graphs, forms = parts()
    read = {"together": 0, "most": 0, "sum": 0}
    sources = inputs()
    run(backend, graphs, forms, sources)
    read["together"] = sum(s.elements for s in sources)
    for graph, form in zip(graphs, forms, strict=True):
        sources = inputs()
        run(backend, [graph], [form], sources)
        own = sum(s.elements for s in sources)
        read["most"], read["sum"] = max(read["most"], own), read["sum"] + own
    assert read["most"] <= read["together"] < read["sum"]
    # Two sums of one pass, those of the mask's threshold and the writing pass: three readings and the samples.
    assert read["together"] <= 4 * 3 * int(np.prod(SHAPE))


@pytest.mark.parametrize("name", BACKENDS)
def test_two_elementwise_outputs_read_every_input_once(name: str) -> None:
    sources = inputs()[:2]
    graphs = [source(0) + source(1), source(0) * source(1)]
    plain = (DType.FLOAT32, PLAIN)
    _, (total, product) = run(backend_of(name), graphs, [plain, plain], sources)
    assert [s.elements for s in sources] == [int(np.prod(SHAPE))] * 2
    a, b = (np.frombuffer(s.data, np.float32) for s in sources)
    np.testing.assert_array_equal(np.frombuffer(total, np.float32), a + b)
    np.testing.assert_array_equal(np.frombuffer(product, np.float32), a * b)


@pytest.mark.parametrize("name", BACKENDS)
def test_every_output_counts_its_own_nan(name: str) -> None:
    spoilt = np.zeros(SHAPE)
    spoilt[3, 7] = np.nan
    sources = [Read("whole", np.ones(SHAPE)), Read("spoilt", spoilt)]
    plain = (DType.FLOAT32, PLAIN)
    found, _ = run(backend_of(name), [source(0) * 2.0, source(1) * 2.0], [plain, plain], sources)
    assert [one.nonfinite for one in found] == [(0, -1), (1, 3 * SHAPE[1] + 7)]


@pytest.mark.parametrize("name", BACKENDS)
def test_a_digest_of_a_coded_output_is_that_of_what_is_stored(name: str) -> None:
    graphs, forms = parts()
    found, stored = run(backend_of(name), graphs, forms, inputs())
    assert len(stored[1]) == packed_bytes(int(np.prod(SHAPE)))
    mask = MemoryTensor("mask", DType.UINT8, (len(stored[1]),), memoryview(stored[1]))
    assert found[1].digest == digest_tensor(mask)


@pytest.mark.parametrize("name", BACKENDS)
def test_an_output_that_reads_no_input_fills_every_element(name: str) -> None:
    """The number of a reduction that is known: the writing pass alone has no source left to read."""
    sources = inputs()[:1]
    graph = value(norm(source(0)))
    _, (stored,) = run(backend_of(name), [graph], [(DType.FLOAT32, PLAIN)], sources)
    exact = np.sqrt(np.sum(np.frombuffer(sources[0].data, np.float32).astype(np.float64) ** 2))
    expected = np.full(SHAPE, np.float32(exact))
    np.testing.assert_allclose(
        np.frombuffer(stored, np.float32).reshape(SHAPE), expected, rtol=1e-6
    )
