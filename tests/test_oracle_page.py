"""The page of oracles has every method, and is made of what a run found."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from weightsmith.methods.parts import modifiers, registry

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def table():
    path = ROOT / "tools" / "make_oracle_table.py"
    spec = importlib.util.spec_from_file_location("make_oracle_table", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def row(method: str, error: float, structure: str = "memory", shape: str = "llama", **more):
    found = {"method": method, "variant": "defaults", "structure": structure, "shape": shape}
    return {**found, "error": error, "tolerance": 1e-12, **more}


def test_every_method_and_modifier_stands_on_the_page():
    page = (ROOT / "docs" / "oracle.md").read_text()
    listed = re.findall(r"^\| (\w+) (?:\| \d+ ){4}\|", page, re.MULTILINE)
    assert listed == sorted(set(listed))
    assert set(listed) == {*registry.names(), *modifiers.names()}


def test_the_largest_error_of_a_method_is_shown_by_precision(table):
    rows = [
        row("ties", 1e-16),
        row("ties", 3e-15, "slices", "gpt2", variant="other"),
        row("ties", 2e-7, "float32 native"),
        row("soup", 0.0),
    ]
    page = table.page(rows, "a machine", "2026-01-02")
    assert "| ties | 2 | 2 | 3 | 3 | 3.0e-15 | 2.0e-07 |" in page
    assert "| soup | 1 | 1 | 1 | 1 | 0 |  |" in page
    assert "Run on 2026-01-02, a machine: 4 comparisons, 1 beyond their tolerance." in page
    assert "| memory | 2 | 2 | 1.0e-16 |" in page
    assert "| float32 native | 1 | 1 | 2.0e-07 |\n| memory | 2 | 2 | 1.0e-16 |" in page


def test_what_was_left_out_of_a_run_is_named(table):
    page = table.page([row("ties", 1e-16)], "a machine", "2026-01-02")
    (sentence,) = [line for line in page.splitlines() if "left out" in line]
    for name in ("equal", "float32 native", "nested_expert", "rounded_inputs", "tied files"):
        assert name in sentence
    assert "memory" not in sentence
    every = [row("ties", 1e-16, name) for name in ["memory", *table.left_out([row("ties", 0.0)])]]
    assert "left out" not in table.page(every, "a machine", "2026-01-02")


def test_what_is_beyond_its_tolerance_is_counted(table, tmp_path, monkeypatch):
    page = tmp_path / "oracle.md"
    monkeypatch.setattr(table, "PAGE", page)
    (tmp_path / "1.json").write_text(json.dumps([row("ties", 0.5), row("soup", 1e-13)]))
    (tmp_path / "2.json").write_text(json.dumps([row("ties", float("nan"))]))
    assert table.main([str(tmp_path)]) == 0
    assert "3 comparisons, 2 beyond their tolerance" in page.read_text()


def test_a_run_without_results_writes_no_page(table, tmp_path, monkeypatch):
    page = tmp_path / "oracle.md"
    monkeypatch.setattr(table, "PAGE", page)
    assert table.main([str(tmp_path)]) == 1
    assert not page.exists()
