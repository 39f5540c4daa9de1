"""`weightsmith adapter inspect`: what an adapter changes, how strongly and in how many directions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from weightsmith.cli.adapters.adapter_options import ranks_text
from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.options import json_option
from weightsmith.cli.presenting import Block, TextTable, present
from weightsmith.cli.terminal_text import counted, percent, shape
from weightsmith.naming import natural_key
from weightsmith.tensors import format_size

if TYPE_CHECKING:
    from weightsmith.lora import AdapterFacts, TensorFacts

_COLUMNS = (
    "tensor",
    "shape",
    "form",
    "rank",
    "scale",
    "norm",
    "share",
    "directions",
    "effective",
)
_NUMBERS = range(3, 9)
_SPARE = ("effective", "directions", "shape")
_SHOWN_BELOW = tuple(_COLUMNS.index(name) for name in ("form", "scale"))


@click.command(
    cls=DocumentedCommand,
    short_help="Show what an adapter changes.",
    examples=("adapter inspect adapter", "adapter inspect lora.safetensors --base base --json"),
)
@click.argument("adapter")
@click.option(
    "--base", metavar="BASE", help="The model that it is for: changes beside its weights."
)
@click.option(
    "--component", metavar="NAME", help="The part of a pipeline that BASE is, such as unet."
)
@json_option
def inspect(adapter: str, base: str | None, component: str | None, as_json: bool) -> int:
    """Show form, rank, scale and size of every change of ADAPTER, and over how many directions it is spread.

    `norm` is the Frobenius norm of the change with its scale, `share` the same of the base's tensor; `directions` are
    its singular values above 0.001 of the largest, `effective` is the exponential of the entropy of all of them.
    """
    from weightsmith.engine import inspect_adapter

    facts = inspect_adapter(adapter, base, component=component)
    present(facts, _blocks, as_json=as_json)
    return 0


def _blocks(facts: AdapterFacts) -> Iterator[Block]:
    yield _table(facts)
    yield f"format   {facts.dialect}"
    yield f"base     {facts.base_reference or 'not named'}"
    forms = ", ".join(
        f"{counted(count, 'tensor')} {form if form == 'replaced' else f'of {form}'}"
        for form, count in facts.forms.items()
    )
    yield f"forms    {forms}{', with magnitudes (DoRA)' if facts.is_dora else ''}"
    yield f"rank     {ranks_text(list(facts.ranks)) if facts.ranks else 'none'}"
    scales = sorted({tensor.scale for tensor in facts.tensors})
    ends = dict.fromkeys(scales[:1] + scales[-1:])
    yield f"scale    {' to '.join(f'{scale:.4g}' for scale in ends)}"
    yield f"size     {facts.parameters:,} numbers, {format_size(facts.nbytes)}"
    is_known = any(tensor.norm is not None for tensor in facts.tensors)
    yield f"norm     {f'{facts.norm:.4g}' if is_known else 'known with --base'}"
    if facts.unsaved:
        yield f"unsaved  {', '.join(facts.unsaved)}: among `modules_to_save`, without tensors"


def _table(facts: AdapterFacts) -> TextTable:
    """A row for each tensor; what is the same for all of them stands below, and not in every row."""
    tensors = sorted(facts.tensors, key=lambda t: natural_key(t.target))
    rows = [_row(tensor) for tensor in tensors]
    same = {i for i in _SHOWN_BELOW if len({row[i] for row in rows}) == 1}
    kept = [i for i in range(len(_COLUMNS)) if i not in same]
    right = frozenset(place for place, i in enumerate(kept) if i in _NUMBERS)
    heads = [_COLUMNS[i] for i in kept]
    spare = tuple(heads.index(name) for name in _SPARE)
    return TextTable("Changes", heads, [[r[i] for i in kept] for r in rows], right, spare)


def _row(tensor: TensorFacts) -> tuple[str, ...]:
    name = tensor.target if tensor.component is None else f"{tensor.component}: {tensor.target}"
    spread = (
        (str(tensor.directions), f"{tensor.effective_rank:.1f}") if tensor.values else ("-", "-")
    )
    return (
        name,
        "-" if tensor.shape is None else shape(tensor.shape),
        tensor.form.value + (" (DoRA)" if tensor.is_dora else ""),
        str(tensor.rank or "-"),
        f"{tensor.scale:.4g}",
        "-" if tensor.norm is None else f"{tensor.norm:.4g}",
        "-" if tensor.share is None else percent(tensor.share),
        *spread,
    )
