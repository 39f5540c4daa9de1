"""Files written whole or not at all: those of weightsmith's own folders, and outputs that a user named."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weightsmith.errors import OutputError, ResourceError
from weightsmith.publishing import atomic_renames as renaming
from weightsmith.publishing import files, putting
from weightsmith.publishing.files import check_file, publish_file, staged_name, write_file
from weightsmith.publishing.seals import sealed_json, with_seal

REPORT = with_seal(b"<!doctype html>\n<p>new</p>\n", "report")


def failing(code: int) -> object:
    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    return fail


def test_a_small_file_is_replaced_whole_and_without_leftovers(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_file(path, b"old")
    write_file(path, b"new and longer")
    assert path.read_bytes() == b"new and longer"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("call", "code", "error"),
    [
        ("pwrite", errno.ENOSPC, ResourceError),
        ("fsync", errno.EIO, OutputError),
        ("replace", errno.EACCES, OutputError),
        ("open", errno.EROFS, OutputError),
    ],
)
def test_a_failed_replacement_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, error: type[Exception]
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(code))
        with pytest.raises(error, match=r"config\.json"):
            write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "config.json", b"{}")
        publish_file(tmp_path / "report.html", REPORT, "report")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(f.stat().st_mode) for f in tmp_path.iterdir()} == {0o640}


def test_an_own_file_is_replaced_and_needs_no_force(tmp_path: Path) -> None:
    place = tmp_path / "report.html"
    publish_file(place, with_seal(b"<p>old</p>\n", "report"), "report")
    publish_file(place, REPORT, "report")
    assert place.read_bytes() == REPORT
    assert list(tmp_path.iterdir()) == [place]


FOREIGN = {
    "a thesis": b"\\documentclass{article}",
    "another kind": with_seal(b"<svg/>", "picture"),
    "own JSON": sealed_json({"schema": 1}, "evaluation"),
    "an edited report": REPORT.replace(b"new", b"mine"),
    "a report with a line more": REPORT + b"mine\n",
    "a report of an earlier version": b"<!doctype html>\n<p>old</p>\n",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
def test_nothing_else_is_replaced(tmp_path: Path, content: bytes) -> None:
    place = tmp_path / "report.html"
    place.write_bytes(content)
    for write in (check_file, lambda p, k: publish_file(p, REPORT, k)):
        with pytest.raises(OutputError, match=r"is no report of weightsmith's, or was changed"):
            write(place, "report")
    assert place.read_bytes() == content
    assert list(tmp_path.iterdir()) == [place]


def test_an_empty_file_as_mktemp_makes_it_is_taken(tmp_path: Path) -> None:
    place = tmp_path / "tmp.Xa1"
    place.touch()
    publish_file(place, REPORT, "report")
    assert place.read_bytes() == REPORT


@pytest.mark.parametrize("where", ["the input", "in the input", "a link to it", "through a link"])
def test_no_file_is_put_over_or_into_what_is_read(tmp_path: Path, where: str) -> None:
    """Even where it is weightsmith's own, and of the right kind."""
    folder = tmp_path / "model"
    folder.mkdir()
    scores = tmp_path / "scores.json"
    publish_file(scores, sealed_json({"schema": 1}, "evaluation"), "evaluation")
    before = scores.read_bytes()
    (tmp_path / "link.json").symlink_to(scores)
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    place = {
        "the input": scores,
        "in the input": folder / "scores.json",
        "a link to it": tmp_path / "link.json",
        "through a link": tmp_path / "link" / "scores.json",
    }[where]
    with pytest.raises(OutputError, match="input"):
        publish_file(place, sealed_json({}, "evaluation"), "evaluation", (scores, folder))
    assert scores.read_bytes() == before
    assert list(folder.iterdir()) == []


def test_a_link_is_not_written_through_or_replaced(tmp_path: Path) -> None:
    (tmp_path / "real.html").write_bytes(REPORT)
    (tmp_path / "link.html").symlink_to("real.html")
    with pytest.raises(OutputError, match="is a symbolic link"):
        publish_file(tmp_path / "link.html", REPORT, "report")
    assert (tmp_path / "link.html").is_symlink()


