"""Building: whole or absent, step by step, going on after an interruption."""

from __future__ import annotations

import fcntl
import json
import sys
import types

import pytest

from weightsmith.errors import OutputError, ResourceError, UsageError
from weightsmith.publishing.safe_places import SUFFIX
from weightsmith.testbeds import build as building
from weightsmith.testbeds.build import build
from weightsmith.testbeds.family_registry import (
    FAMILIES,
    Blueprint,
    BuildStep,
    TrainedFamily,
    find_family,
)


class Toy:
    """A family of three steps that counts how often each was made, and can be interrupted."""

    def __init__(self):
        self.made = []
        self.interrupt_at = None
        self.settings = {"revision": 1}

    def blueprint(self):
        steps = tuple(
            BuildStep(name, 1, self._step(name)) for name in ("data", "base", "experts/one")
        )
        return Blueprint(("one",), (), self.settings, steps)

    def _step(self, name):
        def make(workshop):
            workshop.place(f"{name}/half.txt").write_text(name)
            if self.interrupt_at == name:
                raise KeyboardInterrupt
            self.made.append(name)
            config = workshop.place(f"{name}/config.json")
            config.write_text(
                json.dumps({"after": sorted(p.name for p in workshop.root.iterdir())})
            )
            if name != "data":
                workshop.place(f"{name}/model.safetensors").write_text(name)
            workshop.within(1, 1)
            return {name: {"one": {"test": 0.5}}} if name != "data" else {}

        return make


@pytest.fixture
def toy(monkeypatch):
    toy = Toy()
    module = types.ModuleType("toy_family")
    module.blueprint = toy.blueprint
    monkeypatch.setitem(sys.modules, "toy_family", module)
    family = TrainedFamily("toy", "a toy", (), 0, 0, "toy_family:blueprint")
    monkeypatch.setitem(FAMILIES, "toy", family)
    return toy


def files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.usefixtures("toy")
def test_a_family_appears_whole_with_its_record(tmp_path):
    out = build("toy", tmp_path / "family")
    record = json.loads((out / "family.json").read_text())
    assert files(out) == set(record["files"]) | {"family.json"}
    assert record["members"] == ["base", "experts/one"]
    assert record["figures"] == {m: {"one": {"test": 0.5}} for m in ("base", "experts/one")}
    assert [path.name for path in tmp_path.iterdir()] == ["family"]


@pytest.mark.usefixtures("toy")
def test_two_builds_have_equal_digests(tmp_path):
    first, second = (
        json.loads((build("toy", tmp_path / name) / "family.json").read_text()) for name in "ab"
    )
    assert first["files"] == second["files"]
    assert first["digest"] == second["digest"]


@pytest.mark.parametrize("step", ["data", "base", "experts/one"])
def test_an_interrupted_build_goes_on_after_the_last_finished_step(toy, tmp_path, step):
    toy.interrupt_at = step
    with pytest.raises(KeyboardInterrupt):
        build("toy", tmp_path / "family")
    assert not (tmp_path / "family").exists()
    toy.interrupt_at = None
    build("toy", tmp_path / "family")
    assert toy.made == ["data", "base", "experts/one"]
    again = build("toy", tmp_path / "other")
    assert building.file_digests(again / "base") == building.file_digests(
        tmp_path / "family" / "base"
    )


def interrupted(toy, out):
    toy.interrupt_at = "experts/one"
    with pytest.raises(KeyboardInterrupt):
        build("toy", out)
    toy.interrupt_at = None
    return out.with_name(out.name + SUFFIX)


def test_a_step_whose_files_were_changed_is_made_again_with_all_after_it(toy, tmp_path):
    staging = interrupted(toy, tmp_path / "family")
    (staging / "family" / "base" / "config.json").write_text("{}")
    build("toy", tmp_path / "family")
    assert toy.made == ["data", "base", "base", "experts/one"]


def test_a_torn_last_line_of_the_journal_costs_one_step(toy, tmp_path):
    staging = interrupted(toy, tmp_path / "family")
    journal = staging / "steps.jsonl"
    journal.write_text(journal.read_text()[:-9])
    build("toy", tmp_path / "family")
    assert toy.made == ["data", "base", "base", "experts/one"]


