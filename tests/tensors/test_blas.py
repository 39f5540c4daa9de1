"""numpy's linear algebra on one thread within a block, whatever the environment says, and as before afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from threadpoolctl import threadpool_info

from weightsmith.engine.running.scheduler import Job, Round, Scheduler, Worker
from weightsmith.tensors.blas import one_blas_thread

PROGRAM = """
import numpy as np
from threadpoolctl import threadpool_info
from weightsmith.tensors.blas import one_blas_thread
def counts():
    return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]
before = counts()
with one_blas_thread():
    with one_blas_thread():
        inner = counts()
    outer = counts()
print(before, inner, outer, counts(), sep="|")
"""


def blas_threads() -> list[int]:
    return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]


def test_the_library_works_on_one_thread_within_a_block_and_on_as_many_as_before_afterwards():
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, check=True
    )
    before, inner, outer, after = done.stdout.strip().split("|")
    if before == "[]":
        pytest.skip("numpy is built with a library whose threads cannot be set")
    assert before == after == f"[{min(2, os.cpu_count() or 1)}]"
    assert inner == outer == "[1]"


def test_the_last_of_several_threads_restores_what_was_set():
    before = blas_threads()
    entered, leave = threading.Event(), threading.Event()

    def inside() -> None:
        with one_blas_thread():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=inside)
    with one_blas_thread():
        thread.start()
        entered.wait()
    assert set(blas_threads()) <= {1}
    leave.set()
    thread.join()
    assert blas_threads() == before


def test_tasks_of_a_scheduler_have_one_thread_of_linear_algebra_each():
    before, found = blas_threads(), []

    def job() -> Job:
        def run(_: Worker) -> None:
            found.extend(blas_threads())

        yield Round([run, run])

    Scheduler(2).run([job()])
    assert set(found) <= {1}
    assert blas_threads() == before
