"""`--json` everywhere: one document on stdout, with the keys that the documentation lists and no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.cli.main import execute, weightsmith

from .json_table import check, documented
from .workshop import LINES, Line


def run(line: Line, arguments: str, place: Path, capfd: pytest.CaptureFixture[str]) -> Any:
    words = [w for w in line.command.split() if w != "NAME" and not w.startswith("--")]
    words += arguments.replace("OUT", str(place / "out")).split()
    capfd.readouterr()
    assert execute([*words, "--json"]) in (0, 1)
    return json.loads(capfd.readouterr().out)


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.command)
def test_a_document_has_the_keys_that_are_documented(line, workshop, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(workshop)
    documents = [run(line, line.arguments, tmp_path, capfd)]
    if line.again:
        documents.append(run(line, line.again, tmp_path / "again", capfd))
    check(line.command, documents)


def test_every_command_is_in_the_table_and_takes_json():
    def leaves(command: Any, path: tuple[str, ...] = ()) -> list[tuple[str, Any]]:
        if not hasattr(command, "list_commands"):
            return [(" ".join(path), command)]
        names = command.list_commands(None)
        return [leaf for n in names for leaf in leaves(command.get_command(None, n), (*path, n))]

    table = documented()
    for name, command in leaves(weightsmith):
        assert name in table, f"{name} has no row in docs/command-line.md"
        option = next((o for o in command.params if "--json" in o.opts), None)
        assert option is not None, f"{name} has no --json"
        assert option.is_flag


def test_a_report_says_what_it_wrote(workshop, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(workshop)
    capfd.readouterr()
    assert execute(["report", "ties.yaml", "-o", str(tmp_path / "page.html"), "--json"]) == 0
    written = json.loads(capfd.readouterr().out)
    check("report", [dict(written)])
    assert Path(written["out"]).read_text().startswith("<!doctype html>")


def test_numbers_that_json_lacks_are_null(workshop, capfd, monkeypatch):
    monkeypatch.chdir(workshop)
    # What is compared with zeros is infinitely far from them.
    save_file({"w": np.zeros((2, 2), np.float32)}, "zeros.safetensors")
    save_file({"w": np.ones((2, 2), np.float32)}, "ones.safetensors")
    assert execute(["diff", "zeros.safetensors", "ones.safetensors", "--json"]) == 1
    text = capfd.readouterr().out
    assert "Infinity" not in text
    assert json.loads(text)["total"]["relative_delta"] is None
