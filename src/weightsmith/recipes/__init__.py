"""The recipe language: reading recipes, and resolving them against the headers of checkpoints."""

from __future__ import annotations

from weightsmith.recipes.loading import load
from weightsmith.recipes.overrides import override
from weightsmith.recipes.recipe import Recipe
from weightsmith.recipes.resolve import resolve

__all__ = ["Recipe", "load", "override", "resolve"]
