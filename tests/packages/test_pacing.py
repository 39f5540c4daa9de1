"""Work in threads: results in order, memory bounded, errors passed on."""

from __future__ import annotations

import threading
import time

import pytest

from weightsmith.packages.pacing import paced


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_items(threads):
    def work(item):
        time.sleep(0.001 * (item % 3))
        return item * item

    found = paced(work, range(40), lambda _: 1, limit=4, threads=threads)
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

    assert list(paced(work, sizes, lambda size: size, limit=4, threads=4)) == sizes
    assert 1 < most <= 4


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_passes_through_where_it_stands(threads):
    def work(item):
        if item == 3:
            raise ValueError("three")
        return item

    found = paced(work, range(10), lambda _: 1, limit=3, threads=threads)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(found)
