"""Measuring stored tensors: graphs of reductions over groups, streamed, whatever the tiles and threads."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith.engine import count_differing, measure_each, measure_group
from weightsmith.engine.planning.backends import choose_backend
from weightsmith.engine.running.job_facts import JobSettings
from weightsmith.engine.running.measuring import count_nonfinite
from weightsmith.engine.running.scheduler import Scheduler
from weightsmith.graph import count, dot, peak, source, total
from weightsmith.graph.backends import native
from weightsmith.tensors import DType, MemoryTensor, digest_tensor

BACKENDS = ["torch", *(["native"] if native.available() else [])]


def tensor(array, dtype=DType.FLOAT32):
    return MemoryTensor.of("w", dtype, array)


def run(part, backend="auto", tile=1 << 12):
    found = []

    def job():
        found.append((yield from part(JobSettings(choose_backend("cpu", backend).load(), tile))))

    Scheduler(2).run([job()])
    return found[0]


@pytest.fixture
def pair():
    random = np.random.default_rng(3)
    return [random.standard_normal((300, 70)).astype(np.float32) for _ in range(2)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_group_gives_its_numbers_by_name_and_the_digests_of_what_was_read(pair, backend):
    a, b = pair
    mean = total(source(0)) * (1.0 / a.size)
    asked = {
        "ab": dot(source(0), source(1)),
        "largest": peak(abs(source(1))),
        "above": count(source(0) > mean),
    }
    tensors = [tensor(a), tensor(b)]
    found = run(lambda settings: measure_group(tensors, asked, settings), backend)
    assert found.values["ab"] == pytest.approx(np.vdot(a.astype(float), b.astype(float)))
    assert found.values["largest"] == abs(b).max()
    # A second pass: the mean has to be known first.
    assert found.values["above"] == (a > a.astype(float).mean()).sum()
    assert found.digests == tuple(digest_tensor(t) for t in tensors)


def test_tensors_that_no_reduction_reads_have_digests_too(pair):
    tensors = [tensor(array) for array in pair]
    asked = {"aa": dot(source(0), source(0))}
    found = run(lambda settings: measure_group(tensors, asked, settings))
    assert found.digests == tuple(digest_tensor(t) for t in tensors)


def test_neither_tiles_nor_threads_change_a_number(pair):
    tensors = [tensor(array) for array in pair]

    def measure(group, settings):
        return measure_group(group, {"ab": dot(source(0), source(1))}, settings)

    (one,) = measure_each([tensors], measure, 1)
    several = measure_each([tensors] * 3, measure, 2)
    small = run(lambda settings: measure(tensors, settings), tile=64)
    assert {found.values["ab"] for found in (one, *several, small)} == {one.values["ab"]}


def test_results_are_in_the_order_of_items():
    arrays = [np.full((n, 1000), n, np.float32) for n in (9, 1, 5)]
    found = measure_each(
        [[tensor(array)] for array in arrays],
        lambda group, settings: measure_group(group, {"largest": peak(source(0))}, settings),
        2,
    )
    assert [one.values["largest"] for one in found] == [9, 1, 5]


def test_elements_that_differ_are_counted_byte_for_byte():
    a = np.arange(10_000).astype(np.int32)
    b = a.copy()
    b[[3, 7000, 9999]] += 1
    pair = [tensor(array, DType.INT32) for array in (a, b)]
    assert run(lambda settings: count_differing(*pair, settings), tile=1024) == 3
    other = tensor(a.astype(np.uint32), DType.UINT32)
    assert run(lambda settings: count_differing(pair[0], other, settings)) == 10_000


@pytest.mark.parametrize("backend", BACKENDS)
def test_elements_that_are_not_finite_are_counted_with_the_first(backend):
    array = np.zeros((100, 80), np.float32)
    array[40, 3], array[90, 0] = np.inf, np.nan
    broken, whole = tensor(array), tensor(np.zeros((100, 80), np.float32))
    count_of = lambda t: run(lambda settings: count_nonfinite(t, settings), backend, 512)  # noqa: E731
    assert count_of(broken) == (2, 40 * 80 + 3)
    assert count_of(whole) == (0, -1)
    assert count_of(tensor(np.zeros(4, np.int32), DType.INT32)) == (0, -1)
