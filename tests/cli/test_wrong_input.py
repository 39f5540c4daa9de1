"""Wrong input: one sentence on stderr, nothing on stdout, and the documented exit code."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from weightsmith import errors
from weightsmith.cli.interruption import INTERRUPTED
from weightsmith.cli.main import UNEXPECTED

PREFIX = "weightsmith: error: "


def sentence(result):
    assert result.out == ""
    assert result.err.startswith(PREFIX)
    assert "Traceback" not in result.err
    assert result.err.count("\n") == 1
    return result.err.removeprefix(PREFIX).rstrip("\n")


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["mrege"], 2, "did you mean 'merge'?"),
        (["xyzzy"], 2, "there are plan, merge"),
        (["plan"], 2, "Missing argument 'RECIPE'"),
        (["plan", "ties.yaml", "--memory", "lots"], 2, "write it like 256MB"),
        (["plan", "ties.yaml", "--threads", "0"], 2, "'--threads'"),
        (["plan", "ties.yaml", "--threads", "1e20"], 2, "'1e20' is no whole number"),
        (["plan", "ties.yaml", "--device", "tpu"], 2, "choose cpu, cuda"),
        (
            ["plan", "ties.yaml", "--explain", "model.norm.wieght"],
            2,
            "did you mean 'model.norm.weight'?",
        ),
        (["plan", "absent.yaml"], 4, "'absent.yaml' cannot be read"),
        (["plan", "ties.yaml", "--set", "no-equals-sign"], 4, "key.key=value"),
        (["plan", "ties.yaml", "--set", "merge_method=teis"], 4, "ties"),
        (["merge", "ties.yaml", "base"], 4, "is also an input"),
        (["merge", "ties.yaml", "base/inside"], 4, "lies inside the input"),
        (["merge", "ties.yaml", "ties.yaml"], 4, "is also an input"),
        (["merge", "ties.yaml", "linear.yaml"], 4, "exists"),
        (["verify", "base"], 1, "was not written by `weightsmith merge`"),
        (["verify", "absent"], 1, "There is no folder 'absent'"),
        (["verify", "ties.yaml"], 1, "'ties.yaml' is no folder"),
        (["bundle", "list", "absent"], 4, "There is no folder 'absent'"),
        (["bundle", "list", "ties.yaml"], 4, "'ties.yaml' is no folder"),
        (["bundle", "list", "base"], 4, "has no weightsmith-bundle.json"),
        (["delta", "show", "absent"], 4, "There is no folder 'absent'"),
        (["delta", "show", "ties.yaml"], 4, "'ties.yaml' is no folder"),
        (["compare", "absent.json", "absent.json"], 2, "There is no file 'absent.json'"),
        (["compare", "base", "base"], 2, "is no saved evaluation"),
        (["verify", "base", "--input", "base"], 2, "REF=PATH"),
        (["replay", "base", "new"], 1, "was not written by `weightsmith merge`"),
        (["inspect", "absent"], 4, "No checkpoint is at 'absent'"),
        (["diff", "base", "absent"], 4, "No checkpoint is at 'absent'"),
        (["methods", "teis"], 4, "did you mean ties"),
    ],
)
def test_wrong_input_is_told_in_one_sentence(weightsmith, arguments, code, part):
    result = weightsmith(*arguments)
    assert part in sentence(result)
    assert result.code == code


@pytest.mark.parametrize(
    "command",
    [
        "merge ties.yaml /",
        "adapter extract base base / --rank 2",
        "adapter resize base / --rank 2",
        "adapter convert base / --to peft",
        "adapter merge base base /",
        "delta pack base / --base base",
        "transplant base base /",
    ],
)
def test_the_root_of_all_folders_is_no_output(weightsmith, command):
    result = weightsmith(*command.split())
    assert result.code == 4
    assert "PosixPath" not in sentence(result)


def test_a_name_that_is_too_long_is_told_with_what_to_do(weightsmith):
    for command in (["merge", "ties.yaml", "x" * 300], ["report", "ties.yaml", "-o", "x" * 300]):
        told = sentence(weightsmith(*command))
        assert "File name too long" in told
        assert "choose a shorter name" in told
        assert len(told) < 800


def test_a_record_that_is_a_link_out_of_its_folder_is_not_called_missing(weightsmith, family):
    (family / "elsewhere.json").write_text("{}")
    (family / "linked").mkdir()
    for name in ("weightsmith-delta.json", "weightsmith-bundle.json"):
        (family / "linked" / name).symlink_to(family / "elsewhere.json")
    for command in (["delta", "show"], ["bundle", "list"]):
        assert "is a link that leaves its folder" in sentence(weightsmith(*command, "linked"))


@pytest.mark.parametrize(
    ("text", "command", "part"),
    [
        ("suite: s\ntasks: []\n", "plan FILE", "this is a suite of tasks"),
        ("tasks: []\n", "plan FILE", "this is a suite of tasks"),
        ('{"subject": "a", "scores": []}', "plan FILE", "this is what `evaluate` saved"),
        ('{"model_type": "llama"}', "plan FILE", "a model's configuration"),
        (
            "merge_method: linear\nmodels: []\n",
            "evaluate base --suite FILE",
            "this is a recipe; `plan`",
        ),
    ],
)
def test_a_document_of_another_kind_is_told_what_it_is(weightsmith, family, text, command, part):
    (family / "given.yaml").write_text(text)
    result = weightsmith(*command.replace("FILE", "given.yaml").split())
    assert result.code == 4
    assert part in sentence(result)


def test_debug_shows_the_traceback_wherever_it_is_written(weightsmith):
    for arguments in (["--debug", "plan", "absent.yaml"], ["plan", "absent.yaml", "--debug"]):
        result = weightsmith(*arguments)
        assert result.code == 4
        assert result.err.startswith("Traceback")
        assert PREFIX in result.err


def test_after_two_dashes_debug_is_an_argument(weightsmith):
    result = weightsmith("inspect", "--", "--debug")
    assert "No checkpoint is at '--debug'" in sentence(result)


def test_an_unexpected_exception_is_one_line_that_asks_for_a_report(weightsmith, monkeypatch):
    def broken(path):
        assert path == "base"
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr("weightsmith.inspection.summarize_checkpoint", broken)
    result = weightsmith("inspect", "base")
    assert result.code == UNEXPECTED
    assert sentence(result) == (
        "unexpected ZeroDivisionError: first line; run again with --debug, and report what it shows."
    )


@pytest.mark.parametrize(
    ("raised", "part"),
    [
        (
            PermissionError(13, "Permission denied", "some/file"),
            "'some/file': Permission denied; check its permissions",
        ),
        (OSError(36, "File name too long", "x" * 300), "x...xxx"),
        (OSError(24, "Too many open files"), "Too many open files; raise `ulimit -n`."),
        (RuntimeError("can't start new thread"), "give fewer --threads"),
        (MemoryError(), "memory ran out"),
        (ImportError("libx.so: failed to map segment", name="numpy"), "libx.so: failed to map"),
    ],
)
def test_what_the_system_refuses_is_no_defect(weightsmith, monkeypatch, raised, part):
    def refused(path):
        assert path == "base"
        raise raised

    monkeypatch.setattr("weightsmith.inspection.summarize_checkpoint", refused)
    result = weightsmith("inspect", "base")
    assert result.code == errors.ResourceError.exit_code
    assert part in sentence(result)


def test_a_module_of_its_own_that_is_missing_is_a_defect(weightsmith, monkeypatch):
    def broken(path):
        assert path == "base"
        raise ModuleNotFoundError("No module", name="weightsmith.nowhere")

    monkeypatch.setattr("weightsmith.inspection.summarize_checkpoint", broken)
    assert weightsmith("inspect", "base").code == UNEXPECTED


def test_names_that_nobody_reads_to_their_end_are_abridged(weightsmith, save, family):
    long = "n" * 50_000
    save(family / "long", {long: np.zeros(3, np.float32), "b": np.zeros(3, np.float32)})
    save(family / "longer", {long: np.ones(4, np.float32), "b": np.zeros(3, np.float32)})
    for command in ("inspect long --tensors", "diff long longer", "diff long base"):
        result = weightsmith(*command.split())
        assert "nnn ... nnn" in result.out
        assert max(map(len, result.out.splitlines())) < 3000
    full = weightsmith("inspect", "long", "--tensors", "--json").out
    assert long in full


def test_a_name_that_the_encoding_lacks_is_escaped(save, family, shell):
    save(family / "umlaut", {"größe": np.zeros(3, np.float32)})
    result = shell("inspect", "umlaut", "--tensors", cwd=family, PYTHONIOENCODING="ascii")
    assert result.code == 0, result.err
    assert r"gr\xf6\xdfe" in result.out


def test_control_characters_of_a_hostile_name_never_reach_the_terminal(weightsmith, save, family):
    hostile = "model.\x1b[2J\u202eweight"
    save(family / "hostile", {hostile: np.zeros(3, np.float32)})
    for arguments in (
        ["inspect", "hostile", "--tensors"],
        ["diff", "hostile", "base"],
        ["inspect", "\x1b]0;x"],
    ):
        result = weightsmith(*arguments)
        text = result.out + result.err
        assert "\x1b" not in text
        assert "\u202e" not in text


def test_every_exit_code_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "errors-and-exit-codes.md").read_text()
    for name in dir(errors):
        kind = getattr(errors, name)
        if (
            isinstance(kind, type)
            and issubclass(kind, errors.WeightsmithError)
            and kind is not errors.WeightsmithError
        ):
            assert re.search(rf"^\| `{name}` \|.*\| {kind.exit_code} \|$", page, re.MULTILINE), name
    for code in (INTERRUPTED, UNEXPECTED):
        assert re.search(rf"^\| {code} \|", page, re.MULTILINE), code


def test_a_reader_that_leaves_early_is_no_error(family):
    import subprocess
    import sys

    command = f"{sys.executable} -m weightsmith methods | head -n 1"
    finished = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=family)
    assert re.match(r"\d+ methods", finished.stdout)
    assert finished.stderr == ""
