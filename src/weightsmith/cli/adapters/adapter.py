"""`weightsmith adapter`: adapters merged, combined, converted, resized, looked at and extracted."""

from __future__ import annotations

import click

from weightsmith.cli.adapters.adapter_basis import basis
from weightsmith.cli.adapters.adapter_combine import combine, resize
from weightsmith.cli.adapters.adapter_convert import convert
from weightsmith.cli.adapters.adapter_extract import extract
from weightsmith.cli.adapters.adapter_inspect import inspect
from weightsmith.cli.adapters.adapter_merge import merge
from weightsmith.cli.documented import DocumentedGroup


@click.group(
    cls=DocumentedGroup,
    examples=(
        "adapter extract finetune base adapter --energy 0.9",
        "adapter combine math code --out both --method ties",
        "adapter convert adapter adapter.safetensors --to kohya --base base",
    ),
)
def adapter() -> None:
    """Combine, convert, resize, look at and extract adapters.

    Read are the dialects of PEFT, kohya, diffusers and LyCORIS; written are PEFT's, kohya's and diffusers'. Sums and
    truncations are made of the changes B A and never of the factors apart. BASE+ADAPTER is a model wherever one may
    stand: in recipes, `inspect`, `diff` and `evaluate`.
    """


for _command in (merge, extract, combine, convert, resize, inspect, basis):
    adapter.add_command(_command)