@pytest.mark.parametrize("record", ["weightsmith-manifest.json", "weightsmith-delta.json"])
def test_no_file_is_put_into_an_output_whose_record_names_all_its_files(
    tmp_path: Path, record: str
) -> None:
    (tmp_path / "merged" / "inside").mkdir(parents=True)
    (tmp_path / "merged" / record).touch()
    for place in ("merged/report.html", "merged/inside/report.html"):
        with pytest.raises(OutputError, match="whose record names all that is in it"):
            check_file(tmp_path / place, "report")


def test_folders_and_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        check_file(tmp_path, "report")
    with pytest.raises(OutputError, match="does not exist"):
        check_file(tmp_path / "nope" / "report.html", "report")


def test_pipes_and_devices_are_written_to_and_stay(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    publish_file(tmp_path / "pipe", REPORT, "report")
    reader.join()
    assert found == [REPORT]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    publish_file(Path(os.devnull), REPORT, "report")
    assert Path(os.devnull).is_char_device()
    with pytest.raises(ResourceError, match="/dev/full"):
        publish_file(Path("/dev/full"), REPORT, "report")


def during(monkeypatch: pytest.MonkeyPatch, action: Callable[[], Any]) -> None:
    """Do something between the check of the place and the last step."""
    put = files.put

    def late(*arguments: Any) -> None:
        action()
        put(*arguments)

    monkeypatch.setattr(files, "put", late)


def test_what_appears_meanwhile_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "report.html"
    during(monkeypatch, lambda: place.write_text("mine"))
    with pytest.raises(OutputError, match="has appeared at"):
        publish_file(place, REPORT, "report")
    assert place.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [place]


def test_what_is_changed_meanwhile_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "report.html"
    publish_file(place, with_seal(b"<p>old</p>\n", "report"), "report")
    during(monkeypatch, lambda: place.write_text("mine"))
    with pytest.raises(OutputError, match="was changed while this run went on"):
        publish_file(place, REPORT, "report")
    assert place.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [place]


def test_what_is_removed_meanwhile_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "report.html"
    publish_file(place, with_seal(b"<p>old</p>\n", "report"), "report")
    during(monkeypatch, place.unlink)
    publish_file(place, REPORT, "report")
    assert place.read_bytes() == REPORT


def test_a_staged_file_is_known_by_its_name(tmp_path: Path) -> None:
    for name in (".delta.safetensors.0123456789ab.partial", ".delta.safetensors.partial"):
        (tmp_path / name).touch()
        assert staged_name(tmp_path / name) == "delta.safetensors"
    for name in ("delta.safetensors", "out.partial", ".hidden"):
        (tmp_path / name).touch()
        assert staged_name(tmp_path / name) is None


def test_what_is_changed_at_the_last_moment_comes_back_whatever_else_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was exchanged already, and what was put in its place is removed by somebody else."""
    place = tmp_path / "report.html"
    publish_file(place, with_seal(b"<p>old</p>\n", "report"), "report")

    def late(first: Path, second: Path) -> bool:
        monkeypatch.setattr(putting, "exchange", renaming.exchange)
        place.write_text("mine")
        renaming.exchange(first, second)
        place.unlink()
        return True

    monkeypatch.setattr(putting, "exchange", late)
    with pytest.raises(OutputError, match="was changed while"):
        publish_file(place, REPORT, "report")
    assert place.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [place]


def test_what_cannot_be_put_back_is_kept_under_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "report.html"
    publish_file(place, with_seal(b"<p>old</p>\n", "report"), "report")

    def late(first: Path, second: Path) -> bool:
        monkeypatch.setattr(putting, "exchange", never)
        place.write_text("mine")
        return renaming.exchange(first, second)

    def never(*_: Path) -> bool:
        raise FileExistsError

    monkeypatch.setattr(putting, "exchange", late)
    with pytest.raises(OutputError, match="was changed while"):
        publish_file(place, REPORT, "report")
    (kept,) = tmp_path.glob("report.html.kept-*")
    assert kept.read_text() == "mine"
