"""`weightsmith untie`: give a tied model an output head of its own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.options import recipe_options
from weightsmith.cli.written import run_recipe

if TYPE_CHECKING:
    from weightsmith.recipes import Recipe


@click.command(
    cls=DocumentedCommand,
    examples=("untie model untied", "untie model+adapter merged", "untie model untied --dry-run"),
)
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@recipe_options
def untie(model: str, out: Path, **run: Any) -> int:
    """Write MODEL with an output head of its own into the new folder OUT.

    The head has the numbers of the embedding that it was tied to, and the configuration says that the two are no longer
    one, so OUT computes what MODEL does and each can be trained apart. It is a merge with a recipe of its own
    (`untie: always`): interrupted, verified and replayed like any other.
    """
    return run_recipe(untying_recipe(model), out, time.monotonic(), **run)


def untying_recipe(model: str) -> Recipe:
    """The recipe that writes a model with a head of its own."""
    from weightsmith.recipes import Recipe

    return Recipe.load(
        {
            "weightsmith": 1,
            "merge_method": "passthrough",
            "models": [{"model": model}],
            "untie": "always",
        }
    )
