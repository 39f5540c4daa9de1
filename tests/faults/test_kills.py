"""A merge that is killed at any moment, and killed again while it resumes, ends with the same bytes."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from .conftest import Bench, ended
from .tampering import counted_calls, logged, needs_strace, tampered

KILLING = (
    "write pwrite64 fsync rename renameat2 ftruncate fallocate unlink unlinkat mkdir rmdir".split()
)
FAILING = "pwrite64 fsync rename ftruncate fallocate unlink unlinkat mkdir rmdir".split()


def kill_at_random(bench: Bench, seconds: float, kills: int, seed: int) -> None:
    """Start, kill at a uniformly random moment, start again; a run that gets through is checked and begins anew."""
    generator = random.Random(seed)
    killed = 0
    while killed < kills:
        process = bench.start()
        time.sleep(generator.uniform(0.3, 1) * seconds)
        process.send_signal(signal.SIGKILL)
        code, message = ended(process)
        assert code in (0, -signal.SIGKILL), message
        if code == 0:
            bench.check(bench.out)
            shutil.rmtree(bench.out)
        else:
            killed += 1
            if bench.out.exists():
                bench.check_after_a_fault()
                shutil.rmtree(bench.out)
    bench.check_after_a_fault()


def test_a_few_random_kills(bench: Bench, seconds: float) -> None:
    """The quick form of the test below."""
    kill_at_random(bench, seconds, kills=4, seed=1)


@pytest.mark.faults
def test_fifty_random_kills(bench: Bench, seconds: float) -> None:
    """Two threads, small tiles, several passes."""
    kill_at_random(bench, seconds, kills=50, seed=2)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_deadly_signals_are_like_a_kill(bench: Bench, seconds: float, name: str) -> None:
    """What a batch system sends before it kills."""
    process = bench.start()
    time.sleep(seconds * 0.8)
    process.send_signal(getattr(signal, name))
    code, _ = ended(process)
    assert code in (0, -getattr(signal, name))
    bench.check_after_a_fault()


def test_a_stopped_run_goes_on(bench: Bench, seconds: float) -> None:
    """Ctrl-Z and fg."""
    process = bench.start()
    time.sleep(seconds * 0.6)
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.3)
    process.send_signal(signal.SIGCONT)
    code, message = ended(process)
    assert code == 0, message
    bench.check(bench.out)


def calls_of(bench: Bench, names: list[str], log: Path) -> dict[str, int]:
    """How often a merge makes each system call, in the thread that makes it most often."""
    process = bench.start(bench.root / "counted", prefix=logged(log, names), threads=1)
    assert ended(process)[0] == 0
    return counted_calls(log, names)


@pytest.mark.faults
@needs_strace
def test_a_kill_at_every_system_call_that_changes_something(bench: Bench) -> None:
    """Every one, not a sample; then the same call ends with the same bytes."""
    points = 0
    for name, count in calls_of(bench, KILLING, bench.root / "log").items():
        for k in range(1, count + 1):
            process = bench.start(prefix=tampered(f"{name}:signal=KILL:when={k}"), threads=1)
            code, message = ended(process)
            assert code == -signal.SIGKILL, (name, k, message)
            bench.check_after_a_fault()
            shutil.rmtree(bench.out)
            points += 1
    assert points >= 60
    print(f"{points} kills")


@pytest.mark.faults
@needs_strace
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_an_error_of_every_system_call_that_changes_something(bench: Bench, error: str) -> None:
    """A sentence and never a false success; then, with the disk mended, the same bytes."""
    points = 0
    for name, count in calls_of(bench, FAILING, bench.root / "log").items():
        for k in range(1, count + 1):
            process = bench.start(prefix=tampered(f"{name}:error={error}:when={k}"), threads=1)
            code, message = ended(process)
            assert code in (0, 4, 5), (name, k, code, message)
            assert code == 0 or message.strip(), (name, k)
            # An empty folder that cannot be removed is no reason to call a whole output a failure.
            assert code != 0 or not (bench.staging.exists() and any(bench.staging.iterdir())), (
                name,
                k,
            )
            if name in ("pwrite64", "fsync", "ftruncate"):
                assert code != 0, (name, k)
            bench.check_after_a_fault()
            shutil.rmtree(bench.out)
            points += 1
    print(f"{points} errors")


@pytest.mark.faults
@needs_strace
@pytest.mark.parametrize("call", ["pwrite64", "preadv"])
def test_interrupted_system_calls_are_repeated(bench: Bench, call: str) -> None:
    """EINTR is no error."""
    process = bench.start(prefix=tampered(f"{call}:error=EINTR:when=1+7"), threads=1)
    code, message = ended(process)
    assert code == 0, message
    bench.check(bench.out)


@pytest.mark.faults
@needs_strace
def test_a_file_system_without_locks_or_allocation_works(bench: Bench) -> None:
    """As some network file systems are."""
    for what in ("flock:error=ENOLCK", "fallocate:error=EOPNOTSUPP", "renameat2:error=ENOSYS"):
        code, message = ended(bench.start(prefix=tampered(what)))
        assert code == 0, (what, message)
        bench.check(bench.out)
        shutil.rmtree(bench.out)
