"""A rename into a free place never replaces anything, with the system call for it and on file systems without."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from weightsmith.publishing import atomic_renames as renaming
from weightsmith.publishing.atomic_renames import exchange, rename_into_free


@pytest.fixture(params=["renameat2", "as NFS", "as FAT", "no such function"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the system and the file system can do: NFS has no flags of rename, FAT no hard links either."""
    if request.param != "renameat2":
        monkeypatch.setattr(renaming, "_renamed", lambda *_: False)
    if request.param == "no such function":
        monkeypatch.undo()
        monkeypatch.setattr(renaming, "_renameat2", lambda: None)
    if request.param == "as FAT":

        def no_links(*_: Any) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", no_links)
    return str(request.param)


def made(tmp_path: Path, kind: str, name: str = "new") -> Path:
    path = tmp_path / name
    if kind == "file":
        path.write_text(name)
    else:
        path.mkdir()
        (path / "content").write_text(name)
    return path


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_free_place_is_taken(tmp_path: Path, kind: str) -> None:
    source = made(tmp_path, kind)
    rename_into_free(source, tmp_path / "place")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["place"]


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("there", ["file", "folder", "link", "broken link", "pipe"])
def test_whatever_is_there_stays(tmp_path: Path, kind: str, there: str) -> None:
    source, place = made(tmp_path, kind), tmp_path / "place"
    if there in ("file", "folder"):
        made(tmp_path, there, "place")
    elif there == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(tmp_path if there == "link" else "nowhere")
    before = os.lstat(place)
    with pytest.raises(FileExistsError):
        rename_into_free(source, place)
    assert os.lstat(place) == before
    assert source.exists()


@pytest.mark.usefixtures("system")
def test_another_error_passes_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        rename_into_free(tmp_path / "missing", tmp_path / "place")
    with pytest.raises(FileNotFoundError):
        rename_into_free(made(tmp_path, "file"), tmp_path / "no" / "place")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_two_names_are_exchanged_or_nothing_is_done(tmp_path: Path, system: str, kind: str) -> None:
    first, second = made(tmp_path, kind, "first"), made(tmp_path, kind, "second")
    assert exchange(first, second) == (system == "renameat2")
    content = second if kind == "file" else second / "content"
    assert content.read_text() == ("first" if system == "renameat2" else "second")
