"""The recipe language: reading recipes, and resolving them against the headers of checkpoints (`recipes.resolution.resolve`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.recipes.language.loading import load as load
    from weightsmith.recipes.language.overrides import override as override
    from weightsmith.recipes.language.recipe import Recipe as Recipe
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "Recipe": "weightsmith.recipes.language.recipe",
            "load": "weightsmith.recipes.language.loading",
            "override": "weightsmith.recipes.language.overrides",
        },
    )
