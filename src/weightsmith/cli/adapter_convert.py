"""`weightsmith adapter convert`: the same adapter in another dialect."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click

from weightsmith.cli.adapter_options import (
    base_option,
    bytes_of,
    dtype_option,
    force_option,
    opened_base,
    ranks_text,
)
from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.options import json_option
from weightsmith.cli.output import show_json, show_line
from weightsmith.cli.streams import STREAMS
from weightsmith.cli.text import counted
from weightsmith.tensors.sizes import format_size


@click.command(
    cls=DocumentedCommand,
    short_help="Write an adapter in another dialect.",
    examples=(
        "adapter convert adapter adapter.safetensors --to kohya --base base",
        "adapter convert loha.safetensors adapter --to peft --base base --rank 32",
        "adapter convert pissa adapter --to peft --initial pissa-init",
    ),
)
@click.argument("adapter")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "dialect",
    required=True,
    type=click.Choice(("peft", "kohya", "diffusers")),
    help="The dialect of OUT.",
)
@base_option
@click.option(
    "--initial",
    metavar="ADAPTER",
    help="The adapter before training, for PiSSA, OLoRA, CorDA and LoRA-GA.",
)
@click.option("--component", metavar="NAME", help="The part of a pipeline, such as unet.")
@click.option(
    "--rank",
    type=click.IntRange(min=1),
    metavar="N",
    help="At most N directions of what is no LoRA (LoHa, LoKr, full changes).",
)
@click.option(
    "--energy",
    type=float,
    metavar="T",
    help="As few directions of what is no LoRA as hold this share of its square.",
)
@dtype_option
@json_option
@force_option
def convert(
    adapter: str,
    out: Path,
    dialect: str,
    base: str | None,
    initial: str | None,
    component: str | None,
    rank: int | None,
    energy: float | None,
    dtype: str | None,
    as_json: bool,
    force: bool,
) -> int:
    """Write ADAPTER, of any dialect, as OUT.

    LoRA keeps its factors. LoHa, LoKr and full changes become products of the rank that they have, or of the rank or
    energy that is asked for. An adapter whose initialisation changed the base needs --initial.
    """
    from weightsmith.adapters.converting import convert as converted
    from weightsmith.adapters.writing import Dialect
    from weightsmith.tensors.dtypes import DType

    made = converted(
        adapter,
        out,
        cast("Dialect", dialect),
        base=opened_base(base),
        initial=initial,
        rank=rank,
        energy=energy,
        dtype=None if dtype is None else DType.parse(dtype),
        component=component,
        force=force,
    )
    STREAMS.done()
    nbytes = bytes_of(out)
    if as_json:
        tensors = [
            {"tensor": t.target, "form": t.form.value, "rank": t.rank, "lost": t.error}
            for t in made.tensors
        ]
        show_json(
            {
                "schema": 1,
                "out": str(out),
                "dialect": made.dialect,
                "dtype": str(made.dtype),
                "bytes": nbytes,
                "lost": made.error,
                "tensors": tensors,
            }
        )
        return 0
    ranks = ranks_text([t.rank for t in made.tensors])
    show_line(
        f"{out}  {made.dialect}  {counted(len(made.tensors), 'tensor')} of rank {ranks} in {made.dtype}  "
        f"{format_size(nbytes)}"
    )
    if made.error:
        show_line(f"lost at most {100 * made.error:.3g} % of a change")
    return 0
