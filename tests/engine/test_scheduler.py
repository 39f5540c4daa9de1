"""Jobs advance in rounds on all threads, and one failure stops everything."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from weightsmith.engine.running.scheduler import Job, Round, Scheduler, Worker


@pytest.mark.parametrize("threads", [1, 3])
def test_each_round_gets_its_results_in_order(threads: int) -> None:
    """Whatever finishes first."""
    seen: dict[int, list[Any]] = {}

    def job(number: int) -> Job:
        first = yield Round([lambda _w, i=i: (number, i) for i in range(5)])
        second = yield Round([])
        third = yield Round([lambda _w: "end"])
        seen[number] = [*first, *second, *third]

    Scheduler(threads).run(job(n) for n in range(20))
    assert seen == {n: [*((n, i) for i in range(5)), "end"] for n in range(20)}


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_stops_the_run_and_is_raised(threads: int) -> None:
    """Later jobs are not started."""
    started = []

    def job(number: int) -> Job:
        started.append(number)
        yield Round([lambda _w: 1 // (number - 3)])

    with pytest.raises(ZeroDivisionError):
        Scheduler(threads).run(job(n) for n in range(1000))
    assert len(started) < 20


def test_few_jobs_are_open_at_a_time() -> None:
    """Memory grows with the window, not with the number of tensors."""
    lock = threading.Lock()
    open_now, most = 0, 0

    def job() -> Job:
        nonlocal open_now, most
        with lock:
            open_now += 1
            most = max(most, open_now)
        yield Round([lambda _w: None] * 3)
        with lock:
            open_now -= 1

    Scheduler(2, window=3).run(job() for _ in range(200))
    assert most <= 3


def test_buffers_are_reused() -> None:
    """A worker grows a buffer once."""
    worker = Worker()
    first = worker.buffer(0, 100)
    first[:] = bytes(100)
    assert worker.buffer(0, 50).obj is first.obj
