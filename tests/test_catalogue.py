"""The catalogue of methods in the documentation says what the methods say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from weightsmith.methods.parts import registry

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def catalogue():
    spec = importlib.util.spec_from_file_location(
        "make_catalogue", ROOT / "tools" / "make_catalogue.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_page_is_current(catalogue):
    page = (ROOT / "docs" / "methods.md").read_text()
    assert page == catalogue.catalogue(), "run `python tools/make_catalogue.py`"


def test_every_method_and_parameter_stands_on_the_page():
    page = (ROOT / "docs" / "methods.md").read_text()
    for name in registry.names():
        _, heading, section = page.partition(f"\n## {name}\n")
        assert heading, name
        section = section.partition("\n## ")[0]
        for key in registry.get(name).parameters:
            assert f"| {key} |" in section, f"{name}: {key}"


def test_a_page_that_is_not_current_is_noticed(catalogue, monkeypatch, tmp_path):
    page = tmp_path / "methods.md"
    monkeypatch.setattr(catalogue, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["make_catalogue.py"])
    assert catalogue.main() == 0
    monkeypatch.setattr(sys, "argv", ["make_catalogue.py", "--check"])
    assert catalogue.main() == 0
    page.write_text(page.read_text().replace("TIES-Merging", "TIES"))
    assert catalogue.main() == 1
