"""merge, verify and replay, in processes of their own as a user types them."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

LAST_LINE = re.compile(r"^(\S+)  (\S+)  [0-9.]+ s$")


def test_merge_writes_the_weighted_average(family, shell):
    result = shell("merge", "linear.yaml", "merged", cwd=family)
    assert result.code == 0, result.err
    one, two, merged = (
        load_file(family / n / "model.safetensors") for n in ("one", "two", "merged")
    )
    assert set(merged) == set(one)
    for name, array in merged.items():
        expected = (3 * one[name].astype(np.float64) + two[name].astype(np.float64)) / 4
        np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-7)


def test_piped_the_last_line_is_data_and_the_talk_goes_to_stderr(family, shell):
    result = shell("merge", "linear.yaml", "merged", cwd=family)
    found = LAST_LINE.match(result.out.rstrip("\n"))
    assert found is not None
    assert found[1] == "merged"
    manifest = json.loads((family / "merged" / "weightsmith-manifest.json").read_text())
    assert found[2] == manifest["digest"]
    assert "\x1b" not in result.err
    assert "100 %" in result.err
    assert len(result.err.splitlines()) < 20


def test_quiet_says_only_the_last_line(weightsmith):
    result = weightsmith("merge", "linear.yaml", "merged", "--quiet")
    assert result.err == ""
    assert len(result.out.splitlines()) == 1


def test_merge_verify_replay_diff_agree(weightsmith):
    assert weightsmith("merge", "ties.yaml", "merged").code == 0
    verified = weightsmith("verify", "merged", "--recompute", "2")
    assert verified.code == 0, verified.out
    assert "2 tensors computed again" in verified.out
    assert weightsmith("replay", "merged", "again", "--threads", 1).code == 0
    difference = weightsmith("diff", "merged", "again")
    assert difference.code == 0
    assert "Identical" in difference.out


def test_force_replaces_only_what_weightsmith_wrote(weightsmith, family):
    assert weightsmith("merge", "linear.yaml", "merged").code == 0
    assert weightsmith("merge", "linear.yaml", "merged").code == 4
    assert weightsmith("merge", "ties.yaml", "merged", "--force").code == 0
    (family / "mine").mkdir()
    (family / "mine" / "thesis.txt").write_text("years of work")
    assert weightsmith("merge", "linear.yaml", "mine", "--force").code == 4
    assert (family / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize("head", ["weightsmith: 1\n", ""], ids=["native", "mergekit"])
def test_shard_size_splits_the_output(weightsmith, family, head):
    recipe = family / "linear.yaml"
    recipe.write_text(recipe.read_text().replace("weightsmith: 1\n", head))
    assert weightsmith("merge", "linear.yaml", "merged", "--shard-size", "1KiB").code == 0
    files = sorted((family / "merged").glob("*.safetensors"))
    assert len(files) > 1
    assert all(sum(a.nbytes for a in load_file(f).values()) <= 1024 for f in files)


def test_verify_names_what_was_changed(weightsmith, family):
    weightsmith("merge", "linear.yaml", "merged")
    file = family / "merged" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    (family / "merged" / "config.json").write_text("{}")
    result = weightsmith("verify", "merged")
    assert result.code == 1
    assert "'config.json' was changed" in result.out
    assert re.search(r"problem: .*tensor '.*' was changed", result.out)
    found = json.loads(weightsmith("verify", "merged", "--json").out)
    assert found["ok"] is False
    assert len(found["problems"]) >= 2


def test_inputs_that_moved_are_found_where_input_says(weightsmith, family):
    weightsmith("merge", "linear.yaml", "merged")
    shutil.move(family / "one", family / "moved")
    assert weightsmith("verify", "merged", "--recompute", 1).code != 0
    moved = weightsmith("verify", "merged", "--recompute", 7, "--input", f"one={family / 'moved'}")
    assert moved.code == 0, moved.err
    assert weightsmith("replay", "merged", "again", "--input", f"one={family / 'moved'}").code == 0


@pytest.fixture
def many(family, save):
    """Two experts of very many tensors, so that a merge of them takes a while."""
    generator = np.random.default_rng(5)
    for name in ("one", "two"):
        shutil.rmtree(family / name)
        tensors = {
            f"blocks.{i}.weight": generator.standard_normal((16, 16)).astype(np.float32)
            for i in range(800)
        }
        save(family / name, tensors, {"model_type": "made-up"})
    recipe = family / "linear.yaml"
    recipe.write_text(recipe.read_text().replace("linear", "karcher"))
    return family


def interrupt_when_something_is_finished(process, journal):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") > 3:
            process.send_signal(signal.SIGINT)
            return
        time.sleep(0.002)
    raise AssertionError("the merge never got so far, or was done at once")


def test_ctrl_c_says_what_is_safe_and_the_same_command_goes_on(many, shell):
    command = [
        sys.executable,
        "-m",
        "weightsmith",
        "merge",
        "linear.yaml",
        "merged",
        "--threads",
        "2",
    ]
    process = subprocess.Popen(
        command,
        cwd=many,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Jobs in the background of a shell ignore interrupts, and what they start does too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    interrupt_when_something_is_finished(process, many / "merged.partial" / "journal.jsonl")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith(
        "weightsmith: interrupted: finished tensors are safe in 'merged.partial'"
    )
    assert "Traceback" not in err
    assert not (many / "merged").exists()
    resumed = shell("merge", "linear.yaml", "merged", "--threads", "2", cwd=many)
    assert resumed.code == 0, resumed.err
    assert "resuming: " in resumed.err
    assert not (many / "merged.partial").exists()
    whole = shell("merge", "linear.yaml", "whole", "--quiet", cwd=many)
    assert whole.out.split()[1] == resumed.out.split()[1]


def in_terminal(arguments, cwd, **environment):
    """Exit code and everything that a command writes to a terminal of 100 columns."""
    master, slave = pty.openpty()
    variables = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **environment}
    variables.pop("NO_COLOR", None) if "NO_COLOR" not in environment else None
    process = subprocess.Popen(
        [sys.executable, "-m", "weightsmith", *arguments],
        cwd=cwd,
        env=variables,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        close_fds=True,
    )
    os.close(slave)
    chunks = []
    while select.select([master], [], [], 30)[0]:
        try:
            chunk = os.read(master, 65536)
        except OSError:
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(master)
    return process.wait(timeout=30), b"".join(chunks).decode()


def test_in_a_terminal_a_bar_moves_and_the_cursor_comes_back(family):
    code, screen = in_terminal(["merge", "linear.yaml", "merged"], family)
    assert code == 0, screen
    assert "100 %" in screen
    assert "━" in screen
    assert "\x1b[?25l" in screen
    assert screen.rindex("\x1b[?25h") > screen.rindex("\x1b[?25l")
    assert LAST_LINE.match(screen.splitlines()[-1])


def test_in_a_terminal_tables_are_drawn(family):
    code, screen = in_terminal(["plan", "ties.yaml"], family)
    assert code == 0, screen
    assert "─" in screen
    assert "\x1b[1m" in screen


def test_no_color_is_respected(family):
    colour = re.compile(r"\x1b\[[0-9;]*3[0-9]")
    _, plain = in_terminal(["merge", "linear.yaml", "merged"], family, NO_COLOR="1")
    assert not colour.search(plain)
    _, coloured = in_terminal(["merge", "linear.yaml", "merged2"], family)
    assert colour.search(coloured)
