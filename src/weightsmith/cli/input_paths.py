"""What a command reads, for the check that none of its outputs takes the place of that."""

from __future__ import annotations

from pathlib import Path

from weightsmith.tensors import expanded


def places_read(*given: str | Path | None) -> tuple[Path, ...]:
    """Every folder and file behind checkpoints, recipes and other files that a command is given; None is left out.

    Raises what opening them raises.
    """
    found: list[Path] = []
    for one in given:
        if one is not None:
            found += _places(str(one))
    return tuple(dict.fromkeys(found))


def suite_files(suite: str | None) -> tuple[Path, ...]:
    """A suite, and all that its tasks name; raises what loading it raises."""
    from weightsmith.evaluation import load_suite

    return () if suite is None else load_suite(suite).files


def _places(given: str) -> tuple[Path, ...]:
    from weightsmith.adapters import open_model
    from weightsmith.checkpoints import BareAdapter
    from weightsmith.engine import make_plan
    from weightsmith.recipes import Recipe, is_recipe_file

    path = expanded(given)
    if is_recipe_file(given):
        return make_plan(Recipe.load(path)).inputs
    if path.is_file() and path.suffix == ".json":
        return (path,)
    try:
        return open_model(given).inputs
    except BareAdapter as adapter:
        return (adapter.path,)
