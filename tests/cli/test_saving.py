"""`--save FILE`, and `--json FILE` as 0.1.0 had it."""

from __future__ import annotations

import json

import pytest

from weightsmith.cli.main import execute

NOW = "weightsmith: `--json FILE` is now `--save FILE`, and `--json` alone writes to stdout.\n"


@pytest.fixture
def run(workshop, capfd, monkeypatch):
    monkeypatch.chdir(workshop)

    def run(*arguments):
        capfd.readouterr()
        code = execute(["compare", *map(str, arguments)])
        return code, *capfd.readouterr()

    return run


def test_a_saved_document_is_what_json_prints(run, tmp_path):
    file = tmp_path / "saved.json"
    code, tables, err = run("old.json", "new.json", "--save", file, "--quiet")
    assert (code, err) == (0, "")
    assert "Scores with 95 % intervals" in tables
    code, document, err = run("old.json", "new.json", "--json", "--quiet")
    assert (code, err) == (0, "")
    saved = json.loads(file.read_text())
    assert saved.pop("kind") == "comparison"
    assert saved.pop("seal").startswith("sha256:")
    assert saved == json.loads(document)
    _, both, _ = run("old.json", "new.json", "--json", "--save", file)
    assert both == document


@pytest.mark.parametrize(
    "spelling",
    [
        ["old.json", "new.json", "--json", "FILE"],
        ["--json", "FILE", "old.json", "new.json"],
        ["old.json", "--json=FILE", "new.json"],
        ["old.json", "new.json", "--parents", "old.json", "--base", "base.json", "--json", "FILE"],
        ["old.json", "new.json", "--json", "FILE", "--gate", "negative_flips<0.5"],
    ],
)
def test_a_file_behind_json_is_understood_and_answered_with_the_new_spelling(
    run, tmp_path, spelling
):
    file = tmp_path / "saved.json"
    code, out, err = run(*(word.replace("FILE", str(file)) for word in spelling), "--quiet")
    assert (code, err) == (0, NOW)
    assert "Scores with 95 % intervals" in out
    assert json.loads(file.read_text())["old"] == "old"


def test_a_dash_behind_json_is_stdout(run):
    code, out, err = run("old.json", "new.json", "--json", "-")
    assert (code, err) == (0, NOW)
    assert json.loads(out)["new"] == "new"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--json", "old.json", "new.json"],
        ["old.json", "--json", "new.json"],
        ["old.json", "new.json", "--json"],
        ["--json", "--quiet", "old.json", "new.json"],
    ],
)
def test_json_alone_takes_no_argument_wherever_it_stands(run, arguments):
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    assert json.loads(out)["old"] == "old"


def test_too_many_arguments_are_still_refused(run):
    code, _, err = run("old.json", "new.json", "base.json")
    assert code == 2
    assert "unexpected extra argument" in err
    code, _, err = run("old.json", "new.json", "base.json", "--json", "x.json")
    assert code == 2
    assert "unexpected extra argument" in err


def test_a_place_that_cannot_be_written_is_refused_before_the_work(run, workshop):
    code, out, err = run("old.json", "new.json", "--save", "nowhere/x.json")
    assert (code, out) == (4, "")
    assert "nowhere" in err
    code, out, err = run("old.json", "new.json", "--save", workshop)
    assert (code, out) == (4, "")
    assert "is a folder" in err


def test_what_is_compared_is_never_written_over(run, workshop):
    before = (workshop / "old.json").read_bytes()
    code, out, _ = run("old.json", "new.json", "--save", "old.json")
    assert (code, out) == (4, "")
    assert (workshop / "old.json").read_bytes() == before
