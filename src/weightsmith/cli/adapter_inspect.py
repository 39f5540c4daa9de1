"""`weightsmith adapter inspect`: what an adapter changes, how strongly and in how many directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli.adapter_options import opened_base, ranks_text
from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.options import json_option
from weightsmith.cli.output import Table, show_json, show_line, show_table
from weightsmith.cli.text import counted, percent, shape
from weightsmith.naming import natural_key
from weightsmith.tensors.sizes import format_size

if TYPE_CHECKING:
    from weightsmith.adapters.facts import AdapterFacts, TensorFacts

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
_TOLD_BELOW = tuple(_COLUMNS.index(name) for name in ("form", "scale"))


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
    from weightsmith.adapters.facts import inspect_adapter

    facts = inspect_adapter(adapter, opened_base(base), component=component)
    if as_json:
        show_json(_content(facts))
        return 0
    show_table(_table(facts))
    show_line(f"dialect  {facts.dialect}")
    show_line(f"base     {facts.base_reference or 'not named'}")
    forms = ", ".join(
        f"{counted(count, 'tensor')} {form if form == 'replaced' else f'of {form}'}"
        for form, count in facts.forms.items()
    )
    show_line(f"forms    {forms}{', with magnitudes (DoRA)' if facts.is_dora else ''}")
    show_line(f"rank     {ranks_text(list(facts.ranks)) if facts.ranks else 'none'}")
    scales = sorted({tensor.scale for tensor in facts.tensors})
    show_line(
        f"scale    {' to '.join(f'{scale:.4g}' for scale in dict.fromkeys(scales[:1] + scales[-1:]))}"
    )
    show_line(f"size     {facts.parameters:,} numbers, {format_size(facts.nbytes)}")
    show_line(f"norm     {facts.norm:.4g}")
    return 0


def _table(facts: AdapterFacts) -> Table:
    """A row for each tensor; what is the same for all of them stands below, and not in every row."""
    tensors = sorted(facts.tensors, key=lambda t: natural_key(t.target))
    rows = [_row(tensor) for tensor in tensors]
    same = {i for i in _TOLD_BELOW if len({row[i] for row in rows}) == 1}
    kept = [i for i in range(len(_COLUMNS)) if i not in same]
    right = frozenset(place for place, i in enumerate(kept) if i in _NUMBERS)
    return Table(
        "Changes", [_COLUMNS[i] for i in kept], [[r[i] for i in kept] for r in rows], right
    )


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


def _content(facts: AdapterFacts) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": facts.name,
        "dialect": facts.dialect,
        "base": facts.base_reference,
        "parameters": facts.parameters,
        "bytes": facts.nbytes,
        "norm": facts.norm,
        "ranks": list(facts.ranks),
        "forms": facts.forms,
        "tensors": [
            {
                "tensor": t.target,
                "component": t.component,
                "form": t.form.value,
                "shape": None if t.shape is None else list(t.shape),
                "dtypes": [str(dtype) for dtype in t.dtypes],
                "bytes": t.nbytes,
                "rank": t.rank,
                "alpha": t.alpha,
                "scale": t.scale,
                "dora": t.is_dora,
                "norm": t.norm,
                "share": t.share,
                "directions": t.directions,
                "effective_rank": t.effective_rank,
                "singular_values": list(t.values),
            }
            for t in facts.tensors
        ],
    }
