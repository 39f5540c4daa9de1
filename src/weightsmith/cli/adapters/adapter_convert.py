"""`weightsmith adapter convert`: the same adapter in another dialect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from weightsmith.cli.adapters.adapter_options import (
    base_option,
    bytes_of,
    dtype_option,
    ranks_text,
)
from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.options import force_option, json_option
from weightsmith.cli.presenting import Block, Data, present, show_findings
from weightsmith.cli.standard_streams import STREAMS
from weightsmith.cli.terminal_text import counted
from weightsmith.tensors import format_size

if TYPE_CHECKING:
    from weightsmith.lora import Conversion, Dialect


@click.command(
    cls=DocumentedCommand,
    short_help="Write an adapter in another format.",
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
    help="The format of OUT.",
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
    """Write ADAPTER, of any format, as OUT.

    LoRA keeps its factors. LoHa, LoKr and full changes become products of the rank that they have, or of the rank or
    energy that is asked for. An adapter whose initialisation changed the base needs --initial.
    """
    from weightsmith.engine import convert_adapter

    made = convert_adapter(
        adapter,
        out,
        cast("Dialect", dialect),
        base=base,
        initial=initial,
        rank=rank,
        energy=energy,
        dtype=dtype,
        component=component,
        force=force,
    )
    STREAMS.done()
    if not as_json:
        show_findings(made.findings, to_stderr=True)
    present(_Converted(out, made, bytes_of(out)), _blocks, as_json=as_json)
    return 0


@dataclass(frozen=True, slots=True)
class _Converted:
    """An adapter that has been written in another dialect."""

    out: Path
    made: Conversion
    nbytes: int

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"out": str(self.out), "bytes": self.nbytes, **self.made.to_mapping()}


def _blocks(converted: _Converted) -> Iterator[Block]:
    made, size = converted.made, format_size(converted.nbytes)
    ranks = ranks_text([t.rank for t in made.tensors])
    whole = f" and {len(made.whole):,} whole" if made.whole else ""
    what = f"{counted(len(made.tensors), 'tensor')} of rank {ranks}{whole} in {made.dtype}"
    yield Data(f"{converted.out}  {made.dialect}  {what}  {size}")
    if made.error:
        yield f"lost at most {100 * made.error:.3g} % of a change"
