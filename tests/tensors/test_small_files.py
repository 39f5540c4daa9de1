"""Small files are read whole within a bound, and nothing is waited for that never comes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from weightsmith.tensors.files.small_files import read_small


def test_a_file_up_to_the_bound_is_read_and_a_larger_one_is_not_opened_for_long(
    tmp_path: Path,
) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_small(tmp_path / "a", 5) == b"12345"
    # Holes take no room on the disk; the size alone refuses it.
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_small(tmp_path / "a", 4)
    with pytest.raises(OSError, match="larger than 1,000 bytes"):
        read_small(tmp_path / "huge", 1000)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/dev/zero", "a device"), (".", "a folder"), ("none", "No such file"), ("a\0b", "null byte")],
)
def test_what_is_no_regular_file_is_refused_with_what_it_is(path: str, reason: str) -> None:
    with pytest.raises(OSError, match=reason) as caught:
        read_small(Path(path), 100)
    assert caught.value.strerror


def test_a_file_that_the_system_makes_up_is_bounded_while_it_is_read() -> None:
    if not Path("/proc/self/maps").exists():
        pytest.skip("a system without /proc")
    assert Path("/proc/self/maps").stat().st_size == 0
    assert read_small(Path("/proc/self/maps"), 10_000_000)
    with pytest.raises(OSError, match="larger than 10 bytes"):
        read_small(Path("/proc/self/maps"), 10)


def test_a_pipe_is_read_to_its_end_where_pipes_may_stand(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="a named pipe"):
        read_small(pipe, 100)

    def write() -> None:
        with pipe.open("wb") as file:
            file.write(b"ab")
            file.flush()
            time.sleep(0.05)
            file.write(b"cd")

    writer = threading.Thread(target=write)
    writer.start()
    assert read_small(pipe, 100, pipes=True) == b"abcd"
    writer.join()


def test_a_pipe_without_a_writer_is_soon_taken_for_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightsmith.tensors.files.small_files._PATIENCE_FOR_A_WRITER", 0.05)
    os.mkfifo(tmp_path / "pipe")
    assert read_small(tmp_path / "pipe", 100, pipes=True) == b""


def test_what_is_written_into_a_pipe_without_end_is_bounded(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)
    os.write(writer, b"x" * 1000)
    with pytest.raises(OSError, match="larger than 100 bytes"):
        read_small(pipe, 100, pipes=True)
    os.close(writer)
