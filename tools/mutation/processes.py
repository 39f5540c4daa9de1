"""Forked processes with a result, some of them at a time."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Address space that a child may take beyond what it has when it is forked.
_MEMORY = 4 << 30
_OUTPUT = "output"


@dataclass(frozen=True)
class Ended:
    """How a child ended: with what its function returned, or by a signal."""

    value: Any
    signal: int = 0


def run_all(
    jobs: Iterable[tuple[Any, Callable[[], Any]]], workers: int
) -> Iterator[tuple[Any, Ended]]:
    """Run functions in forked processes, `workers` at a time; yields (key, how it ended) as they end."""
    waiting = iter(jobs)
    running: dict[int, tuple[Any, Path]] = {}
    while True:
        while len(running) < workers:
            job = next(waiting, None)
            if job is None:
                break
            folder = Path(tempfile.mkdtemp(prefix="mutants-"))
            running[_forked(job[1], folder)] = (job[0], folder)
        if not running:
            return
        pid, status = os.wait()
        if pid not in running:
            continue
        key, folder = running.pop(pid)
        ended = _read(folder, status)
        shutil.rmtree(folder, ignore_errors=True)
        yield key, ended


def _read(folder: Path, status: int) -> Ended:
    if os.WIFSIGNALED(status):
        return Ended(None, os.WTERMSIG(status))
    result = folder / "result"
    value = pickle.loads(result.read_bytes())
    if isinstance(value, _Failure):
        printed = (folder / _OUTPUT).read_text(errors="replace")[-4000:]
        raise RuntimeError(f"A process of the mutation run failed:\n{printed}\n{value.text}")
    return Ended(value)


@dataclass(frozen=True)
class _Failure:
    text: str


def _forked(function: Callable[[], Any], folder: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        try:
            _confine(folder)
            result = pickle.dumps(function())
        except BaseException:  # noqa: BLE001 - the parent raises it
            result = pickle.dumps(_Failure(traceback.format_exc()))
        (folder / "partial").write_bytes(result)
        (folder / "partial").rename(folder / "result")
    finally:
        os._exit(0)


def _confine(folder: Path) -> None:
    """Quiet, with a folder of its own for temporary files, and a bound for memory."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    written = os.open(folder / _OUTPUT, os.O_WRONLY | os.O_CREAT)
    for descriptor in (1, 2):
        os.dup2(written, descriptor)
    # pytest makes `tmp_path` below the one, everything else temporary files below the other.
    for variable in ("PYTEST_DEBUG_TEMPROOT", "TMPDIR"):
        os.environ[variable] = str(folder)
    tempfile.tempdir = None
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (bound, resource.getrlimit(resource.RLIMIT_AS)[1]))


def limit_time(cpu_s: float, wall_s: float) -> None:
    """End this process by SIGPROF or SIGALRM unless it comes back here before that much time is over."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, wall_s)
