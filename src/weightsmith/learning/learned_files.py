"""The two files that learning leaves: the recipe, and the log of how it was found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from weightsmith.adapters import AdapterReference, Reference, locate
from weightsmith.errors import OutputError
from weightsmith.publishing import publish_file, sealed_json, with_seal
from weightsmith.recipes import Recipe, rewritten
from weightsmith.tensors import expanded, shown

RECIPE_KIND, LOG_KIND = "recipe", "learning"
_ENDINGS = (".yaml", ".yml")


def log_place(out: Path) -> Path:
    """Where the log of a recipe goes; raises OutputError for a recipe that is not called like one."""
    if out.suffix not in _ENDINGS:
        raise OutputError(f"A recipe is a YAML file; give {shown(out)} the ending .yaml.")
    return out.with_name(f"{out.stem}.{LOG_KIND}.json")


def placed_recipe(recipe: Recipe, out: Path) -> Recipe:
    """A recipe that names the same models from where it will lie.

    What is found from the folder of the recipe alone is named absolutely, unless the new one lies beside it.
    """
    folder = recipe.base_dir
    if folder is None or folder.absolute() == out.absolute().parent:
        return recipe

    def found(path: str) -> str:
        there = locate(path, folder)
        return path if there == path else str(expanded(there).absolute())

    def change(part: Any) -> Any:
        if isinstance(part, Reference):
            adapters = tuple(map(change, part.adapters))
            return replace(part, path=found(part.path), adapters=adapters)
        if isinstance(part, AdapterReference):
            return replace(part, path=found(part.path))
        return part

    return replace(recipe, document=rewritten(recipe.document, change))


def write_recipe(out: Path, recipe: Recipe, log: Path, reads: Iterable[Path]) -> None:
    """Put a recipe in its place, with a line that says where its numbers are from."""
    text = f"# How its numbers were found is in {log.name}.\n{recipe.dump()}"
    publish_file(out, with_seal(text.encode(), RECIPE_KIND), RECIPE_KIND, reads)


def write_log(place: Path, content: Mapping[str, Any], reads: Iterable[Path]) -> None:
    """Put the log in its place."""
    publish_file(place, sealed_json(content, LOG_KIND), LOG_KIND, reads)
