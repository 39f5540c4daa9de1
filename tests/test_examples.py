"""The recipes in examples/ mean what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from weightsmith.recipes import load

EXAMPLES = Path(__file__).parent.parent / "examples"
RECIPES = sorted(EXAMPLES.rglob("*.yaml"))


def test_there_are_examples():
    assert len(RECIPES) >= 5


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_example_recipe_is_read_without_complaint(recipe):
    load(recipe)
