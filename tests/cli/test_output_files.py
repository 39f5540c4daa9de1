"""Reports, JSON and pictures are never put over what a command reads, nor over what is not weightsmith's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

SUITE = """\
suite: digits
tasks:
  - {name: digits, kind: classification, data: data/digits.npz, head: head.safetensors}
"""


@pytest.fixture
def folder(family):
    """The family with a suite of one task, an evaluation and a league as JSON, an adapter, and `made` by a merge."""
    (family / "suite.yaml").write_text(SUITE)
    (family / "data").mkdir()
    np.savez(family / "data" / "digits.npz", x=np.zeros(3))
    (family / "head.safetensors").write_bytes(b"head")
    for name in ("scores", "other", "league"):
        (family / f"{name}.json").write_text("{}")
    (family / "outer.yaml").write_text(
        "weightsmith: 1\nmerge_method: linear\nmodels: [{model: linear.yaml}]\n"
    )
    return family


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


EVALUATE = "evaluate one --suite suite.yaml"
COMPARE = "compare one outer.yaml --parents two --base base --suite suite.yaml"
REPORT = "report one --base base --evaluation scores.json --league league.json"
CASES = [
    ("report linear.yaml -o", "linear.yaml"),
    ("report linear.yaml -o", "one/config.json"),
    ("report outer.yaml -o", "linear.yaml"),
    (f"{REPORT} -o", "one/model.safetensors"),
    (f"{REPORT} -o", "base/model.safetensors"),
    (f"{REPORT} -o", "scores.json"),
    (f"{REPORT} -o", "league.json"),
    ("merge linear.yaml out --report", "one/model.safetensors"),
    ("merge linear.yaml out --report", "linear.yaml"),
    ("merge ties.yaml out --report", "base/new.html"),
    ("diff one two --base base --report", "two/model.safetensors"),
    ("diff one two --base base --report", "base/config.json"),
    (f"{EVALUATE} --report", "suite.yaml"),
    (f"{EVALUATE} --json", "suite.yaml"),
    (f"{EVALUATE} --json", "data/digits.npz"),
    (f"{EVALUATE} --json", "head.safetensors"),
    (f"{EVALUATE} --json", "one/model.safetensors"),
    (f"{EVALUATE} --json", "one/new.json"),
    (f"{COMPARE} --json", "data/digits.npz"),
    (f"{COMPARE} --json", "suite.yaml"),
    (f"{COMPARE} --json", "linear.yaml"),
    (f"{COMPARE} --json", "two/config.json"),
    (f"{COMPARE} --report", "base/model.safetensors"),
    ("compare scores.json other.json --json", "other.json"),
    ("compare scores.json other.json --report", "scores.json"),
]


@pytest.mark.parametrize(("command", "place"), CASES)
def test_what_a_command_reads_is_not_written_over(weightsmith, folder, command, place):
    before = contents(folder)
    found = weightsmith(*command.split(), place)
    assert found.code == 4, found
    assert "input" in found.err
    assert contents(folder) == before


FOREIGN = [
    ("report linear.yaml -o", "thesis.html"),
    ("merge linear.yaml out --report", "thesis.html"),
    ("merge linear.yaml out --force --report", "thesis.html"),
    ("diff one two --report", "thesis.html"),
    (f"{EVALUATE} --json", "thesis.html"),
    (f"{EVALUATE} --report", "thesis.html"),
    ("compare scores.json other.json --json", "thesis.html"),
]


@pytest.mark.parametrize(("command", "place"), FOREIGN)
def test_what_is_not_weightsmiths_own_is_not_written_over(weightsmith, folder, command, place):
    """With --force as without, and before the work."""
    (folder / place).write_text("precious")
    before = contents(folder)
    found = weightsmith(*command.split(), place)
    assert found.code == 4, found
    assert "weightsmith's, or was changed since it was written" in found.err
    assert contents(folder) == before


def test_a_report_is_replaced_until_somebody_edits_it(weightsmith, folder):
    assert weightsmith("report", "linear.yaml", "-o", "r.html").code == 0
    first = (folder / "r.html").read_bytes()
    assert weightsmith("report", "ties.yaml", "-o", "r.html").code == 0
    second = (folder / "r.html").read_bytes()
    assert first != second
    (folder / "r.html").write_bytes(second.replace(b"ties", b"mine", 1))
    assert weightsmith("report", "linear.yaml", "-o", "r.html").code == 4
    assert b"mine" in (folder / "r.html").read_bytes()


def test_pictures_replace_only_pictures(weightsmith, folder):
    command = ("report", "one", "two", "--base", "base", "-o", "r.html", "--pictures", "p")
    assert weightsmith(*command).code == 0
    assert weightsmith(*command).code == 0
    picture = min((folder / "p").glob("*.png"))
    before = {name: data for name, data in contents(folder).items() if not name.endswith("r.html")}
    picture.write_bytes(b"precious")
    found = weightsmith(*command)
    assert found.code == 4
    assert picture.name in found.err
    assert {**before, str(picture): b"precious"} == {
        name: data for name, data in contents(folder).items() if not name.endswith("r.html")
    }


def test_pictures_are_not_put_into_an_input(weightsmith, folder):
    command = ("report", "one", "two", "--base", "base", "-o", "r.html", "--pictures")
    for place in ("one", "one/pictures"):
        found = weightsmith(*command, place)
        assert found.code == 4
        assert "lies inside the input" in found.err
    assert not (folder / "one" / "pictures").exists()
    assert not (folder / "r.html").exists()


@pytest.mark.usefixtures("folder")
def test_a_folder_for_pictures_is_not_made_inside_an_output(weightsmith, folder):
    assert weightsmith("merge", "linear.yaml", "sealed", "--quiet").code == 0
    before = sorted((folder / "sealed").rglob("*"))
    result = weightsmith("report", "ties.yaml", "-o", "page.html", "--pictures", "sealed/pictures")
    assert result.code == 4
    assert "whose record names all that is in it" in result.err
    assert sorted((folder / "sealed").rglob("*")) == before


def test_a_report_lies_outside_of_the_output(weightsmith):
    """Before the output is there and after."""
    for _ in range(2):
        found = weightsmith("merge", "linear.yaml", "out", "--force", "--report", "out/r.html")
        assert found.code == 2
        assert "lies in the output" in found.err
        assert weightsmith("merge", "linear.yaml", "out", "--force", "--quiet").code == 0
    found = weightsmith("report", "linear.yaml", "-o", "out/r.html")
    assert found.code == 4
    assert weightsmith("verify", "out").code == 0


def test_one_file_is_not_both_json_and_report(weightsmith, folder):
    command = (*EVALUATE.split(), "--json", "a.html", "--report", "a.html")
    assert weightsmith(*command).code == 2
    assert not (folder / "a.html").exists()


@pytest.mark.usefixtures("folder")
def test_the_result_of_a_merge_is_told_even_if_its_report_fails(weightsmith, monkeypatch):
    from weightsmith.errors import OutputError
    from weightsmith.reports import report_files as writing

    def fails(*_, **__):
        raise OutputError("The disk is faulty.")

    monkeypatch.setattr(writing, "publish_file", fails)
    found = weightsmith("merge", "linear.yaml", "out", "--quiet", "--report", "r.html")
    assert found.code == 4
    assert found.out.startswith("out  xxh3-checkpoint-1:")
    assert weightsmith("verify", "out").code == 0


def test_a_league_keeps_its_measurements_outside_of_the_family(weightsmith, folder):
    record = {"family": "mine", "digest": "sha256:0", "tasks": ["a"]}
    for name in ("base", "experts/a"):
        (folder / "family" / name).mkdir(parents=True)
    (folder / "family" / "family.json").write_text(json.dumps(record))
    before = sorted(folder.rglob("*"))
    for place in ("family", "family/base"):
        found = weightsmith("league", "--family", "family", "--methods", "linear", "--out", place)
        assert found.code == 4
        assert "lies inside the input" in found.err
    assert sorted(folder.rglob("*")) == before
