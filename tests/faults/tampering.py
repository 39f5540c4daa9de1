"""System calls of a process that fail, or at which it is killed, by strace."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def _strace() -> str:
    """Why system calls cannot be tampered with here, or nothing."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    probe = ["strace", "-f", "-qq", "-o", os.devnull, "-e", "inject=fsync:error=EIO:when=1", "true"]
    found = subprocess.run(probe, capture_output=True, text=True, check=False)
    return "" if found.returncode == 0 else f"strace does not work here: {found.stderr.strip()}"


def tampered(*what: str) -> tuple[str, ...]:
    """The words before a command that let strace spoil some of its system calls."""
    calls = ",".join(one.split(":")[0] for one in what)
    injected = [word for one in what for word in ("-e", f"inject={one}")]
    return ("strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={calls}", *injected)


def counted_calls(log: Path, names: list[str]) -> dict[str, int]:
    """How often each system call is in a log of strace, in the thread that makes it most often."""
    counts: dict[tuple[str, str], int] = {}
    for line in log.read_text().splitlines():
        thread, _, rest = line.partition(" ")
        name = rest.strip().partition("(")[0]
        if name in names:
            counts[thread, name] = counts.get((thread, name), 0) + 1
    return {n: max((c for (_, name), c in counts.items() if name == n), default=0) for n in names}


def logged(log: Path, names: list[str]) -> tuple[str, ...]:
    """The words before a command that let strace log some of its system calls."""
    return ("strace", "-f", "-qq", "-o", str(log), "-e", f"trace={','.join(names)}")


needs_strace = pytest.mark.skipif(bool(_strace()), reason=_strace() or "")
