"""An output replaces nothing that appeared, was changed, or was never weightsmith's; with --force as without."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import weightsmith
from weightsmith.errors import OutputError
from weightsmith.publishing import atomic_renames as renaming
from weightsmith.publishing import putting, staging

from .conftest import Family
from .interrupted import Recorder, bytes_of


class During(Recorder):
    """Does something at the first tile, or when the result is sealed."""

    def __init__(self, action: Callable[[], Any], at: str = "writing the manifest") -> None:
        super().__init__()
        self._action, self._at = action, at

    def say(self, text: str) -> None:
        if text == self._at:
            self._action()


@pytest.fixture
def recipe(family: Family) -> dict[str, Any]:
    """Two experts, several shards."""
    return family.recipe("linear", experts=2, shard_size=300_000)


@pytest.fixture
def out(family: Family, recipe: dict[str, Any]) -> Path:
    """An output of that recipe."""
    weightsmith.merge(recipe, family.root / "out")
    return family.root / "out"


@pytest.fixture(params=["in one step", "in two steps"])
def can_exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the system calls of Linux, and without, as on NFS."""
    if request.param == "in two steps":
        monkeypatch.setattr(renaming, "_renamed", lambda *_: False)


def folder_with_a_file(place: Path) -> None:
    place.mkdir()
    (place / "mine").write_text("precious")


APPEARING: dict[str, Callable[[Path], None]] = {
    "a folder": folder_with_a_file,
    "a file": lambda place: place.write_text("precious") and None,
    "a link": lambda place: place.symlink_to("elsewhere"),
    "a pipe": os.mkfifo,
}


@pytest.mark.usefixtures("can_exchange")
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("what", APPEARING)
def test_what_appears_at_the_output_during_a_run_is_left_as_it_is(
    family: Family, recipe: dict[str, Any], what: str, force: bool
) -> None:
    """And the same call ends it once that has been moved away, without computing anything again."""
    out = family.root / "out"
    with pytest.raises(OutputError, match="Something has appeared at"):
        weightsmith.merge(recipe, out, force=force, progress=During(lambda: APPEARING[what](out)))
    assert os.path.lexists(out)
    assert not out.is_dir() or (out / "mine").read_text() == "precious"
    assert not out.is_file() or out.read_text() == "precious"
    with pytest.raises(OutputError, match=r"exists|link|replace"):
        weightsmith.merge(recipe, out, force=force)
    os.rename(out, family.root / "moved away")
    again = Recorder()
    weightsmith.merge(recipe, out, progress=again)
    assert again.written == 0
    assert weightsmith.verify(out).ok


@pytest.mark.usefixtures("can_exchange")
def test_an_empty_folder_is_nothing_to_lose(family: Family, recipe: dict[str, Any]) -> None:
    """Made before the run or during it."""
    out = family.root / "out"
    out.mkdir()
    weightsmith.merge(recipe, out)
    assert weightsmith.verify(out).ok


@pytest.mark.usefixtures("can_exchange")
def test_an_empty_folder_that_is_filled_during_a_run_is_left_as_it_is(
    family: Family, recipe: dict[str, Any]
) -> None:
    out = family.root / "out"
    out.mkdir()
    fill = During(lambda: (out / "mine").write_text("precious"))
    with pytest.raises(OutputError, match="was changed while this run went on"):
        weightsmith.merge(recipe, out, progress=fill)
    assert bytes_of(out) == {"mine": b"precious"}


