"""Blocks of image models that a recipe names and no tensor of the result is in."""

from __future__ import annotations

from collections.abc import Iterable

from weightsmith.checkpoints import is_in_block
from weightsmith.findings import Finding, Severity
from weightsmith.recipes.language.document_parts import rewritten
from weightsmith.recipes.language.schema import RecipeDocument
from weightsmith.recipes.language.selectors import Match
from weightsmith.recipes.resolution.formula import OutputTensor
from weightsmith.wording import counted

_MOST_NAMES = 6


def idle_blocks(document: RecipeDocument, outputs: Iterable[OutputTensor]) -> list[Finding]:
    """A warning where blocks of a recipe select nothing: of another kind of model, or miscounted."""
    named = _named(document)
    if not named:
        return []
    names = [output.name for output in outputs]
    idle = [label for label in named if not any(is_in_block(name, label) for name in names)]
    if not idle:
        return []
    rest = len(idle) - _MOST_NAMES
    shown = ", ".join(idle[:_MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")
    return [
        Finding(
            Severity.WARNING,
            "idle-block",
            "recipe",
            f"No tensor of the result is in {counted(len(idle), 'block')} that the recipe names: {shown}",
            "name blocks that the models have: U-Nets have IN, M and OUT, diffusion transformers D and S",
        )
    ]


def _named(document: RecipeDocument) -> list[str]:
    """Every block that a selector of the recipe, or of one inside it, names."""
    found: dict[str, None] = {}

    def note(part: object) -> object:
        if isinstance(part, Match):
            found.update(dict.fromkeys(part.blocks))
        return part

    rewritten(document, note)
    return list(found)
