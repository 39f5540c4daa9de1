"""Averages, slices and adapters of whole architectures, beside plain torch, PEFT and their own library."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("transformers")
pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "architectures-tested.md"


@pytest.fixture(scope="module")
def table() -> ModuleType:
    path = ROOT / "tools" / "make_architecture_table.py"
    spec = importlib.util.spec_from_file_location("make_architecture_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tried(name: str, folder: Path) -> dict[str, str]:
    from .architecture_checks import outcomes
    from .tested_architectures import architecture

    return outcomes(architecture(name), folder)


def row(name: str) -> str:
    """An architecture's line of the page."""
    (line,) = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{name}` |")]
    return line


# BERT's transform stands before its tied head and is no head; GPT-2's matrices have their inputs first.
@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_an_architecture_passes_every_check(tmp_path: Path, name: str) -> None:
    pytest.importorskip("peft")
    found = tried(name, tmp_path)
    assert {check: text for check, text in found.items() if text != "yes"} == {}


def test_a_wrong_average_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from . import architecture_checks as checks
    from .tested_architectures import architecture

    one = checks.Tried(architecture("gpt2"), tmp_path)
    merge = checks._merge
    monkeypatch.setattr(checks, "_merge", lambda models, out: merge([models[0]] * 2, out))
    assert one.averaged().startswith("other numbers")
    assert one.forward().startswith("other numbers")


def test_the_page_says_why_something_is_refused(table: ModuleType) -> None:
    found = {
        "bert": {"average": "yes", "slices": "refused: No such layers."},
        "gpt2": {"average": "WRONG: other names", "slices": "refused: No such layers."},
        "odd": {"not made": "ValueError()"},
    }
    page = table.page(found)
    assert "| `bert` | yes |  |  | refused [1] |" in page
    assert "| `gpt2` | defect [2] |  |  | refused [1] |" in page
    assert "1. refused: No such layers." in page
    assert "2. defect: other names" in page
    assert "`odd`" not in page.split("## ")[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "t5", "wav2vec2"])
def test_the_page_has_what_is_found(tmp_path: Path, table: ModuleType, name: str) -> None:
    pytest.importorskip("peft")
    cells = [cell.split(" [")[0] for cell in row(name).split(" | ")]
    (made,) = [
        line
        for line in table.page({name: tried(name, tmp_path)}).splitlines()
        if line.startswith(f"| `{name}` |")
    ]
    assert [cell.split(" [")[0] for cell in made.split(" | ")] == cells


@pytest.mark.slow
@pytest.mark.skipif("ARCHITECTURE_RESULTS" not in os.environ, reason="`make architectures` runs it")
def test_no_architecture_gives_something_wrong(tmp_path: Path) -> None:
    """Writes what came of it to the folder ARCHITECTURE_RESULTS."""
    from .tested_architectures import names

    found = {}
    for name in names():
        found[name] = tried(name, tmp_path / name)
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        file = Path(os.environ["ARCHITECTURE_RESULTS"]) / f"{name}.json"
        file.write_text(json.dumps({name: found[name]}))
    assert not {
        name: wrong
        for name, ways in found.items()
        if (wrong := {k: t for k, t in ways.items() if t.startswith("WRONG")})
    }