def trained(out: Path) -> str:
    """Other weights in the same form, to the last byte of the header."""
    file = min(out.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    return file.name


def saved_by_another_library(out: Path) -> str:
    file = min(out.glob("*.safetensors"))
    save_file(load_file(file), file, metadata={"format": "pt", "by": "another"})
    return file.name


def edited(out: Path) -> str:
    (out / "config.json").write_text('{"precious": 1}')
    return "config.json"


def linked(out: Path) -> str:
    """The same bytes, but elsewhere."""
    shutil.move(out / "config.json", out.parent / "moved.json")
    (out / "config.json").symlink_to("../moved.json")
    return "config.json"


def added(out: Path) -> str:
    (out / "optimizer.pt").write_bytes(b"precious")
    return "optimizer.pt"


def added_below(out: Path) -> str:
    (out / "runs").mkdir()
    (out / "runs" / "1").write_bytes(b"precious")
    return "runs/1"


def recorded_anew(out: Path) -> str:
    """A manifest that somebody changed says nothing of the rest."""
    path = out / "weightsmith-manifest.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    return path.name


def truncated(out: Path) -> str:
    file = min(out.glob("*.safetensors"))
    os.truncate(file, file.stat().st_size - 1)
    return file.name


CHANGES = [trained, saved_by_another_library, edited, linked, added, added_below, recorded_anew]
CHANGES += [truncated]


@pytest.mark.parametrize("change", CHANGES)
def test_an_output_that_was_changed_is_not_replaced_and_the_file_is_named(
    recipe: dict[str, Any], out: Path, change: Callable[[Path], str]
) -> None:
    """Training on a merge in place is common."""
    name = change(out)
    before = bytes_of(out)
    with pytest.raises(OutputError, match=rf"holds '{name}', which (is damaged or )?was"):
        weightsmith.merge(recipe, out, force=True)
    assert bytes_of(out) == before
    assert not out.with_name("out.partial").exists()


@pytest.mark.usefixtures("can_exchange")
@pytest.mark.parametrize("change", CHANGES)
def test_an_output_that_is_changed_during_a_run_is_not_replaced(
    recipe: dict[str, Any], out: Path, change: Callable[[Path], str]
) -> None:
    with pytest.raises(OutputError, match="was changed while this run went on"):
        weightsmith.merge(recipe, out, force=True, progress=During(lambda: change(out)))
    assert out.exists()
    shutil.rmtree(out)
    again = Recorder()
    weightsmith.merge(recipe, out, progress=again)
    assert again.written == 0


def test_an_output_that_is_changed_at_the_very_last_moment_comes_back(
    recipe: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look and the exchange of the two folders."""

    def late(first: Path, second: Path) -> bool:
        monkeypatch.setattr(putting, "exchange", renaming.exchange)
        trained(out)
        return renaming.exchange(first, second)

    monkeypatch.setattr(putting, "exchange", late)
    with pytest.raises(OutputError, match="was changed while"):
        weightsmith.merge(recipe, out, force=True)
    assert not weightsmith.verify(out).ok
    assert (out.with_name("out.partial") / "checkpoint").is_dir()


def test_a_run_killed_between_exchange_and_look_keeps_what_was_changed(
    recipe: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run finds the earlier output in the staging folder, not as it is on record, and leaves it there."""

    class Killed(BaseException):
        pass

    def late(first: Path, second: Path) -> bool:
        trained(out)
        renaming.exchange(first, second)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(putting, "exchange", late)
        patched.setattr(staging.StagingFolder, "discard", lambda _: None)
        with pytest.raises(Killed):
            weightsmith.merge(recipe, out, force=True)
    assert weightsmith.verify(out).ok
    kept = out.with_name("out.partial") / "checkpoint"
    with pytest.raises(OutputError, match=r"lay at .*out' before, holds .* which was changed"):
        weightsmith.merge(recipe, out, force=True)
    shutil.move(kept, out.with_name("rescued"))
    weightsmith.merge(recipe, out, force=True)
    assert not weightsmith.verify(out.with_name("rescued")).ok


def test_a_file_that_is_gone_is_no_reason_to_keep_the_rest(
    recipe: dict[str, Any], out: Path
) -> None:
    (out / "README.md").unlink()
    weightsmith.merge(recipe, out, force=True)
    assert weightsmith.verify(out).ok


@pytest.mark.parametrize("make", [folder_with_a_file, lambda p: p.write_text("precious")])
def test_force_is_advised_only_where_it_helps(
    family: Family, recipe: dict[str, Any], out: Path, make: Callable[[Path], Any]
) -> None:
    with pytest.raises(OutputError, match="or give --force to replace it"):
        weightsmith.merge(recipe, out)
    make(family.root / "mine")
    with pytest.raises(OutputError, match=r"exists; .* was not written by weightsmith") as refused:
        weightsmith.merge(recipe, family.root / "mine")
    assert "--force" not in str(refused.value)


def test_the_recipe_is_an_input_wherever_it_lies(
    family: Family, recipe: dict[str, Any], out: Path
) -> None:
    """The one on record in the output that is to be replaced, and one inside another."""
    with pytest.raises(OutputError, match=r"contains the input .*weightsmith-recipe\.yaml"):
        weightsmith.merge(out / "weightsmith-recipe.yaml", out, force=True)
    inner, outer = family.root / "inner.yaml", family.root / "outer.yaml"
    inner.write_text(json.dumps(recipe))
    outer.write_text(
        json.dumps(
            {"weightsmith": 1, "merge_method": "linear", "models": [{"model": "inner.yaml"}]}
        )
    )
    for place in (outer, inner):
        with pytest.raises(OutputError, match="is also an input"):
            weightsmith.merge(outer, place, force=True)


def test_an_output_is_not_put_into_another(recipe: dict[str, Any], out: Path) -> None:
    """Whose record would no longer name all that is in it."""
    with pytest.raises(OutputError, match="whose record names all that is in it"):
        weightsmith.merge(recipe, out / "inside")
    assert weightsmith.verify(out).ok


def test_a_place_that_refuses_folders_is_a_sentence_at_once(recipe: dict[str, Any]) -> None:
    """/proc says that it may be written to, and then that there is no such file."""
    with pytest.raises(OutputError, match=r"'/proc/x\.partial', where the output is to grow"):
        weightsmith.merge(recipe, "/proc/x")


def test_a_parent_that_goes_away_is_a_sentence_at_once(
    family: Family, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = family.root / "parent"
    parent.mkdir()
    make_folder = staging.StagingFolder._make_folder

    def late(self: staging.StagingFolder) -> None:
        shutil.rmtree(parent, ignore_errors=True)
        make_folder(self)

    monkeypatch.setattr(staging.StagingFolder, "_make_folder", late)
    with pytest.raises(OutputError, match="cannot be made"):
        weightsmith.merge(recipe, parent / "out")


def test_a_staging_folder_that_always_vanishes_is_a_sentence(
    family: Family, recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder = staging.StagingFolder._make_folder

    def swept(self: staging.StagingFolder) -> None:
        make_folder(self)
        shutil.rmtree(self.folder)

    monkeypatch.setattr(staging.StagingFolder, "_make_folder", swept)
    with pytest.raises(OutputError, match="removed again and again"):
        weightsmith.merge(recipe, family.root / "out")
