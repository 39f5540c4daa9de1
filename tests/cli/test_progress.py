"""Progress as it is shown: lines in files and pipes, bars on terminals, nothing where it is not wanted."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
import threading

import pytest

from weightsmith.cli.progress_lines import ProgressLines, open_progress
from weightsmith.cli.progress_stages import Display, Stage
from weightsmith.progress import BYTES, CPU_SECONDS, Counted


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_progress_lines_come_once_per_tenth_with_rate_and_remaining_time():
    lines, clock = [], Clock()
    progress = Stage(ProgressLines(lines.append, clock)).begin("writing", 1000_000, BYTES)
    for _ in range(1000):
        clock.now += 0.01
        progress.advance(1000, "w")
    assert lines[0] == "writing 1.00 MB"
    assert len(lines) == 11
    assert lines[1] == " 10 %  100 kB of 1.00 MB  100 kB/s  9.0 s left"
    assert lines[-1] == "100 %  1.00 MB of 1.00 MB  100 kB/s"


def test_resumed_bytes_count_for_the_share_but_not_for_the_rate():
    lines, clock = [], Clock()
    work = Stage(ProgressLines(lines.append, clock))
    progress = work.begin("writing", 1000_000, BYTES, done=500_000)
    clock.now = 1.0
    progress.advance(250_000, "w")
    assert lines == [
        "resuming: 500 kB of 1.00 MB are finished",
        " 70 %  750 kB of 1.00 MB  250 kB/s  1.0 s left",
    ]


def test_the_rate_of_what_has_ended_stands_still():
    clock = Clock()
    merging = Stage(Display(clock)).begin("merging", 1000_000, BYTES)
    assert merging.rate() == ""
    clock.now = 2.0
    merging.advance(1000_000, "w")
    merging.end()
    clock.now = 100.0
    assert (merging.rate(), merging.took()) == ("500 kB/s", "2.0 s")


def test_an_output_without_bytes_is_no_division_by_zero():
    lines = []
    progress = Stage(ProgressLines(lines.append, Clock())).begin("writing", 0, BYTES)
    progress.advance(0, "w")
    assert lines == ["writing 0 B"]


@pytest.fixture
def lines():
    return []


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def progress(lines, clock):
    return Stage(ProgressLines(lines.append, clock))


def test_unequal_steps_have_share_rate_and_the_time_that_all_will_take(progress, lines, clock):
    building = progress.begin("building", 100, CPU_SECONDS)
    step = building.begin("base", share=40)
    units = Counted(step)
    units.reach(10, 100)
    clock.now = 10.0
    units.reach(50, 100)
    clock.now = 12.0
    units.reach(60, 100)
    units.end()
    clock.now = 20.0
    step.end()
    assert lines == [
        "building: about 1 min 40 s of CPU time",
        "  0 %  base",
        " 20 %  base  50 of 100  4/s  40 s left",
        " 40 %  base  in 20 s  30 s left",
    ]


def test_the_time_that_an_earlier_build_took_does_not_count(progress, lines, clock):
    step = progress.begin("building", 100, CPU_SECONDS, done=80).begin("experts/one", share=20)
    images = step.begin("", 100, "image")
    clock.now = 30.0
    images.advance(50)
    assert lines == [
        "resuming: 80 % are finished",
        " 80 %  experts/one",
        " 90 %  experts/one  50 of 100 images  1.7/s  30 s left",
    ]


def test_what_counts_its_stages_tells_of_each_with_its_result(progress, lines, clock):
    task = progress.begin("scoring", 6, "task").begin("greek")
    rows = task.begin("", 100, "row")
    clock.now = 2.0
    rows.advance(10)
    clock.now = 10.0
    rows.advance(40)
    clock.now = 11.0
    rows.advance(5)
    rows.end()
    clock.now = 12.0
    task.end("accuracy 0.5000  100 items")
    assert lines == [
        "scoring 6 tasks",
        "task 1 of 6  greek   50 %  50 of 100 rows  5/s  10 s left",
        "task 1 of 6  greek  accuracy 0.5000  100 items  in 12 s  0.083/s  1 min 0 s left",
    ]


def test_what_was_kept_has_no_part_in_the_rate_and_is_named_only_with_a_result(
    progress, lines, clock
):
    measuring = progress.begin("measuring", 10, "candidate")
    measuring.begin("base on test").end(kept=True)
    measuring.begin("linear on test").end("rank 1", kept=True)
    ties = measuring.begin("ties on test")
    clock.now = 4.0
    ties.end()
    assert lines == [
        "measuring 10 candidates",
        "candidate  2 of 10  linear on test  rank 1  found in the cache",
        "candidate  3 of 10  ties on test  in 4.0 s  0.25/s  28 s left",
    ]


def test_stages_that_go_on_at_once_count_together(progress, lines, clock):
    trials = progress.begin("searching", 4, "trial")
    first, second = trials.begin("one"), trials.begin("two")
    halves = [stage.begin("", 2, "step") for stage in (first, second)]
    clock.now = 3.0
    for half in halves:
        half.advance(1)
    assert trials.fraction() == 0.25
    assert trials.left() == "9.0 s left"
    second.end("worse")
    assert lines == ["searching 4 trials", "trial 2 of 4  two  worse  in 3.0 s  0.5/s  5.0 s left"]


def test_names_cannot_move_the_cursor(progress, lines):
    progress.begin("scoring", 2, "task").begin("a\x1b[2J").end("b\rc")
    progress.say("d\x07")
    assert not re.search(r"[\x00-\x1f]", "".join(lines))


@pytest.fixture
def terminal(request, monkeypatch):
    """A terminal of 70 or so many columns, and what tells at the end what it showed."""
    master, slave = pty.openpty()
    fcntl.ioctl(
        slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, getattr(request, "param", 70), 0, 0)
    )
    monkeypatch.setenv("TERM", "xterm")
    stream = os.fdopen(slave, "w")
    found = []
    # Read while it is written: a terminal that nobody reads makes its writer wait.
    reader = threading.Thread(target=_read, args=(master, found), daemon=True)
    reader.start()

    def shown():
        stream.close()
        reader.join(timeout=20)
        return b"".join(found).decode()

    yield stream, shown
    stream.close()
    reader.join(timeout=20)
    os.close(master)


def _read(descriptor, found):
    with contextlib.suppress(OSError):
        while data := os.read(descriptor, 4096):
            found.append(data)


def test_bars_stay_for_the_whole_and_lines_for_its_stages(terminal, monkeypatch):
    stream, shown = terminal
    monkeypatch.setattr(sys, "stderr", stream)
    with open_progress(quiet=False) as progress:
        scoring = progress.begin("scoring", 2, "task")
        first = scoring.begin("greek")
        rows = first.begin("", 100, "row")
        rows.advance(50)
        rows.end()
        first.end("accuracy 0.5")
        scoring.begin("latin").end("accuracy 0.6", kept=True)
        scoring.end()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown())
    assert "task 1 of 2  greek  accuracy 0.5  in" in text
    assert "task 2 of 2  latin  accuracy 0.6  found in the cache" in text
    last = text.rstrip().splitlines()[-1]
    assert "100 %  2 of 2 tasks" in last
    assert "rows" not in last


@pytest.mark.parametrize("terminal", [40, 100], indirect=True)
def test_a_bar_is_one_line_however_narrow_the_terminal(terminal, monkeypatch):
    stream, shown = terminal
    monkeypatch.setattr(sys, "stderr", stream)
    with open_progress(quiet=False) as progress:
        writing = progress.begin("writing a name that is long", 100_000, BYTES)
        for _ in range(100):
            writing.advance(1000)
    # Bars are drawn over each other: what moves the cursor up is as many lines as there were.
    assert "\x1b[1A" not in shown()


def test_bars_reach_the_terminal_while_a_library_is_kept_from_it(terminal, monkeypatch):
    stream, shown = terminal
    monkeypatch.setattr(sys, "stderr", stream)
    with open_progress(quiet=False) as progress:
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        progress.begin("scoring", 1, "task").begin("greek").end("accuracy 0.5")
    assert "accuracy 0.5" in shown()


def test_quiet_progress_shows_nothing_and_counts(capsys):
    with open_progress(quiet=True) as progress:
        work = progress.begin("scoring", 2, "task")
        work.begin("greek").end("accuracy 0.5")
        assert progress.parts_finished() == 1
    assert capsys.readouterr().err == ""
