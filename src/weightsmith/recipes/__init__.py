"""The recipe language: reading recipes, and resolving them against the headers of checkpoints (`recipes.resolve`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.recipes.loading import load as load
    from weightsmith.recipes.overrides import override as override
    from weightsmith.recipes.recipe import Recipe as Recipe
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "Recipe": "weightsmith.recipes.recipe",
            "load": "weightsmith.recipes.loading",
            "override": "weightsmith.recipes.overrides",
        },
    )
