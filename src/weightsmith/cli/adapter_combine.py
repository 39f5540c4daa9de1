"""`weightsmith adapter combine` and `resize`: several adapters in one, and one with other ranks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from weightsmith.cli.adapter_options import (
    base_option,
    bound_options,
    dialect_option,
    dtype_option,
    force_option,
    layers_of,
    opened_base,
    ranks_text,
    tensors_option,
    write,
)
from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.options import json_option, quiet_option
from weightsmith.cli.output import (
    Table,
    findings_json,
    show_findings,
    show_json,
    show_line,
    show_table,
)
from weightsmith.cli.progress import open_progress
from weightsmith.cli.streams import STREAMS
from weightsmith.cli.text import duration, percent
from weightsmith.cli.transplant import key_and_value
from weightsmith.naming import natural_key
from weightsmith.tensors.sizes import format_size

if TYPE_CHECKING:
    from weightsmith.adapters.adapter import Adapter, Update
    from weightsmith.adapters.writing import Dialect
    from weightsmith.findings import Finding


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
@bound_options
@base_option
@dialect_option
@dtype_option
@tensors_option
@json_option
@force_option
@quiet_option
def combine(
    adapters: tuple[str, ...],
    out: Path,
    method: str,
    weights: tuple[float, ...] | None,
    parameters: tuple[tuple[str, Any], ...],
    space: str,
    seed: int,
    rank: int | None,
    energy: float | None,
    error: float | None,
    base: str | None,
    dialect: str | None,
    dtype: str | None,
    each: bool,
    as_json: bool,
    force: bool,
    quiet: bool,
) -> int:
    """Make one adapter of ADAPTERS, which are of one base and may have different ranks and dialects.

    What is combined are the changes s B A. The result does not depend on how the products are written. Linear methods
    stay factored and are exact unless a rank, an energy or an error is given. A method of recipes in the dense space
    gives a folder with a recipe and a manifest, which `verify` and `replay` take.
    """
    from weightsmith.engine.adapter_api import combine_adapters

    begun = time.monotonic()
    with open_progress(quiet) as progress:
        made = combine_adapters(
            adapters,
            out,
            method=method,
            weights=weights,
            parameters=dict(parameters),
            space=space,
            rank=rank,
            energy=energy,
            error=error,
            base=base,
            dialect=cast("Dialect | None", dialect),
            dtype=dtype,
            seed=seed,
            force=force,
            progress=progress,
        )
    _show(out, method, made.lost, made.findings, begun, each=each, as_json=as_json, quiet=quiet)
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
@bound_options
@base_option
@dialect_option
@dtype_option
@tensors_option
@json_option
@force_option
@quiet_option
def resize(
    adapter: str,
    out: Path,
    rank: int | None,
    energy: float | None,
    error: float | None,
    base: str | None,
    dialect: str | None,
    dtype: str | None,
    each: bool,
    as_json: bool,
    force: bool,
    quiet: bool,
) -> int:
    """Write ADAPTER as OUT with the leading singular directions of each change.

    The best approximation of its rank, found from the factors alone. One of --rank, --energy and --error is needed;
    with several each must hold, but --rank is never exceeded.
    """
    from weightsmith.adapters.as_changes import load_changes
    from weightsmith.adapters.bounds import Bound
    from weightsmith.adapters.combining import combine
    from weightsmith.adapters.reading import open_adapter
    from weightsmith.adapters.writing import check_output
    from weightsmith.engine.adapter_api import dialect_for, inputs_of

    begun = time.monotonic()
    bound = Bound(rank, energy, error)
    if bound.is_open:
        raise click.UsageError("Say how much to keep: give --rank, --energy or --error.")
    opened = open_adapter(adapter)
    to = dialect_for(opened, cast("Dialect | None", dialect))
    model = opened_base(base)
    reads = inputs_of([opened], model)
    place = check_output(out, to, force=force, reads=reads)
    resized, report = combine(
        [load_changes(opened, model)], "linear", [1.0], bound=bound, base=model, labels=[adapter]
    )
    write(resized, place, to, model, dtype=dtype, force=force, reads=reads)
    lost = {t.key: t.lost for t in report.tensors}
    _show(out, "resize", lost, report.findings, begun, each=each, as_json=as_json, quiet=quiet)
    return 0


def _show(
    out: Path,
    method: str,
    lost: Mapping[str, float],
    findings: Sequence[Finding],
    begun: float,
    *,
    each: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Tell ranks and losses of what has been written."""
    STREAMS.done()
    from weightsmith.adapters.reading import open_adapter

    made = open_adapter(_adapter_in(out))
    nbytes = sum(source.nbytes for u in made.updates.values() for source in u.sources)
    largest = max(lost.values(), default=0.0)
    if as_json:
        tensors = [
            {"tensor": u.target, "rank": u.rank, "lost": _lost(lost, u.target)}
            for u in made.updates.values()
        ]
        facts = {
            "schema": 1,
            "out": str(out),
            "method": method,
            "bytes": nbytes,
            "largest_loss": largest,
        }
        show_json({**facts, "tensors": tensors, "findings": findings_json(findings)})
        return
    show_table(_by_tensor(made, lost) if each else _by_layer(made, lost))
    if not quiet:
        show_findings(findings, to_stderr=True)
    ranks = ranks_text([u.rank for u in made.updates.values() if u.rank])
    show_line(f"{out}  {format_size(nbytes)}  rank {ranks}  {duration(time.monotonic() - begun)}")


def _by_tensor(made: Adapter, lost: Mapping[str, float]) -> Table:
    updates = sorted(made.updates.values(), key=lambda u: natural_key(u.target))
    rows = [(u.target, str(u.rank or "-"), percent(_lost(lost, u.target))) for u in updates]
    return Table("Changes", ("tensor", "rank", "lost by truncation"), rows, frozenset({1, 2}))


def _by_layer(made: Adapter, lost: Mapping[str, float]) -> Table:
    """A row for each block, with the largest loss of its tensors, and for each tensor outside of blocks."""
    layers = layers_of([u.target for u in made.updates.values()])
    groups: dict[str, list[Update]] = {}
    for update in sorted(made.updates.values(), key=lambda u: natural_key(u.target)):
        groups.setdefault(layers[update.target], []).append(update)
    rows = [
        (
            place,
            str(len(updates)),
            ranks_text([u.rank for u in updates if u.rank]),
            percent(max(_lost(lost, u.target) for u in updates)),
        )
        for place, updates in groups.items()
    ]
    columns = ("layer", "tensors", "rank", "lost by truncation")
    return Table("Changes", columns, rows, frozenset({1, 2, 3}))


def _adapter_in(out: Path) -> Path:
    """The adapter itself: a recorded one of kohya's lies in a folder with its manifest."""
    inner = out / "adapter.safetensors"
    return inner if out.is_dir() and inner.is_file() else out


def _lost(lost: Mapping[str, float], target: str) -> float:
    """The largest share that a tensor lost, over its experts."""
    return max((s for key, s in lost.items() if key.partition("[")[0] == target), default=0.0)
