"""`weightsmith learn` as it is typed: from experts and texts to a merge, a report, and a stop in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.live.conftest import saved as saved

from weightsmith.cli.main import execute

from .conftest import items, recipe

TEXT = "The quick brown fox jumps over the lazy dog, and nobody is there to see it. " * 6


@pytest.fixture
def texts(saved, tmp_path, monkeypatch) -> Path:
    """A recipe of three small language models, and texts."""
    monkeypatch.chdir(tmp_path)
    folders = [str(saved("family language and lora", seed)) for seed in range(3)]
    given = {
        "weightsmith": 1,
        "merge_method": "task_arithmetic",
        "base_model": folders[0],
        "models": [{"model": folder} for folder in folders[1:]],
    }
    Path("merge.yaml").write_text(json.dumps(given))
    Path("corpus.txt").write_text(TEXT)
    Path("other.txt").write_text(TEXT[::-1])
    return tmp_path


def command(*more: str) -> list[str]:
    words = ["learn", "merge.yaml", "--data", "corpus.txt", "--out", "learned.yaml", "--quiet"]
    return [*words, "--context", "16", "--limit", "4", "--batch-size", "2", *more]


@pytest.mark.usefixtures("texts")
def test_texts_lead_to_a_merge_and_a_report(capsys):
    more = ("--objective", "cross_entropy", "--validation", "other.txt", "--check-every", "2")
    assert execute(command("--preset", "adamerging", "--steps", "4", *more)) == 0
    said = capsys.readouterr().out
    assert "learned.yaml" in said
    assert "4 steps: all steps are done" in said
    assert "on validation" in said
    assert execute(["merge", "learned.yaml", "out", "--quiet"]) == 0
    assert execute(["report", "--learning", "learned.learning.json", "-o", "r.html"]) == 0
    page = Path("r.html").read_text()
    for word in ("learning-losses", "learning-validation", "learning-map", "corpus.txt"):
        assert word in page


@pytest.mark.usefixtures("texts")
def test_experts_are_learned_from_their_teachers(capsys):
    teacher = json.loads(Path("merge.yaml").read_text())["models"][1]["model"]
    words = ("--preset", "expert_merging", "--steps", "3", "--teacher")
    assert execute(command(*words, f"corpus={teacher}", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(0 < value < 1 for value in found["values"].values())
    assert execute(command(*words, "corpus")) == 2
    assert "--teacher is TASK=MODEL" in capsys.readouterr().err
    assert execute(command(*words, "corpus=a", "--teacher", "corpus=b")) == 2
    assert "Two teachers are named for the task 'corpus'" in capsys.readouterr().err


@pytest.mark.faults
def test_a_kill_at_any_moment_leaves_a_run_that_goes_on_to_the_same_recipe(family):
    (family / "free.yaml").write_text(json.dumps(recipe(family)))
    rows = items(count=12).items
    x = np.stack([row.inputs["inputs"].numpy() for row in rows])
    np.savez(family / "toy.npz", inputs=x, labels=np.array([int(row.labels) for row in rows]))
    suite = "suite: toy\ntasks: [{name: toy, kind: classification, data: toy.npz}]\n"
    (family / "suite.yaml").write_text(suite)

    def begun(out: str) -> subprocess.Popen[bytes]:
        words = ["learn", "free.yaml", "--data", "suite.yaml", "--out", out, "--steps", "400"]
        return subprocess.Popen(
            [sys.executable, "-m", "weightsmith", *words, "--quiet"],
            cwd=family,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    killed = begun("killed.yaml")
    state = family / "killed.yaml.partial" / "state"
    deadline = time.monotonic() + 60
    while not state.is_file() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    finished = [begun("killed.yaml"), begun("whole.yaml")]
    assert [one.wait() for one in finished] == [0, 0]
    texts = [
        (family / name).read_text().splitlines()[1:-1] for name in ("killed.yaml", "whole.yaml")
    ]
    assert texts[0] == texts[1]
