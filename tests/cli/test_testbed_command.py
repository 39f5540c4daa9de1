"""`weightsmith testbed`: list, path, build, and what they say of a wrong name and an interruption."""

from __future__ import annotations

import json
import sys
import types

import pytest

from weightsmith.cli.judging.testbed import BuildLines
from weightsmith.cli.main import execute
from weightsmith.testbeds.family_registry import FAMILIES, Blueprint, BuildStep, TrainedFamily

from .json_table import check


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "testbeds"


@pytest.fixture
def toy(monkeypatch):
    """A family of two steps; `toy.stop` interrupts the second."""
    module = types.ModuleType("toy_family")
    module.stop = False

    def base(workshop):
        workshop.place("base/config.json").write_text("{}")
        return {}

    def expert(workshop):
        if module.stop:
            raise KeyboardInterrupt
        workshop.place("experts/one/config.json").write_text("{}")
        return {}

    steps = (BuildStep("base", 1, base), BuildStep("experts/one", 3, expert))
    module.blueprint = lambda: Blueprint(("one",), (), {}, steps)
    monkeypatch.setitem(sys.modules, "toy_family", module)
    monkeypatch.setitem(
        FAMILIES, "toy", TrainedFamily("toy", "a toy", (), 0, 0, "toy_family:blueprint")
    )
    return module


@pytest.mark.usefixtures("toy")
def test_list_shows_every_family_and_whether_it_is_built(cache, capsys):
    assert execute(["testbed", "build", "toy", "--quiet", "--json"]) == 0
    check("testbed build", [json.loads(capsys.readouterr().out)])
    assert execute(["testbed", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["families"]}
    assert list(rows) == list(FAMILIES)
    assert {name for name, row in rows.items() if row["is_built"]} == {"toy"}
    assert rows["toy"]["path"] == str(cache / "toy")
    assert execute(["testbed", "list"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in FAMILIES)


@pytest.mark.usefixtures("toy")
def test_path_says_where_a_family_lies_and_whether_it_is_there(cache, capsys):
    assert execute(["testbed", "path", "toy"]) == 1
    shown = capsys.readouterr()
    assert shown.out.strip() == str(cache / "toy")
    assert "toy is not built" in shown.err
    assert execute(["testbed", "build", "toy", "--quiet"]) == 0
    capsys.readouterr()
    assert execute(["testbed", "path", "toy"]) == 0
    shown = capsys.readouterr()
    assert (shown.out.strip(), shown.err) == (str(cache / "toy"), "")


@pytest.mark.parametrize("verb", ["path", "build"])
def test_a_wrong_name_gets_the_nearest(verb, capsys):
    assert execute(["testbed", verb, "visoin"]) == 2
    assert "did you mean 'vision'?" in capsys.readouterr().err


def test_an_interrupted_build_says_so_and_the_next_goes_on(toy, tmp_path, capsys):
    command = ["testbed", "build", "toy", "--out", str(tmp_path / "family")]
    toy.stop = True
    assert execute(command) == 130
    assert "finished models are safe" in capsys.readouterr().err
    toy.stop = False
    assert execute(command) == 0
    shown = capsys.readouterr()
    assert "resuming: 25 % are finished" in shown.err
    assert "base" not in shown.err
    assert shown.out.startswith(str(tmp_path / "family"))


def test_progress_has_share_rate_and_remaining_time():
    lines, now = [], [0.0]
    progress = BuildLines(lines.append, lambda: now[0])
    progress.start(100, 0)
    progress.step("base", 40)
    now[0] = 10.0
    progress.within(50, 100)
    now[0] = 12.0
    progress.within(60, 100)
    now[0] = 20.0
    progress.finished("base", {})
    assert lines == [
        "building: about 1 min 40 s of CPU time",
        "  0 %  base",
        " 20 %  base  50 of 100  5.0/s  40 s left",
        " 40 %  base finished in 20 s",
    ]


def test_the_time_that_an_earlier_build_took_does_not_count():
    lines, now = [], [0.0]
    progress = BuildLines(lines.append, lambda: now[0])
    progress.start(100, 80)
    progress.step("experts/one", 20)
    now[0] = 30.0
    progress.within(1, 2)
    assert lines == [
        "resuming: 80 % are finished",
        " 80 %  experts/one",
        " 90 %  experts/one  1 of 2  0.0/s  30 s left",
    ]
