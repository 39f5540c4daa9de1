"""A library of packages: listed, equal streams stored once, cleaned up, readable whenever work is cut short."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress

import numpy as np
import pytest

import weightsmith
from weightsmith.checkpoints.formats.packages import SHARED
from weightsmith.errors import CheckpointError, OutputError, UsageError
from weightsmith.packages import sharing
from weightsmith.packages.package_library import materialise, members, own_streams
from weightsmith.packages.packing import pack
from weightsmith.packages.sharing import dedupe, gc
from weightsmith.tensors.dtypes import DType


@pytest.fixture
def library(family, stored):
    """A library with the packages one, two and three, of which one and two have a tensor in common."""
    place = family.root / "library"
    place.mkdir()
    name = "model.layers.0.mlp.up_proj.weight"
    array = family.arrays[name]
    moved = array + 0.013 * np.random.default_rng(9).standard_normal(array.shape)
    common = {name: stored(moved, DType.FLOAT32)}
    for seed, tuned in enumerate(("one", "two", "three"), start=1):
        replaced = common if tuned != "three" else {}
        folder = family.finetune(tuned, seed=seed, replaced=replaced)
        pack(folder, family.base, place / tuned)
    return place


def bytes_of(folder):
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def check(library, content):
    """Every member reads as its fine-tune."""
    for name in ("one", "two", "three"):
        if (library / name).is_dir():
            assert content(library / name) == content(library.parent / name)


def test_members_are_listed_with_what_they_take(library, family):
    pack(family.root / "one", family.base, library / "small", budget="1/10")
    (library / "notes").mkdir()
    (library / ".hidden").mkdir()
    (library / "link").symlink_to(library / "one")
    found = {member.name: member for member in members(library)}
    assert list(found) == ["one", "small", "three", "two"]
    assert found["one"].codecs == {"lossless": 6}
    assert found["one"].error == 0.0
    assert found["one"].base == str(family.base)
    own = ("weightsmith-delta.json", "delta.safetensors")
    assert found["one"].nbytes == sum((library / "one" / name).stat().st_size for name in own)
    assert 0 < found["small"].ratio < found["one"].ratio < 1
    assert 0 < found["small"].error < 1


def test_a_package_is_not_taken_for_a_library(library):
    with pytest.raises(UsageError, match="is a package itself"):
        members(library / "one")


def test_a_damaged_member_is_listed_with_its_problem(library):
    (library / "two" / "weightsmith-delta.json").write_text("{}")
    (library / "three" / "delta.safetensors").unlink()
    problems = {member.name: member.problem for member in members(library)}
    assert problems["one"] == ""
    assert "damaged" in problems["two"]
    assert "delta.safetensors" in problems["three"]


def test_bundles_are_listed_by_task_and_can_be_materialised(library, family, content):
    recipe = {
        "weightsmith": 1,
        "merge_method": "emr",
        "base_model": str(family.base),
        "models": [{"model": str(family.root / "one")}, {"model": str(family.root / "two")}],
        "bundle": {},
    }
    weightsmith.merge(recipe, library / "tasks")
    found = {member.name: member for member in members(library)}
    assert found["tasks#one"].kind == "task"
    assert found["tasks#one"].codecs == {"emr": 6}
    materialise(library, "tasks#one", family.root / "task")
    assert content(family.root / "task") == content(f"{library / 'tasks'}#one")
    with pytest.raises(CheckpointError, match="name one of them"):
        materialise(library, "tasks", family.root / "all")


def test_members_are_materialised(library, family, content):
    made = materialise(library, "two", family.root / "out", threads=2)
    assert content(family.root / "out") == content(family.root / "two")
    assert weightsmith.verify(family.root / "out", recompute=100).ok
    assert made.digest == weightsmith.replay(family.root / "out", family.root / "again").digest
    with pytest.raises(UsageError, match="did you mean 'three'"):
        materialise(library, "tree", family.root / "other")
    for name in ("../library/one", "", ".", "..", "/", "one#x"):
        with pytest.raises((UsageError, CheckpointError)):
            materialise(library, name, family.root / "other")
    with pytest.raises(UsageError, match="no folder"):
        members(library / "nothing")


def test_equal_streams_are_stored_once_and_everything_still_reads(library, family, content):
    before = bytes_of(library)
    done = dedupe(library)
    assert (done.streams, done.packages) == (1, 2)
    assert bytes_of(library) == before - done.freed < before
    assert len(list((library / SHARED).glob("*.safetensors"))) == 1
    check(library, content)
    listed = {member.name: member for member in members(library)}
    total = sum(member.nbytes for member in listed.values())
    companions = sum(f.stat().st_size for f in library.rglob("config.json"))
    assert total + companions == bytes_of(library)
    again = dedupe(library)
    assert (again.packages, again.freed) == (0, 0)
    recipe = {
        "weightsmith": 1,
        "merge_method": "linear",
        "models": [{"model": str(library / "one")}, {"model": str(library / "two")}],
        "parameters": {"weight": 0.5},
    }
    originals = json.loads(json.dumps(recipe).replace(str(library), str(family.root)))
    assert (
        weightsmith.merge(recipe, family.root / "a").digest
        == weightsmith.merge(originals, family.root / "b").digest
    )


def test_a_fourth_package_joins_what_is_shared(library, family, content):
    dedupe(library)
    shutil.copytree(family.root / "one", family.root / "four")
    pack(family.root / "four", family.base, library / "four")
    done = dedupe(library)
    assert done.packages >= 1
    assert content(library / "four") == content(family.root / "one")
    check(library, content)


def test_gc_removes_only_what_nobody_needs(library, content):
    dedupe(library)
    assert gc(library) == []
    shutil.rmtree(library / "one")
    assert gc(library) == []
    check(library, content)
    shutil.rmtree(library / "two")
    planned = gc(library, dry_run=True)
    assert [removal.path.suffix for removal in planned] == [".safetensors"]
    assert planned[0].path.exists()
    assert gc(library) == planned
    assert not planned[0].path.exists()
    check(library, content)


def test_gc_touches_nothing_foreign(library, family, content):
    dedupe(library)
    kept = [library / SHARED / "notes.txt", library / SHARED / "model.safetensors"]
    for file in kept:
        file.write_text("mine")
    kept.append(library / "one" / ".mine.partial")
    kept[-1].write_text("mine")
    foreign = library / "x.partial"
    foreign.mkdir()
    (foreign / "mine").write_text("mine")
    assert gc(library) == []
    assert all(file.exists() for file in (*kept, foreign / "mine"))
    (library / "one" / "weightsmith-delta.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        gc(library)
    check_two = content(library / "two")
    assert check_two == content(family.root / "two")


def test_gc_removes_leftovers_of_killed_writes(library, content):
    (library / SHARED).mkdir()
    (library / "one" / ".delta.safetensors.partial").write_text("half")
    (library / SHARED / f".{'0' * 32}.safetensors.partial").write_text("half")
    staged = library / "four.partial"
    pid = os.fork()
    if pid == 0:
        from weightsmith.engine.records.merge_staging import Staging
        from weightsmith.packages.packing import _begin

        staging = Staging(library / "four")
        _begin(staging)
        (staging.checkpoint / "half").write_text("half")
        os._exit(0)
    os.waitpid(pid, 0)
    assert staged.is_dir()
    found = {removal.path for removal in gc(library)}
    assert staged in found
    assert len(found) == 3
    assert not staged.exists()
    check(library, content)


def test_gc_leaves_a_package_that_is_being_written(library):
    from weightsmith.engine.records.merge_staging import Staging
    from weightsmith.packages.packing import _begin

    with Staging(library / "four") as staging:
        _begin(staging)
        assert gc(library) == []
        assert staging.checkpoint.is_dir()


def test_two_cannot_work_on_one_library(library):
    dedupe(library)
    with sharing._locked(library), pytest.raises(OutputError, match="Another run"):
        dedupe(library)
    with sharing._locked(library), pytest.raises(OutputError, match="Another run"):
        gc(library)


class Killed(BaseException):
    """Stands for the moment of a kill."""


@pytest.mark.parametrize("moment", range(0, 52, 4))
def test_cut_short_anywhere_every_package_reads_and_the_next_call_goes_on(
    library, content, monkeypatch, moment
):
    calls = 0

    def counted(function):
        def wrapper(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls > moment:
                raise Killed
            return function(*arguments, **options)

        return wrapper

    with monkeypatch.context() as patched:
        for name in ("os.replace", "os.open", "os.fsync", "os.pwrite"):
            module, _, attribute = name.partition(".")
            assert module == "os"
            patched.setattr(os, attribute, counted(getattr(os, attribute)))
        # A killed process cleans nothing up either.
        patched.setattr("pathlib.Path.unlink", lambda *_arguments, **_options: None)
        with suppress(Killed):
            dedupe(library)
    check(library, content)
    done = dedupe(library)
    assert done.packages <= 2
    gc(library)
    check(library, content)
    assert not list(library.rglob("*.partial"))
    assert len(list((library / SHARED).glob("*.safetensors"))) == 1


def test_a_damaged_stream_is_never_shared(library, content):
    file = library / "one" / "delta.safetensors"
    common = own_streams(library / "one")["model.layers.0.mlp.up_proj.weight::lossless::planes"]
    data = bytearray(file.read_bytes())
    data[common.offset + 5] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="is on record"):
        dedupe(library)
    assert file.read_bytes() == bytes(data)
    for name in ("two", "three"):
        assert content(library / name) == content(library.parent / name)


def test_a_damaged_shared_stream_is_noticed_and_healed_by_another_copy(library, family, content):
    dedupe(library)
    (file,) = (library / SHARED).glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(CheckpointError):
        content(library / "one")
    pack(family.root / "one", family.base, library / "four")
    dedupe(library)
    check(library, content)


def test_a_package_taken_out_of_the_library_says_what_it_lacks(library, family):
    dedupe(library)
    shutil.copytree(library / "one", family.root / "lonely")
    with pytest.raises(CheckpointError, match="taken away from what it shares"):
        materialise(family.root, "lonely", family.root / "out")


def test_a_refused_deduplication_leaves_nothing_in_the_library(library):
    (library / "two" / "weightsmith-delta.json").write_text("{}")
    before = sorted(library.rglob("*"))
    with pytest.raises(CheckpointError, match="is not a package's header"):
        dedupe(library)
    assert sorted(library.rglob("*")) == before
