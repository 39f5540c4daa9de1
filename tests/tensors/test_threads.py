"""Work in threads: results in order, memory bounded, errors passed on."""

from __future__ import annotations

import threading
import time

import pytest

from weightsmith.tensors.threads import in_order, in_parallel


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_items(threads):
    def work(item):
        time.sleep(0.001 * (item % 3))
        return item * item

    found = in_order(work, range(40), threads, size=lambda _: 1, limit=4)
    assert list(found) == [item * item for item in range(40)]


def test_items_under_way_keep_within_the_limit_and_a_larger_one_runs_alone():
    lock = threading.Lock()
    held: list[int] = []
    most = 0
    sizes = [1, 2, 1, 9, 1, 3, 2, 2, 1, 4]

    def work(size):
        nonlocal most
        with lock:
            held.append(size)
            most = max(most, sum(held) if len(held) > 1 else 0)
        time.sleep(0.002)
        with lock:
            held.remove(size)
        return size

    assert list(in_order(work, sizes, 4, size=lambda size: size, limit=4)) == sizes
    assert 1 < most <= 4


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_passes_through_where_it_stands(threads):
    def work(item):
        if item == 3:
            raise ValueError("three")
        return item

    found = in_order(work, range(10), threads, size=lambda _: 1, limit=3)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(found)


def test_without_sizes_only_a_few_are_under_way():
    begun: list[int] = []
    found = in_order(lambda item: begun.append(item) or item, range(100), 2)
    assert next(found) == 0
    assert len(begun) <= 6
    assert list(found) == list(range(1, 100))


def test_parallel_results_come_in_order_and_nothing_gives_nothing():
    assert in_parallel(lambda item: item + 1, [3, 1, 2], 2) == [4, 2, 3]
    assert in_parallel(lambda item: item, []) == []
