"""Worker threads that keep every core busy with tiles, whatever tensor they belong to.

A job (one tensor, say) is a generator: it yields a `Round` of independent tasks and is resumed with
their results in order, so a job with several passes reads as straight code. Only a few jobs are
open at a time, and the tasks of an open job go before those of the next, which keeps memory small
and reading sequential.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightsmith.tensors import one_blas_thread


class Worker:
    """What one thread owns: read and write buffers that are reused from tile to tile."""

    def __init__(self) -> None:
        self._buffers: dict[int, bytearray] = {}

    def buffer(self, slot: int, nbytes: int) -> memoryview:
        """A buffer of `nbytes` bytes; its content is whatever the last tile left."""
        held = self._buffers.get(slot)
        if held is None or len(held) < nbytes:
            held = self._buffers[slot] = bytearray(nbytes)
        return memoryview(held)[:nbytes]


Task = Callable[[Worker], Any]


@dataclass(frozen=True, slots=True)
class Round:
    """Tasks that may run at once; the job goes on when all are done."""

    tasks: Sequence[Task]


Job = Generator[Round, list[Any], None]
# A part of a job (`yield from`), which hands back a result of its own.
Rounds = Generator[Round, list[Any], Any]


@dataclass(slots=True)
class _OpenRound:
    job: Job
    tasks: Sequence[Task]
    results: list[Any]
    started: int = 0
    missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.missing = len(self.tasks)


class Scheduler:
    """Runs jobs on `threads` threads, with one thread of linear algebra each, and at most `window` jobs open."""

    def __init__(self, threads: int, window: int | None = None) -> None:
        self.threads = max(1, threads)
        self._window = window or self.threads + 1
        self._workers = [Worker() for _ in range(self.threads)]

    @one_blas_thread()
    def run(self, jobs: Iterable[Job]) -> None:
        """Run all jobs to their end; the first error stops the rest and is raised here, Ctrl-C likewise."""
        run = _Run(iter(jobs), self._window)
        if self.threads == 1:
            run.work(self._workers[0])
        else:
            self._run_threads(run)
        if run.error is not None:
            raise run.error

    def _run_threads(self, run: _Run) -> None:
        threads = [threading.Thread(target=run.work, args=(w,), daemon=True) for w in self._workers]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(timeout=0.2)
        except BaseException as interrupted:  # noqa: BLE001 - raised by run() once all have stopped
            run.stop(interrupted)
            for thread in threads:
                thread.join()


class _Run:
    def __init__(self, jobs: Iterator[Job], window: int) -> None:
        self._jobs = jobs
        self._window = window
        self._rounds: deque[_OpenRound] = deque()
        self._open = 0
        self._exhausted = False
        self._changed = threading.Condition()
        self.error: BaseException | None = None

    def stop(self, error: BaseException) -> None:
        """Let every worker return after its current task."""
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()

    def work(self, worker: Worker) -> None:
        """Take tasks, and open jobs, until there are none left."""
        try:
            while (taken := self._take()) is not None:
                if isinstance(taken, tuple):
                    opened, index = taken
                    opened.results[index] = opened.tasks[index](worker)
                    self._finish(opened)
                else:
                    self._advance(taken, None)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that called run()
            self.stop(error)

    def _take(self) -> tuple[_OpenRound, int] | Job | None:
        with self._changed:
            while self.error is None:
                for opened in self._rounds:
                    if opened.started < len(opened.tasks):
                        opened.started += 1
                        return opened, opened.started - 1
                if self._open < self._window and not self._exhausted:
                    job = next(self._jobs, None)
                    if job is not None:
                        self._open += 1
                        return job
                    self._exhausted = True
                elif self._open == 0:
                    return None
                else:
                    self._changed.wait()
            return None

    def _finish(self, opened: _OpenRound) -> None:
        with self._changed:
            opened.missing -= 1
            if opened.missing or self.error is not None:
                return
            self._rounds.remove(opened)
        self._advance(opened.job, opened.results)

    def _advance(self, job: Job, results: list[Any] | None) -> None:
        # The job's own code runs outside the lock, so that the other workers go on meanwhile.
        while True:
            try:
                tasks = (next(job) if results is None else job.send(results)).tasks
            except StopIteration:
                with self._changed:
                    self._open -= 1
                    self._changed.notify_all()
                return
            if tasks:
                with self._changed:
                    self._rounds.append(_OpenRound(job, tasks, [None] * len(tasks)))
                    self._changed.notify_all()
                return
            results = []
