"""Closed, full and abandoned streams change neither what is done nor, where that is done, the exit code."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from weightsmith.engine.records.verify import verify_output

COMMAND = f"{sys.executable} -m weightsmith"


def run(script: str, folder: Path) -> tuple[int, str, str]:
    """A line of bash; `W` is the command."""
    found = subprocess.run(
        ["bash", "-c", script.replace("W ", f"{COMMAND} ")],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return found.returncode, found.stdout, found.stderr


@pytest.fixture
def merged(weightsmith, family):
    assert weightsmith("merge", "ties.yaml", "merged", "--quiet").code == 0
    return family


CLOSED = [">&-", "2>&-", "<&- >&- 2>&-", ">&- 2>/dev/full"]


@pytest.mark.parametrize("streams", CLOSED)
def test_a_merge_ends_as_if_somebody_listened(family, streams):
    code, _, err = run(f"W merge ties.yaml out {streams}", family)
    assert code == 0, err
    assert "error" not in err
    assert verify_output(family / "out", recompute=2).ok


@pytest.mark.parametrize("streams", [">&-", "<&- >&- 2>&-"])
def test_refusals_keep_their_exit_codes(merged, streams):
    assert run(f"W merge ties.yaml merged {streams}", merged)[0] == 4
    assert run(f"W --nonsense {streams}", merged)[0] == 2


@pytest.mark.parametrize("streams", [">&-", "<&- >&- 2>&-", ">/dev/full 2>&1"])
def test_a_verification_is_answered_by_its_exit_code(merged, streams):
    assert run(f"W verify merged {streams}", merged)[0] == 0
    (merged / "merged" / "added").touch()
    assert run(f"W verify merged --json {streams}", merged)[0] == 1


@pytest.mark.parametrize("command", ["--help", "plan ties.yaml", "methods"])
def test_what_only_shows_something_shows_it_to_nobody(family, command):
    assert run(f"W {command} >&- 2>&-", family)[0] == 0


def test_no_file_of_data_gets_the_descriptor_of_a_closed_stream(family):
    """What a library writes to descriptor 1 or 2 would end up in the weights."""
    program = (
        "import os, sys\n"
        "from weightsmith.cli import main\n"
        "from weightsmith.engine.running import run as runs\n"
        "begin = runs._write_tensors\n"
        "def noisy(*a):\n"
        "    found = begin(*a)\n"
        "    os.write(1, b'noise'); os.write(2, b'noise')\n"
        "    return found\n"
        "runs._write_tensors = noisy\n"
        "main(['merge', 'ties.yaml', 'out', '--quiet'])\n"
    )
    (family / "noisy.py").write_text(program)
    code, _, _ = run(f"{sys.executable} noisy.py <&- >&- 2>&-", family)
    assert code == 0
    assert verify_output(family / "out").ok


FULL = "stdout could not be written to (No space left on device), so what this command shows is cut"


@pytest.mark.parametrize(
    "command",
    [
        "merge ties.yaml out",
        "delta pack one --base base out",
        "delta pack one --base base out --json",
        "adapter extract one base out --rank 2",
        "report ties.yaml -o out",
        "diff one one --report out",
    ],
)
def test_a_full_stdout_is_told_after_the_output_is_complete(family, command):
    code, _, err = run(f"W {command} > /dev/full", family)
    assert code == 0, err
    assert f"warning: {FULL}; what it was to do is done." in err
    assert (family / "out").exists()
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["plan ties.yaml --json", "--help"])
def test_what_was_to_be_shown_and_is_cut_is_an_error(family, command):
    code, _, err = run(f"W {command} > /dev/full", family)
    assert code == 5
    assert f"error: {FULL}; free some space or write it elsewhere" in err
    assert "Traceback" not in err


def test_a_no_stays_a_no_on_a_full_disk(family):
    assert run("W diff one two > /dev/full", family)[0] == 1
    (family / "ties.yaml").write_text((family / "ties.yaml").read_text().replace("two", "three"))
    assert run("W plan ties.yaml > /dev/full", family)[0] == 4


def test_a_reader_that_left_does_not_undo_a_merge(family):
    code, _, err = run("W merge ties.yaml out --quiet | true; exit ${PIPESTATUS[0]}", family)
    assert (code, err) == (0, "")
    assert verify_output(family / "out").ok
    code, _, err = run("W methods | true; exit ${PIPESTATUS[0]}", family)
    assert (code, err) == (1, "")


def test_a_pipe_that_does_not_block_gets_everything(family):
    """As some programs leave theirs: more than the pipe holds, to a reader that is slow."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    command = [sys.executable, "-m", "weightsmith", "methods", "--json"]
    process = subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, cwd=family)
    os.close(writer)
    time.sleep(0.5)
    with open(reader, "rb") as stream:
        received = stream.read()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert len(received) > 10_000
    assert b"wudi" in received[-4096:]