def test_a_build_that_went_on_after_a_torn_line_can_be_interrupted_again(toy, tmp_path):
    staging = interrupted(toy, tmp_path / "family")
    journal = staging / "steps.jsonl"
    journal.write_text(journal.read_text()[:-9])
    interrupted(toy, tmp_path / "family")
    build("toy", tmp_path / "family")
    assert toy.made == ["data", "base", "base", "experts/one"]


def test_other_settings_begin_anew(toy, tmp_path):
    interrupted(toy, tmp_path / "family")
    toy.settings = {"revision": 2}
    build("toy", tmp_path / "family")
    assert toy.made == ["data", "base", "data", "base", "experts/one"]


def test_fresh_discards_what_was_finished(toy, tmp_path):
    interrupted(toy, tmp_path / "family")
    build("toy", tmp_path / "family", fresh=True)
    assert toy.made == ["data", "base", "data", "base", "experts/one"]


def test_a_family_that_is_there_is_left_alone_unless_forced(toy, tmp_path):
    build("toy", tmp_path / "family")
    build("toy", tmp_path / "family")
    assert len(toy.made) == 3
    build("toy", tmp_path / "family", force=True)
    assert len(toy.made) == 6


def test_an_interrupted_replacement_leaves_the_old_family(toy, tmp_path):
    out = build("toy", tmp_path / "family")
    before = files(out)
    toy.interrupt_at = "base"
    with pytest.raises(KeyboardInterrupt):
        build("toy", out, force=True)
    assert files(out) == before


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.usefixtures("toy")
def test_nothing_else_is_overwritten(tmp_path, force):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match="no family"):
        build("toy", tmp_path / "mine", force=force)
    assert files(tmp_path / "mine") == {"thesis.tex"}


@pytest.mark.usefixtures("toy")
def test_a_replacement_loses_no_file_that_someone_put_into_the_family(tmp_path):
    out = build("toy", tmp_path / "family")
    (out / "merged.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds 'merged\.txt', which was not written"):
        build("toy", out, force=True)
    assert (out / "merged.txt").read_text() == "mine"


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("name", ["base/config.json", "family.json"])
def test_a_family_that_somebody_changed_is_not_replaced(tmp_path, name):
    out = build("toy", tmp_path / "family")
    text = (out / name).read_text()
    (out / name).write_text(text.replace("after", "mine").replace("a toy", "mine"))
    with pytest.raises(OutputError, match=r"changed since"):
        build("toy", out, force=True)
    assert "mine" in (out / name).read_text()


def test_a_family_with_a_record_of_an_earlier_version_is_replaced(toy, tmp_path):
    """It has no seal."""
    out = build("toy", tmp_path / "family")
    record = json.loads((out / "family.json").read_text())
    del record["seal"]
    (out / "family.json").write_text(json.dumps(record, indent=2) + "\n")
    build("toy", out, force=True)
    assert len(toy.made) == 6


@pytest.mark.usefixtures("toy")
def test_another_family_is_not_overwritten(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "family.json").write_text('{"family": "vision"}')
    with pytest.raises(OutputError, match="'vision'"):
        build("toy", tmp_path / "other", force=True)


@pytest.mark.usefixtures("toy")
def test_two_builds_do_not_work_in_one_place(tmp_path):
    staging = tmp_path / "family.partial"
    staging.mkdir()
    with (staging / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="Another run is writing"):
            build("toy", tmp_path / "family")


@pytest.mark.usefixtures("toy")
def test_the_cache_is_the_default_place(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "cache"))
    assert build("toy") == tmp_path / "cache" / "testbeds" / "toy"


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    family = TrainedFamily("lacking", "x", ("json", "no_such_library"), 0, 0, "nowhere:nothing")
    monkeypatch.setitem(FAMILIES, "lacking", family)
    with pytest.raises(ResourceError, match="needs no_such_library, which"):
        build("lacking", tmp_path / "family")


def test_a_wrong_name_gets_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'vision'"):
        find_family("vison")
    with pytest.raises(UsageError, match="there are vision, "):
        find_family("zzzzzz")


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_has_a_blueprint(name):
    made = FAMILIES[name].blueprint()
    assert made.tasks
    names = [step.name for step in made.steps]
    assert len(set(names)) == len(names)
    json.dumps(dict(made.settings))
    for source in made.sources:
        assert source.digest.startswith(("sha256:", "sha512:"))
        assert source.licence
