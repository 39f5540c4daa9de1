"""Options that several commands for adapters share, and the ways they open and write adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weightsmith.cli.options import Command, force_option

if TYPE_CHECKING:
    from weightsmith.checkpoints import Checkpoint
    from weightsmith.lora import Dialect, LowRankAdapter
    from weightsmith.tensors import DType

tensors_option = click.option(
    "--tensors", "each", is_flag=True, help="Show every tensor instead of layers."
)
base_option = click.option(
    "--base",
    metavar="BASE",
    help="The model that the adapter is for; needed where whole tensors change, for DoRA and for flat names.",
)
dialect_option = click.option(
    "--to",
    "dialect",
    type=click.Choice(("peft", "kohya", "diffusers")),
    help="The format of OUT; default: that of the input.",
)
peft_dialect_option = click.option(
    "--to",
    "dialect",
    type=click.Choice(("peft", "kohya", "diffusers")),
    default="peft",
    show_default=True,
    help="The format of OUT.",
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(("float32", "bfloat16", "float16")),
    help="The type that factors are stored in; default: that of the input.",
)


def bound_options(command: Command) -> Command:
    """Add --rank, --energy and --error."""
    for option in (
        click.option(
            "--error",
            type=float,
            metavar="E",
            help="As few directions as lose at most this share of the change's norm.",
        ),
        click.option(
            "--energy",
            type=float,
            metavar="T",
            help="As few directions as hold this share of the change's square.",
        ),
        click.option(
            "--rank", type=click.IntRange(min=1), metavar="N", help="At most N directions."
        ),
    ):
        command = option(command)
    return command


def making_options(command: Command) -> Command:
    """Add what `engine.combine_adapters` and `resize_adapter` take: the bounds, --base, --to, --dtype and --force."""
    for option in (force_option, dtype_option, dialect_option, base_option):
        command = option(command)
    return bound_options(command)


def opened_base(base: str | None) -> Checkpoint | None:
    """The model of --base, if it is given."""
    from weightsmith.adapters import open_model

    return None if base is None else open_model(base)


def dtype_of(name: str | None, default: DType) -> DType:
    """The type of --dtype."""
    from weightsmith.tensors import DType as DTypes

    return default if name is None else DTypes.parse(name)


def write(
    adapter: LowRankAdapter,
    out: Path,
    dialect: Dialect,
    base: Checkpoint | None,
    *,
    dtype: str | None,
    force: bool,
    reads: Sequence[Path],
) -> None:
    """Write an adapter, with factors in the type of --dtype; `reads` is what it was made from."""
    from dataclasses import replace

    from weightsmith.lora import write_adapter

    typed = replace(adapter, dtype=dtype_of(dtype, adapter.dtype))
    write_adapter(typed, out, dialect, base=base, force=force, reads=reads)


def bytes_of(out: Path) -> int:
    """The size of an adapter's file of tensors."""
    files = sorted(out.glob("*.safetensors")) if out.is_dir() else [out]
    return sum(file.stat().st_size for file in files)


def layers_of(names: Sequence[str]) -> dict[str, str]:
    """For each tensor its block as `model.layers.3`, or itself where it lies in none."""
    from weightsmith.checkpoints import find_stacks, place

    stacks = find_stacks(dict.fromkeys(names, ()))
    places = {name: place(name, stacks) for name in names}
    return {
        name: name if prefix is None else f"{prefix}.{layer}"
        for name, (prefix, layer) in places.items()
    }


def ranks_text(ranks: list[int]) -> str:
    """Ranks as `8` or `2 to 8`, and `-` for none."""
    if not ranks:
        return "-"
    low, high = min(ranks), max(ranks)
    return str(low) if low == high else f"{low} to {high}"
