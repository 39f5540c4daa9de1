"""`weightsmith adapter combine` and `resize`: several adapters in one, and one with other ranks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli.adapter_options import (
    base_option,
    bound_options,
    dialect_of,
    dialect_option,
    dtype_option,
    force_option,
    opened_base,
    quiet_option,
    ranks_text,
    write,
)
from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.options import json_option
from weightsmith.cli.output import (
    Table,
    findings_json,
    show_findings,
    show_json,
    show_line,
    show_table,
)
from weightsmith.cli.progress import open_progress
from weightsmith.cli.text import duration
from weightsmith.cli.transplant import key_and_value
from weightsmith.tensors.sizes import format_size

if TYPE_CHECKING:
    from weightsmith.adapters.adapter import Adapter
    from weightsmith.adapters.bounds import Bound
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
    ),
)
@click.argument("adapters", nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where to write it.")
@click.option(
    "--method",
    default="linear",
    show_default=True,
    metavar="METHOD",
    help="linear, task_arithmetic, cat, svd, lego, magnitude_prune, knots, core_space, or any method of `methods`.",
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
    help="A parameter of the method, such as density=0.2; repeatable.",
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
    as_json: bool,
    force: bool,
    quiet: bool,
) -> int:
    """Make one adapter of ADAPTERS, which are of one base and may have different ranks and dialects.

    What is combined are the changes s B A. The result does not depend on how the products are written. Linear methods
    stay factored and are exact unless a rank, an energy or an error is given. A method of recipes in the dense space
    gives a folder with a recipe and a manifest, which `verify` and `replay` take.
    """
    from weightsmith.adapters.bounds import Bound
    from weightsmith.adapters.reading import open_adapter
    from weightsmith.adapters.storing import SUFFIX
    from weightsmith.adapters.writing import check_output

    opened = [open_adapter(path) for path in adapters]
    to = dialect_of(opened[0], dialect)
    bound = Bound(rank, energy, error)
    asked = _Asked(adapters, method, weights, dict(parameters), space, seed, bound, base)
    begun = time.monotonic()
    if asked.is_recipe and out.suffix != SUFFIX:
        findings: Sequence[Finding] = ()
        lost = _recorded(asked, out, to, dtype, force=force, quiet=quiet)
    else:
        place = check_output(out, to, force=force)
        lost, findings = _written(asked, opened, place, to, dtype, force=force)
    _show(out, method, lost, findings, begun, as_json=as_json, quiet=quiet)
    return 0


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is to be combined, and how."""

    adapters: tuple[str, ...]
    method: str
    weights: tuple[float, ...] | None
    parameters: dict[str, Any]
    space: str
    seed: int
    bound: Bound
    base: str | None

    @property
    def is_recipe(self) -> bool:
        """Whether a recipe can say it, so that the result has a manifest and can be replayed."""
        from weightsmith.methods import registry

        return self.space == "dense" and self.method in registry.names()


def _recorded(
    asked: _Asked, out: Path, to: Dialect, dtype: str | None, *, force: bool, quiet: bool
) -> Mapping[str, float]:
    """Combine as a recipe, and return the shares that were lost by key."""
    from weightsmith.engine.adapter_run import combine_adapters

    parameters, weights = asked.parameters, asked.weights
    if asked.method == "linear":
        # As for adapters everywhere: what is asked for is a sum, not an average.
        parameters = {"normalize": False, **parameters}
        weights = weights or (1.0 / len(asked.adapters),) * len(asked.adapters)
    with open_progress(quiet) as progress:
        manifest = combine_adapters(
            asked.adapters,
            out,
            method=asked.method,
            weights=weights or (),
            parameters=parameters,
            base=asked.base,
            rank=asked.bound.rank,
            energy=asked.bound.energy,
            error=asked.bound.error,
            dialect=to,
            dtype=dtype,
            seed=asked.seed,
            force=force,
            progress=progress,
        )
    return manifest.lost


def _written(
    asked: _Asked,
    opened: Sequence[Adapter],
    out: Path,
    to: Dialect,
    dtype: str | None,
    *,
    force: bool,
) -> tuple[Mapping[str, float], Sequence[Finding]]:
    """Combine in memory, and return the shares that were lost by key."""
    from weightsmith.adapters.as_changes import load_changes
    from weightsmith.adapters.lego import Lego
    from weightsmith.engine.adapter_combination import combine_loaded
    from weightsmith.recipes.sections import distinct_labels

    base, is_lego = opened_base(asked.base), asked.method == "lego"
    # The rank of LEGO is the number of its clusters.
    combined, report = combine_loaded(
        [load_changes(adapter, base) for adapter in opened],
        asked.method,
        asked.weights,
        space=asked.space,
        parameters=asked.parameters,
        seed=asked.seed,
        bound=None if asked.bound.is_open or is_lego else asked.bound,
        lego=Lego(rank=asked.bound.rank) if is_lego else None,
        base=base,
        # As a recipe labels its models, so that random masks are the same.
        labels=distinct_labels([adapter.name for adapter in opened]),
    )
    write(combined, out, to, base, dtype=dtype, force=force)
    return {t.key: t.lost for t in report.tensors}, report.findings


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

    begun = time.monotonic()
    bound = Bound(rank, energy, error)
    if bound.is_open:
        raise click.UsageError("Say how much to keep: give --rank, --energy or --error.")
    opened = open_adapter(adapter)
    to = dialect_of(opened, dialect)
    place = check_output(out, to, force=force)
    model = opened_base(base)
    resized, report = combine(
        [load_changes(opened, model)], "linear", [1.0], bound=bound, base=model, labels=[adapter]
    )
    write(resized, place, to, model, dtype=dtype, force=force)
    lost = {t.key: t.lost for t in report.tensors}
    _show(out, "resize", lost, report.findings, begun, as_json=as_json, quiet=quiet)
    return 0


def _show(
    out: Path,
    method: str,
    lost: Mapping[str, float],
    findings: Sequence[Finding],
    begun: float,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Tell ranks and losses of what has been written."""
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
    rows = [
        (u.target, str(u.rank or "-"), f"{100 * _lost(lost, u.target):.3g} %")
        for u in made.updates.values()
    ]
    show_table(Table("Changes", ("tensor", "rank", "lost by truncation"), rows, frozenset({1, 2})))
    if not quiet:
        show_findings(findings, to_stderr=True)
    ranks = ranks_text([u.rank for u in made.updates.values() if u.rank])
    show_line(f"{out}  {format_size(nbytes)}  rank {ranks}  {duration(time.monotonic() - begun)}")


def _adapter_in(out: Path) -> Path:
    """The adapter itself: a recorded one of kohya's lies in a folder with its manifest."""
    inner = out / "adapter.safetensors"
    return inner if out.is_dir() and inner.is_file() else out


def _lost(lost: Mapping[str, float], target: str) -> float:
    """The largest share that a tensor lost, over its experts."""
    return max((s for key, s in lost.items() if key.partition("[")[0] == target), default=0.0)
