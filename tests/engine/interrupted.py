"""Runs that end before their time: by an exception at a chosen moment, or by a signal in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightsmith.progress import Silence

_MERGE = """
import json, os, signal, sys
import weightsmith
from weightsmith.progress import Silence
recipe, out, at, options = (json.loads(a) for a in sys.argv[1:])

class Kill(Silence):
    written = 0
    def begin(self, name, total=None, unit="", *, done=0, share=1):
        print(done, flush=True)
        return self
    def say(self, text): self.at(text)
    def advance(self, nbytes, what=""):
        Kill.written += 1
        self.at(Kill.written)
    def at(self, moment):
        if moment == at: os.kill(os.getpid(), signal.SIGKILL)

weightsmith.merge(recipe, out, progress=Kill(), **options)
"""


class Stop(Exception):
    """Raised by a progress callback."""


@dataclass
class Recorder(Silence):
    """A progress that remembers what it was told, and raises at tile number `stop_at`, or at the stage of that name."""

    stop_at: int | str | None = None
    resumed: int = -1
    total: int = -1
    written: int = 0
    tiles: int = 0
    tensors: set[str] = field(default_factory=set)

    def begin(self, name, total=None, unit="", *, done=0, share=1):
        self.total, self.resumed = total, done
        return self

    def advance(self, nbytes: int, what: str = "") -> None:
        self.tiles += 1
        if self.tiles == self.stop_at:
            raise Stop
        self.written += nbytes
        self.tensors.add(what)

    def say(self, text: str) -> None:
        if text == self.stop_at:
            raise Stop


def merge_in_process(
    recipe: dict[str, Any], out: Path, kill_at: int | str | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """A merge in a process of its own, which kills itself at a tile or a stage."""
    arguments = [json.dumps(a) for a in (recipe, str(out), kill_at, options)]
    command = [sys.executable, "-c", _MERGE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
