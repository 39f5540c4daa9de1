"""The catalogue of methods in the documentation says what the methods say."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from weightsmith.inspection.method_guide import MODIFIERS, QUESTIONS
from weightsmith.methods.parts import modifiers, registry

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def catalogue():
    spec = importlib.util.spec_from_file_location(
        "make_catalogue", ROOT / "tools" / "make_catalogue.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(catalogue):
    return catalogue.pages()


def test_the_committed_pages_are_current(pages):
    committed = {path.relative_to(DOCS) for path in (DOCS / "methods").glob("*.md")}
    assert committed | {Path("methods.md")} == set(pages), "run `python tools/make_catalogue.py`"
    stale = [str(path) for path, text in pages.items() if (DOCS / path).read_text() != text]
    assert not stale, "run `python tools/make_catalogue.py`"


def test_every_method_and_modifier_has_a_page_with_its_parameters_and_a_recipe():
    for known, get in ((QUESTIONS, registry.get), ([MODIFIERS], modifiers.get)):
        for name in (name for question in known for name in question.answers):
            page = (DOCS / "methods" / f"{name}.md").read_text()
            for key in get(name).parameters:
                assert f"| {key} |" in page, f"{name}: {key}"
            assert f"```yaml\n# {name}.yaml\n" in page


def test_the_defaults_of_every_preset_stand_on_the_page():
    page = (DOCS / "methods" / "dare_ties.md").read_text()
    assert "| parameter | per expert | allowed | paper | mergekit | mergelm | meaning |" in page
    assert re.search(r"\| trim \|.*\| 1 \| 1 \| 0.2 \|", page)


def headings(page):
    return re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)


def test_links_between_the_pages_lead_somewhere(catalogue):
    for page in [DOCS / "methods.md", *(DOCS / "methods").glob("*.md")]:
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve()
            assert target.is_file(), f"{page.name}: {link}"
            assert not anchor or anchor in map(catalogue.anchor, headings(target)), link


def test_a_page_that_is_not_current_missing_or_too_many_is_noticed(
    catalogue, pages, monkeypatch, tmp_path
):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["make_catalogue.py", *arguments])
        return catalogue.main()

    monkeypatch.setattr(catalogue, "DOCS", tmp_path)
    monkeypatch.setattr(catalogue, "pages", lambda: pages)
    assert run("--check") == 1
    assert run() == 0
    assert run("--check") == 0
    page = tmp_path / "methods" / "ties.md"
    page.write_text(page.read_text().replace("TIES-Merging", "TIES"))
    assert run("--check") == 1
    (tmp_path / "methods" / "forgotten.md").touch()
    assert run() == 0
    assert run("--check") == 0
    page.unlink()
    assert run("--check") == 1


def test_the_readme_counts_the_methods():
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    assert f"[{len(registry.names())} methods](docs/methods.md)" in readme
