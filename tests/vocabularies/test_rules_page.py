"""The page of vocabularies names every rule for missing rows with its parameters and their defaults."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from weightsmith.vocabularies.rules import RULES, SUBTOKEN_VARIANTS

PAGE = (Path(__file__).parents[2] / "docs" / "vocabularies.md").read_text()


@pytest.mark.parametrize("name", list(RULES))
def test_parameters_stand_on_the_page_with_their_defaults_and_what_they_mean(name: str) -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
    for parameter in fields(RULES[name]):
        default = str(parameter.default).lower()
        shown = {"0.001": "1e-3", "1e-06": "1e-6", "mean": "`mean`"}.get(default, default)
        assert f"`{parameter.name}` ({shown})" in row
        meant = [line for line in PAGE.splitlines() if f"`{parameter.name}`" in line]
        assert any(line.startswith("| `") and f"of `{name}` |" in line for line in meant)


def test_variants_stand_on_the_page() -> None:
    meaning = next(line for line in PAGE.splitlines() if line.startswith("| `variant` of"))
    assert all(f"`{variant}`" in meaning for variant in SUBTOKEN_VARIANTS)
