"""`weightsmith bundle`: many fine-tunes of one base in one folder, each a checkpoint of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli import completing
from weightsmith.cli.documented import DocumentedCommand, DocumentedGroup
from weightsmith.cli.options import (
    RunOptions,
    json_option,
    overrides_option,
    run_options,
)
from weightsmith.cli.presenting import Block, TextTable, present
from weightsmith.cli.terminal_text import counted
from weightsmith.cli.written import run_plan
from weightsmith.tensors import format_size

if TYPE_CHECKING:
    from weightsmith.checkpoints import BundleHeader


@click.group(
    cls=DocumentedGroup,
    examples=("bundle create emr.yaml tasks", "bundle extract tasks math math-model"),
)
def bundle() -> None:
    """Keep many fine-tunes of one base in one folder.

    A bundle holds the base (or its digest), one vector that all tasks share and one bit per weight and task.
    BUNDLE#TASK is a checkpoint wherever a model may stand: in recipes, `inspect` and `diff`.
    """


@bundle.command(
    cls=DocumentedCommand,
    short_help="Make a bundle from a recipe.",
    examples=("bundle create emr.yaml tasks", "bundle create emr.yaml tasks --refer-to-base"),
)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--refer-to-base", is_flag=True, help="Name the base by its digest instead of storing it."
)
@overrides_option
@run_options
def create(
    recipe: Path,
    out: Path,
    refer_to_base: bool,
    overrides: tuple[str, ...],
    **run: Any,
) -> int:
    """Make the bundle OUT of the experts in RECIPE, whose method is tall_masks, emr or localize_and_stitch.

    The same as `merge` of a recipe with `bundle: {}`. OUT appears whole or not at all, and an interrupted run goes on.
    """
    from weightsmith.engine import make_plan
    from weightsmith.recipes import BundleForm, Recipe

    begun = time.monotonic()
    loaded = Recipe.load(recipe, overrides=overrides)
    form = loaded.document.bundle or BundleForm()
    if refer_to_base:
        form = form.model_copy(update={"base": "reference"})
    document = loaded.document.model_copy(update={"bundle": form})
    how = RunOptions(**run)
    made = make_plan(replace(loaded, document=document), **how.options())
    return run_plan(made, out, begun, how)


@bundle.command(
    "list",
    cls=DocumentedCommand,
    short_help="Show what a bundle holds.",
    examples=("bundle list tasks",),
)
@click.argument("folder", metavar="BUNDLE", type=click.Path(path_type=Path))
@json_option
def list_(folder: Path, as_json: bool) -> int:
    """Show the tasks of BUNDLE, its method and base, and its size, from headers alone."""
    from weightsmith.checkpoints import open_packed, read_bundle_header

    header = read_bundle_header(folder)
    stored = sum(tensor.nbytes for tensor in open_packed(folder).tensors.values())
    present(_Bundle(header, stored), _blocks, as_json=as_json)
    return 0


@dataclass(frozen=True, slots=True)
class _Bundle:
    """A bundle as its header describes it, and its bytes."""

    header: BundleHeader
    nbytes: int

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it, without what is said of every tensor."""
        content = self.header.to_json() | {"bytes": self.nbytes}
        del content["tensors"]
        return content


def _blocks(bundle: _Bundle) -> Iterator[Block]:
    header = bundle.header
    rows = [
        (task.label, str(number), task.reference, task.digest)
        for number, task in enumerate(header.tasks, start=1)
    ]
    yield TextTable(
        "Tasks", ("task", "number", "expert", "digest"), rows, frozenset({1}), spare=(2,)
    )
    base = "stored" if header.stores_base else f"referred to, digest {header.base_digest}"
    coded = sum(tensor.coded for tensor in header.tensors.values())
    yield f"method  {header.method}"
    yield f"base    {header.base_reference} ({base})"
    yield f"tensors {counted(coded, 'coded tensor')} of {len(header.tensors)}"
    yield f"size    {format_size(bundle.nbytes)}"


@bundle.command(
    cls=DocumentedCommand,
    short_help="Write one task of a bundle as a checkpoint.",
    examples=("bundle extract tasks math math-model",),
)
@click.argument("folder", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.argument("task", shell_complete=completing.tasks)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--base", metavar="PATH", help="Where the base lies now, if BUNDLE does not store it."
)
@run_options
def extract(
    folder: Path,
    task: str,
    out: Path,
    base: str | None,
    **run: Any,
) -> int:
    """Write TASK (its label, or its number from 1) of BUNDLE as the checkpoint OUT, with a manifest of its own.

    Every part and the base are compared with their digests before anything is made of them.
    """
    from weightsmith.checkpoints import open_task
    from weightsmith.packages import copy_plan

    begun = time.monotonic()
    reference = f"{folder}#{task}"
    member = open_task(folder, task, base=base)
    how = RunOptions(**run)
    made = copy_plan(member, reference, **how.options())
    return run_plan(made, out, begun, how)
