"""`weightsmith adapter combine` and `resize`: several adapters in one, and one with other ranks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli import completing
from weightsmith.cli.adapters.adapter_options import (
    layers_of,
    making_options,
    ranks_text,
    tensors_option,
)
from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.merging.transplant import key_and_value
from weightsmith.cli.options import json_option, quiet_option
from weightsmith.cli.presenting import Block, Data, TextTable, present, show_findings
from weightsmith.cli.progress_lines import open_progress
from weightsmith.cli.standard_streams import STREAMS
from weightsmith.cli.terminal_text import duration, percent
from weightsmith.naming import natural_key
from weightsmith.tensors import format_size

if TYPE_CHECKING:
    from weightsmith.adapters import Adapter, Update
    from weightsmith.engine import Combined
    from weightsmith.findings import Finding


# Those that `adapter combine` has beside the methods of recipes.
_OWN_METHODS = ("cat", "svd", "lego", "magnitude_prune", "core_space")


def numbers(text: str) -> tuple[float, ...]:
    """Read numbers with commas between them: 0.5,0.5."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 0.5,0.5.") from None


@click.command(
    cls=DocumentedCommand,
    short_help="Make one adapter of several.",
    examples=(
        "adapter combine math code --out both --weights 0.7,0.3",
        "adapter combine math code --out both --method ties --parameter density=0.2 --rank 16",
        "adapter combine math code --out both --method dare_ties --space knots",
        "adapter combine math code --out both --method lego --rank 8",
        "adapter combine early late --out mean --method metrics_weighted --parameter 'metric=[2.1, 1.8]'",
    ),
)
@click.argument("adapters", nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where to write it.")
@click.option(
    "--method",
    default="linear",
    show_default=True,
    metavar="METHOD",
    shell_complete=completing.names(completing.methods, *_OWN_METHODS),
    help="linear, task_arithmetic, cat, svd, lego, magnitude_prune, metrics_weighted, knots, core_space, or any of "
    "`weightsmith methods`.",
)
@click.option(
    "--weights",
    type=numbers,
    metavar="W,...",
    help="One number for each adapter; default: 1/N, or 1 for methods that sum.",
)
@click.option(
    "--parameter",
    "parameters",
    multiple=True,
    type=key_and_value,
    metavar="KEY=VALUE",
    help="A parameter of the method, such as density=0.2; [0.2, 0.5] is one value for each adapter. Repeatable.",
)
@click.option(
    "--space",
    type=click.Choice(("dense", "knots", "core")),
    default="dense",
    show_default=True,
    help="What a nonlinear method works on: elements of the changes, or coordinates in their common spaces.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of random masks.")
@making_options
@tensors_option
@json_option
@quiet_option
def combine(
    adapters: tuple[str, ...],
    out: Path,
    method: str,
    weights: tuple[float, ...] | None,
    parameters: tuple[tuple[str, Any], ...],
    space: str,
    seed: int,
    each: bool,
    as_json: bool,
    quiet: bool,
    **making: Any,
) -> int:
    """Make one adapter of ADAPTERS, which are of one base and may have different ranks and dialects.

    What is combined are the changes s B A. The result does not depend on how the products are written. Linear methods
    stay factored and are exact unless a rank, an energy or an error is given. The recipe and the manifest, which
    `verify` and `replay` take, lie beside the weights in a folder, and in the metadata of a single file.
    """
    from weightsmith.engine import combine_adapters

    begun = time.monotonic()
    with open_progress(quiet) as progress:
        made = combine_adapters(
            adapters,
            out,
            method=method,
            weights=weights,
            parameters=dict(parameters),
            space=space,
            seed=seed,
            progress=progress,
            **making,
        )
    _show(made, method, making["base"], begun, each=each, as_json=as_json, quiet=quiet)
    return 0


@click.command(
    cls=DocumentedCommand,
    short_help="Give an adapter other ranks.",
    examples=(
        "adapter resize adapter smaller --rank 8",
        "adapter resize adapter smaller --energy 0.99",
        "adapter resize lora.safetensors smaller.safetensors --error 0.1",
    ),
)
@click.argument("adapter")
@click.argument("out", type=click.Path(path_type=Path))
@making_options
@tensors_option
@json_option
@quiet_option
def resize(
    adapter: str,
    out: Path,
    each: bool,
    as_json: bool,
    quiet: bool,
    **making: Any,
) -> int:
    """Write ADAPTER as OUT with the leading singular directions of each change.

    The best approximation of its rank, found from the factors alone. One of --rank, --energy and --error is needed;
    with several each must hold, but --rank is never exceeded.
    """
    if all(making[bound] is None for bound in ("rank", "energy", "error")):
        raise click.UsageError("Say how much to keep: give --rank, --energy or --error.")
    from weightsmith.engine import resize_adapter

    begun = time.monotonic()
    with open_progress(quiet) as progress:
        made = resize_adapter(adapter, out, progress=progress, **making)
    _show(made, "resize", making["base"], begun, each=each, as_json=as_json, quiet=quiet)
    return 0


@dataclass(frozen=True, slots=True)
class _Made:
    """An adapter that has been made of others, and what each change lost; `each` asks for a row for every tensor."""

    out: Path
    method: str
    adapter: Adapter
    lost: Mapping[str, float]
    findings: Sequence[Finding]
    seconds: float
    each: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the factors."""
        return sum(s.nbytes for u in self.adapter.updates.values() for s in u.sources)

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "out": str(self.out),
            "method": self.method,
            "bytes": self.nbytes,
            "seconds": self.seconds,
            "largest_loss": max(self.lost.values(), default=0.0),
            "tensors": [
                {
                    "tensor": u.target,
                    "component": u.component,
                    "rank": u.rank,
                    "lost": _lost(self.lost, u.key),
                }
                for u in self.adapter.updates.values()
            ],
            "findings": [finding.to_mapping() for finding in self.findings],
        }


def _show(
    made: Combined,
    method: str,
    base: str | None,
    begun: float,
    *,
    each: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Tell ranks and losses of what has been written, under the names by which it was combined."""
    STREAMS.done()
    from weightsmith.adapters import open_adapter, open_model
    from weightsmith.lora import named_by

    model = None if base is None else open_model(base)
    adapter = named_by(model, open_adapter(_adapter_in(made.path)))
    if not (quiet or as_json):
        show_findings(made.findings, to_stderr=True)
    seconds = time.monotonic() - begun
    shown = _Made(made.path, method, adapter, made.lost, made.findings, seconds, each)
    present(shown, _blocks, as_json=as_json)


def _blocks(made: _Made) -> Iterator[Block]:
    yield _by_tensor(made.adapter, made.lost) if made.each else _by_layer(made.adapter, made.lost)
    ranks = ranks_text([u.rank for u in made.adapter.updates.values() if u.rank])
    yield Data(f"{made.out}  {format_size(made.nbytes)}  rank {ranks}  {duration(made.seconds)}")


def _by_tensor(made: Adapter, lost: Mapping[str, float]) -> TextTable:
    updates = sorted(made.updates.values(), key=lambda u: natural_key(u.key))
    rows = [(u.key, str(u.rank or "-"), percent(_lost(lost, u.key))) for u in updates]
    return TextTable("Changes", ("tensor", "rank", "lost by truncation"), rows, frozenset({1, 2}))


def _by_layer(made: Adapter, lost: Mapping[str, float]) -> TextTable:
    """A row for each block, with the largest loss of its tensors, and for each tensor outside of blocks."""
    layers = layers_of([u.key for u in made.updates.values()])
    groups: dict[str, list[Update]] = {}
    for update in sorted(made.updates.values(), key=lambda u: natural_key(u.key)):
        groups.setdefault(layers[update.key], []).append(update)
    rows = [
        (
            place,
            str(len(updates)),
            ranks_text([u.rank for u in updates if u.rank]),
            percent(max(_lost(lost, u.key) for u in updates)),
        )
        for place, updates in groups.items()
    ]
    columns = ("layer", "tensors", "rank", "lost by truncation")
    return TextTable("Changes", columns, rows, frozenset({1, 2, 3}))


def _adapter_in(out: Path) -> Path:
    """The adapter itself: a recorded one of kohya's lies in a folder with its manifest."""
    inner = out / "adapter.safetensors"
    return inner if out.is_dir() and inner.is_file() else out


def _lost(lost: Mapping[str, float], key: str) -> float:
    """The largest share that a tensor lost, over its experts; `key` is the update's, with its component."""
    return max((s for name, s in lost.items() if name.partition("[")[0] == key), default=0.0)
