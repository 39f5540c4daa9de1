"""A collection that is killed goes on where it was, and ends with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import weightsmith
from weightsmith.errors import OutputError
from weightsmith.progress import Silence
from weightsmith.statistics.data_run import DataRun
from weightsmith.statistics.forward_sums import GramSums
from weightsmith.statistics.kept_parts import KeptParts

KILLED = """
import os, signal, sys
import weightsmith
from weightsmith.progress import Silence

class Killing(Silence):
    def __init__(self, left):
        self.left = left
    def advance(self, amount, what=""):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)

model, data, out, steps = sys.argv[1:]
weightsmith.collect(
    "gram,fisher", model, data=data, out=out, context=16, limit=3, memory_bytes=1, progress=Killing(int(steps))
)
"""


def collect(model, corpus, out, **options):
    return weightsmith.collect(
        "gram,fisher", model, data=corpus, out=out, context=16, limit=3, memory_bytes=1, **options
    )


@pytest.mark.parametrize("steps", [8, 20])
def test_what_was_killed_goes_on_and_gives_the_same(saved, corpus, tmp_path, monkeypatch, steps):
    model = saved("family language and lora")
    whole = [
        file.path.read_bytes() for file in collect(model, corpus, tmp_path / "w.safetensors").files
    ]
    out = tmp_path / "k.safetensors"
    command = [sys.executable, "-c", KILLED, str(model), str(corpus), str(out), str(steps)]
    ended = subprocess.run(command, env=os.environ, check=False)
    assert ended.returncode == -signal.SIGKILL
    parts = set((tmp_path / "k.safetensors.partial" / "parts").iterdir())
    assert parts
    assert not list(tmp_path.glob("k.*safetensors"))
    put = []
    keep = KeptParts.put
    monkeypatch.setattr(
        KeptParts,
        "put",
        lambda self, kind, place, own: put.append(kind) or keep(self, kind, place, own),
    )
    again = collect(model, corpus, out)
    assert [file.path.read_bytes() for file in again.files] == whole
    # Embedding, two blocks, norm and head forward, the same and what lies outside of them back.
    assert len(put) == 5 + 6 - len(parts)
    assert not Path(f"{out}.partial").exists()


def test_parts_of_another_request_are_not_taken(saved, corpus, tmp_path, monkeypatch):
    model, out = saved("family language and lora"), tmp_path / "o.safetensors"

    class Interrupted(Silence):
        def advance(self, amount, what=""):
            if what.endswith("1"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(model, corpus, out, progress=Interrupted())
    assert Path(f"{out}.partial").is_dir()
    seen = []
    monkeypatch.setattr(
        GramSums,
        "take",
        lambda self, prefix, take=GramSums.take: seen.append(prefix) or take(self, prefix),
    )
    collect(model, corpus, out, seed=1)
    assert "model.layers.0" in seen


def test_two_runs_at_one_place_are_refused(saved, corpus, tmp_path, monkeypatch):
    out = tmp_path / "o.safetensors"
    model = saved("family language and lora")
    run = DataRun.by_blocks

    def twice(self):
        with pytest.raises(OutputError, match="Another run is writing"):
            collect(model, corpus, out)
        run(self)

    monkeypatch.setattr(DataRun, "by_blocks", twice)
    collect(model, corpus, out)
