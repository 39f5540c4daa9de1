"""The language family that tests and demonstrations use: its checkpoints, splits, figures and digests."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml

from weightsmith.testbeds.build import build, file_digests
from weightsmith.testbeds.data.language_tasks import read_rows
from weightsmith.testbeds.families.language_tiny import languages as tiny
from weightsmith.testbeds.families.shared_base import shared_steps
from weightsmith.testbeds.models import byte_llama

OWN = {"python": ("python",), "manual": ("manual",), "skills": ("last", "larger")}
SPLITS = ("train", "validation", "test")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build("language-tiny", tmp_path_factory.mktemp("built") / "family")


@pytest.fixture(scope="module")
def record(built):
    return json.loads((built / "family.json").read_text())


def test_every_expert_is_better_than_the_base_on_its_own_and_the_average_loses_it(record):
    figures = record["figures"]
    for expert, tasks in OWN.items():
        for task in tasks:
            sign = -1 if task in ("python", "manual") else 1
            start = figures["base"][task]["test"]
            own = sign * (figures[f"experts/{expert}"][task]["test"] - start)
            merged = sign * (figures["average"][task]["test"] - start)
            assert own > 0.1
            assert merged < own / 2


def test_splits_share_no_text_and_no_prompt(built):
    for task in ("python", "manual", "last", "larger"):
        shown = [
            row.get("text", row.get("prompt"))
            for split in SPLITS
            for row in read_rows(built / f"data/{task}.{split}.jsonl")
        ]
        assert len(set(shown)) == len(shown)


def test_the_suite_names_every_task_with_its_data(built):
    for split in ("validation", "test"):
        suite = yaml.safe_load((built / f"suite.{split}.yaml").read_text())
        kinds = {task["name"]: (task["kind"], task["metric"]) for task in suite["tasks"]}
        assert kinds == {
            "python": ("language_modeling", "bits_per_byte"),
            "manual": ("language_modeling", "bits_per_byte"),
            "last": ("generation", "exact_match"),
            "larger": ("choice", "accuracy"),
        }
        assert all((built / task["data"]).is_file() for task in suite["tasks"])


def test_members_read_back_and_differ(built, record):
    states = [byte_llama.read_model(built / member).state_dict() for member in record["members"]]
    assert len(states) == 4
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert any(not torch.equal(state[name], states[0][name]) for name in state)


def test_two_builds_from_nothing_are_equal_to_the_bit(record, tmp_path):
    again = build("language-tiny", tmp_path / "again")
    assert json.loads((again / "family.json").read_text())["files"] == record["files"]


class Bench:
    """A workshop whose places are in one folder."""

    def __init__(self, root):
        self.root = self.new = root

    def place(self, relative):
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@pytest.fixture
def shared(built, tmp_path, monkeypatch):
    """The tiny family where `language` would lie, and what is made rather than copied."""
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path))
    (tmp_path / "testbeds").mkdir()
    (tmp_path / "testbeds" / "language-tiny").symlink_to(built)
    made = []
    family = tiny()
    monkeypatch.setattr(type(family), "make_data", lambda *_: made.append("data") or {})
    monkeypatch.setattr(
        type(family), "make_base", lambda *_, folder: made.append(folder) or {folder: {}}
    )
    return family, Bench(tmp_path / "new"), made


def test_a_family_that_is_built_gives_its_data_and_base(shared, record):
    family, bench, made = shared
    data, base = shared_steps("other", family, ["python"], base="dense")
    data.make(bench)
    assert base.make(bench) == {"dense": record["figures"]["base"]}
    assert made == []
    suite = yaml.safe_load((bench.root / "suite.test.yaml").read_text())
    assert suite["suite"] == "other-test"
    assert [task["name"] for task in suite["tasks"]] == ["python"]
    digests = file_digests(bench.root)
    for path, digest in record["files"].items():
        if path.startswith("base/"):
            assert digests["dense/" + path.removeprefix("base/")] == digest
        if path.startswith("data/"):
            assert digests[path] == digest


def test_a_family_of_other_settings_gives_nothing(shared):
    family, bench, made = shared
    longer = replace(family, base=replace(family.base, steps=family.base.steps + 1))
    for step in shared_steps("other", longer, ["python"]):
        step.make(bench)
    assert made == ["data", "base"]
