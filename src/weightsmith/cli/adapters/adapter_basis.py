"""`weightsmith adapter basis`: several adapters as one basis from which each is rebuilt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from weightsmith.cli import completing
from weightsmith.cli.adapters.adapter_options import (
    base_option,
    bytes_of,
    dtype_option,
    opened_base,
    peft_dialect_option,
    write,
)
from weightsmith.cli.documented import DocumentedCommand, DocumentedGroup
from weightsmith.cli.options import force_option, json_option
from weightsmith.cli.presenting import Block, Data, TextTable, present
from weightsmith.cli.standard_streams import STREAMS
from weightsmith.cli.terminal_text import counted
from weightsmith.tensors import format_size

if TYPE_CHECKING:
    from weightsmith.lora import ReversibleBasis

_BASIS = click.argument("file", metavar="BASIS", type=click.Path(path_type=Path))


@click.group(
    cls=DocumentedGroup,
    short_help="Keep several adapters as one basis.",
    examples=(
        "adapter basis create math code chat basis.safetensors --directions 1",
        "adapter basis extract basis.safetensors math math-again",
    ),
)
def basis() -> None:
    """Keep several adapters as one basis from which each is rebuilt (Reversible Model Merging).

    For every tensor a mean and a few directions of the adapters' factors are stored, and a few numbers for each
    adapter. With one direction less than there are adapters each comes back exactly.
    """


@basis.command(
    cls=DocumentedCommand,
    short_help="Make a basis of adapters.",
    examples=(
        "adapter basis create math code chat basis.safetensors --directions 1",
        "adapter basis create math code chat basis.safetensors --error 0.1",
    ),
)
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER...")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--directions",
    type=click.IntRange(min=0),
    metavar="P",
    help="Directions kept of every tensor; default: all, which is exact.",
)
@click.option(
    "--error",
    type=float,
    metavar="E",
    help="As few directions as rebuild every change within this share of its norm.",
)
@click.option(
    "--form",
    type=click.Choice(("whole", "per_position")),
    default="whole",
    show_default=True,
    help="One basis for a tensor, or one for each row and column of its factors (the paper's).",
)
@base_option
@json_option
@force_option
def create(
    adapters: tuple[str, ...],
    out: Path,
    directions: int | None,
    error: float | None,
    form: Literal["whole", "per_position"],
    base: str | None,
    as_json: bool,
    force: bool,
) -> int:
    """Write the basis of every ADAPTER, all of one base, to the .safetensors file OUT.

    They are called by the names of their folders or files. Ratio and errors are those before the numbers are rounded
    to the adapters' type.
    """
    from weightsmith.adapters import open_adapter
    from weightsmith.engine import inputs_of
    from weightsmith.lora import check_basis, load_changes, reversible_basis, write_basis

    model = opened_base(base)
    opened = [open_adapter(path) for path in adapters]
    reads = inputs_of(opened, model)
    check_basis(out, force=force, reads=reads)
    made = reversible_basis(
        [load_changes(adapter, model) for adapter in opened],
        [adapter.path.stem if adapter.path.is_file() else adapter.name for adapter in opened],
        directions=directions,
        error=error,
        form=form,
    )
    write_basis(made, out, force=force, reads=reads)
    STREAMS.done()
    stored = sum(s.nbytes for a in opened for u in a.updates.values() for s in u.sources)
    present(_Created(out, made, bytes_of(out), stored), _created_blocks, as_json=as_json)
    return 0


@dataclass(frozen=True, slots=True)
class _Created:
    """A basis that has been written, in the place of adapters of `adapter_bytes`."""

    out: Path
    basis: ReversibleBasis
    nbytes: int
    adapter_bytes: int

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "out": str(self.out),
            "bytes": self.nbytes,
            "adapter_bytes": self.adapter_bytes,
            "labels": list(self.basis.labels),
            "tensors": [
                {
                    "tensor": t.key,
                    "directions": t.directions,
                    "ratio": t.ratio,
                    "expected_error": t.expected,
                    "errors": list(t.errors),
                }
                for t in self.basis.report
            ],
        }


def _created_blocks(made: _Created) -> Iterator[Block]:
    rows = [
        (t.key, str(t.directions), f"{t.ratio:.2f}", f"{100 * max(t.errors):.3g} %")
        for t in made.basis.report
    ]
    columns = ("tensor", "directions", "ratio", "largest error")
    yield TextTable("Bases", columns, rows, frozenset({1, 2, 3}))
    adapters = f"{format_size(made.adapter_bytes)} of {counted(len(made.basis.labels), 'adapter')}"
    yield Data(f"{made.out}  {format_size(made.nbytes)} for {adapters}")


@basis.command(
    cls=DocumentedCommand,
    short_help="Show what a basis holds.",
    examples=("adapter basis show basis.safetensors",),
)
@_BASIS
@json_option
def show(file: Path, as_json: bool) -> int:
    """Show the adapters of BASIS and its size."""
    present(_Held(_opened(file), bytes_of(file)), _held_blocks, as_json=as_json)
    return 0


@dataclass(frozen=True, slots=True)
class _Held:
    """What a basis holds."""

    basis: ReversibleBasis
    nbytes: int

    @property
    def numbers(self) -> int:
        """How many are stored."""
        return sum(tensor.numbers for tensor in self.basis.tensors.values())

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        made = self.basis
        return {
            "labels": list(made.labels),
            "form": made.form,
            "base": made.base_reference,
            "dtype": str(made.dtype),
            "numbers": self.numbers,
            "bytes": self.nbytes,
            "tensors": {key: t.directions.shape[1] for key, t in made.tensors.items()},
        }


def _held_blocks(held: _Held) -> Iterator[Block]:
    made = held.basis
    rows = [(label, str(number)) for number, label in enumerate(made.labels, start=1)]
    yield TextTable("Adapters", ("adapter", "number"), rows, frozenset({1}))
    yield f"base     {made.base_reference or 'not named'}"
    yield f"form     {made.form}, {counted(len(made.tensors), 'tensor')}"
    yield f"size     {held.numbers:,} numbers in {made.dtype}, {format_size(held.nbytes)}"


@basis.command(
    cls=DocumentedCommand,
    short_help="Write one adapter of a basis.",
    examples=("adapter basis extract basis.safetensors math math-again",),
)
@_BASIS
@click.argument("name", shell_complete=completing.adapters)
@click.argument("out", type=click.Path(path_type=Path))
@base_option
@peft_dialect_option
@dtype_option
@json_option
@force_option
def extract(
    file: Path,
    name: str,
    out: Path,
    base: str | None,
    dialect: Literal["peft", "kohya", "diffusers"],
    dtype: str | None,
    as_json: bool,
    force: bool,
) -> int:
    """Write the adapter NAME (its label, or its number from 1) of BASIS as OUT."""
    from weightsmith.lora import check_output

    model = opened_base(base)
    reads = (file, *(() if model is None else model.inputs))
    place = check_output(out, dialect, force=force, reads=reads)
    made = _opened(file).recovered(name)
    write(made, place, dialect, model, dtype=dtype, force=force, reads=reads)
    STREAMS.done()
    written = _Extracted(out, name, dialect, bytes_of(place))
    present(written, _extracted_blocks, as_json=as_json)
    return 0


@dataclass(frozen=True, slots=True)
class _Extracted:
    """An adapter that has been rebuilt from a basis."""

    out: Path
    adapter: str
    dialect: str
    nbytes: int

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "out": str(self.out),
            "adapter": self.adapter,
            "dialect": self.dialect,
            "bytes": self.nbytes,
        }


def _extracted_blocks(written: _Extracted) -> Iterator[Block]:
    yield Data(f"{written.out}  {format_size(written.nbytes)}")


def _opened(file: Path) -> ReversibleBasis:
    from weightsmith.lora import open_basis

    return open_basis(file)
