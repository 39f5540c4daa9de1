"""What a shell completes: commands, options and their values, names of methods and families, files."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from weightsmith.cli.main import COMMANDS, weightsmith


def completed(*words):
    """What the last of the words, which is not finished, is completed to."""
    from click.shell_completion import ShellComplete

    *before, incomplete = words
    found = ShellComplete(weightsmith, {}, "weightsmith", "_WEIGHTSMITH_COMPLETE")
    return [
        "<files>" if item.type == "file" else item.value
        for item in found.get_completions(before, incomplete)
    ]


def test_commands_are_completed_with_their_sentences():
    assert completed("") == list(COMMANDS)
    assert completed("re") == ["replay", "report"]
    assert completed("adapter", "re") == ["resize"]
    assert completed("delta", "") == "dedupe gc list materialise pack show unpack".split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("methods", "task_"), ["task_arithmetic", "task_karcher"]),
        (("methods", "cli"), ["clip"]),
        (("adapter", "combine", "a", "--method", "sv"), ["svc", "svd"]),
        (("league", "--methods", "ties,iso_c"), ["ties,iso_c", "ties,iso_cts"]),
        (("league", "--methods", "ties,ti"), []),
        (("league", "--methods", "al"), ["all"]),
        (("league", "--models", ""), ["<files>"]),
        (("league", "--models", "one", "two", ""), ["<files>"]),
        (("league", "--models", "one", "--sui"), ["--suite"]),
        (("compare", "old", "new", "--parents", "one", "t"), ["<files>"]),
        (("league", "--family", "vision,lang"), ["vision,language", "vision,language-tiny"]),
        (("testbed", "build", "smo"), ["smollm"]),
        (("merge", "--backend", ""), ["auto", "native", "torch"]),
        (("merge", "--device", "cu"), ["cuda", "cuda:0"]),
        (("transplant", "--dtype", "b"), ["bfloat16"]),
        (("delta", "pack", "--codecs", "sign,ban"), ["sign,banded"]),
        (("plan", "ties.y"), ["<files>"]),
        (("inspect", "che"), ["<files>"]),
        (("evaluate", "model", "--suite", "su"), ["<files>"]),
        (("diff", "a", "b", "--base", ""), ["<files>"]),
        (("adapter", "convert", "in", "out", "--to", ""), ["peft", "kohya", "diffusers"]),
        (("plan", "--exp"), ["--explain"]),
    ],
)
def test_values_are_completed(words, found):
    assert completed(*words) == found


def test_what_a_folder_holds_is_completed(workshop, monkeypatch):
    monkeypatch.chdir(workshop)
    assert completed("bundle", "extract", "library/tasks", "") == ["one", "two"]
    assert completed("delta", "materialise", "library", "tasks#t") == ["tasks#two"]
    assert completed("adapter", "basis", "extract", "basis.safetensors", "one") == ["one-lora"]
    assert completed("bundle", "extract", "nowhere", "") == []


@pytest.mark.parametrize("words", [[""], ["methods", "ti"], ["league", "--family", ""]])
def test_completing_a_name_loads_nothing_heavy(words):
    program = (
        "import json, sys\n"
        "from click.shell_completion import ShellComplete\n"
        "from weightsmith.cli.main import weightsmith\n"
        "found = ShellComplete(weightsmith, {}, 'weightsmith', 'X')\n"
        f"assert found.get_completions({words[:-1]!r}, {words[-1]!r})\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in json.loads(finished.stdout)}
    assert not loaded & {"numpy", "pydantic", "rich", "torch", "yaml"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_its_script(shell):
    finished = subprocess.run(
        [sys.executable, "-c", "from weightsmith.cli import main; main()"],
        env={**os.environ, "_WEIGHTSMITH_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
    )
    assert "_WEIGHTSMITH_COMPLETE" in finished.stdout
