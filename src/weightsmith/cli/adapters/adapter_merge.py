"""`weightsmith adapter merge`: a base with adapters written as a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli import completing
from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.options import recipe_options
from weightsmith.cli.terminal_text import counted
from weightsmith.cli.written import run_recipe
from weightsmith.errors import UsageError

if TYPE_CHECKING:
    from weightsmith.recipes import Recipe


@click.command(
    cls=DocumentedCommand,
    short_help="Write a base with adapters as a checkpoint.",
    examples=(
        "adapter merge base adapter merged",
        "adapter merge base math code merged --scale 0.7 --scale 0.3",
    ),
)
@click.argument("base")
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER...")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--scale",
    "scales",
    type=float,
    multiple=True,
    metavar="NUMBER",
    help="What an adapter's change is multiplied with; once for all, or once for each in their order.",
)
@click.option(
    "--dtype",
    shell_complete=completing.names(completing.dtypes),
    help="What tensors are stored in; default: as in BASE.",
)
@click.option(
    "--component",
    metavar="NAME",
    help="Use adapters of several parts of a pipeline for this one alone: unet, transformer, text_encoder_2, ...",
)
@recipe_options
def merge(
    base: str,
    adapters: tuple[str, ...],
    out: Path,
    scales: tuple[float, ...],
    dtype: str | None,
    component: str | None,
    **run: Any,
) -> int:
    """Write BASE with every ADAPTER applied as the checkpoint OUT.

    Changes are added in float64 and rounded once; tensors that no adapter changes are copied byte for byte. Nothing is
    held whole, and it is a merge with a recipe of its own: interrupted, verified and replayed like any other.
    """
    begun = time.monotonic()
    recipe = merge_recipe(base, adapters, scales, dtype, component)
    return run_recipe(recipe, out, begun, **run)


def merge_recipe(
    base: str,
    adapters: Sequence[str],
    scales: Sequence[float] = (),
    dtype: str | None = None,
    component: str | None = None,
) -> Recipe:
    """The recipe of a base with adapters alone.

    `scales` are none, one for all adapters or one for each; `component` is the part of a pipeline that all are used
    for. Raises UsageError for another number of them, and for
    references of no known form.
    """
    from weightsmith.adapters import parse_adapter, parse_reference
    from weightsmith.recipes import Recipe

    if len(scales) not in (0, 1, len(adapters)):
        raise UsageError(
            f"{len(scales)} scales do not fit {counted(len(adapters), 'adapter')}; give --scale once, or once for "
            "each."
        )
    each = (
        list(scales) * len(adapters) if len(scales) == 1 else list(scales) or [1.0] * len(adapters)
    )
    try:
        model = parse_reference(base)
        parsed = [parse_adapter(adapter) for adapter in adapters]
    except ValueError as problem:
        raise UsageError(str(problem)) from None
    strengths = [a.strength * scale for a, scale in zip(parsed, each, strict=True)]
    own = [(a, a.strength) for a in model.adapters]
    part = {} if component is None else {"component": component}
    lora = [
        {"path": a.path, "revision": a.revision, "scale": strength, **part}
        for a, strength in [*own, *zip(parsed, strengths, strict=True)]
    ]
    path = {"path": model.path, "revision": model.revision}
    document: dict[str, Any] = {
        "weightsmith": 1,
        "merge_method": "passthrough",
        "models": [{"model": {"model": path, "lora": lora}}],
    }
    return Recipe.load(document if dtype is None else {**document, "dtype": dtype})
