"""`weightsmith collect`: statistics of a model over data, in one run, as statistics files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.options import device_option, dtype_option, json_option, quiet_option, size
from weightsmith.cli.presenting import Block, Data, present
from weightsmith.cli.progress_lines import open_progress
from weightsmith.cli.standard_streams import STREAMS
from weightsmith.cli.terminal_text import counted
from weightsmith.errors import UsageError
from weightsmith.tensors import format_size

if TYPE_CHECKING:
    from weightsmith.statistics import Collected


@click.command(
    cls=DocumentedCommand,
    examples=(
        "collect fisher expert-low --data corpus.txt --out expert-low.fisher.safetensors",
        "collect fisher,gram,gradients:8 expert-low --data corpus.jsonl --out expert-low.safetensors",
        "collect gram regmean.yaml --data low.txt --data high.txt",
        "collect repair merged --parent first 0.5 --parent second 0.5 --data suite.yaml --out repair.safetensors",
        "collect gram,channels expert-low --data family/suite.validation.yaml --task greek --out gram.safetensors",
    ),
)
@click.argument("what", metavar="WHAT[,WHAT...]")
@click.argument("model", metavar="MODEL")
@click.option(
    "--data",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A text, JSON lines, an arrow file or a folder of them, or a suite; of a recipe one for all models, or each.",
)
@click.option(
    "--task",
    multiple=True,
    help="The task of the suite whose data are read; of a recipe one for all models, or each.",
)
@click.option(
    "--with", "other", metavar="MODEL", help="Of cross: the model that MODEL is compared with."
)
@click.option(
    "--factors",
    is_flag=True,
    help="Of BASE+ADAPTER: gradients of what the adapter stores, by the names in its file.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE.safetensors",
    help="The statistics file; with several WHAT, FILE.WHAT.safetensors for each; none for a recipe, which names them.",
)
@click.option(
    "--estimator",
    metavar="exact|mc:S|empirical",
    help="Labels of a Fisher: all by their probability, S drawn, or the data's; default: exact for few classes, mc:1.",
)
@click.option(
    "--per",
    type=click.Choice(("sequence", "token")),
    default="sequence",
    show_default=True,
    help="Whose gradients a Fisher squares.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Take the first items only.",
)
@click.option(
    "--context", type=click.IntRange(min=1), help="Most tokens of an item; default: the model's."
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of labels that are drawn.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Items at a time where no gradients are taken.",
)
@click.option(
    "--memory",
    type=size,
    default="1GiB",
    show_default=True,
    help="A network that takes more runs block by block.",
)
@click.option(
    "--parent",
    "parents",
    multiple=True,
    nargs=2,
    type=(str, float),
    metavar="MODEL WEIGHT",
    help="Of a repair: a model that MODEL was merged from, and its weight in the mean; once for each.",
)
@device_option
@dtype_option
@json_option
@quiet_option
def collect(
    what: str,
    model: str,
    data: tuple[Path, ...],
    task: tuple[str, ...],
    other: str | None,
    factors: bool,
    out: Path | None,
    estimator: str | None,
    per: str,
    limit: int,
    context: int | None,
    seed: int,
    batch_size: int,
    memory: int,
    parents: tuple[tuple[str, float], ...],
    device: str,
    dtype: str,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run MODEL over data and write what was measured as statistics files, for recipes to name beside it.

    WHAT is fisher, gram, channels, routing, cross (of two models), gradients (gradients:8 with those of 8 items by
    themselves), or several of them, which take one run together; or adam, from a trainer's checkpoint; or repair, what
    method repair makes of a merged model. Where MODEL is a recipe, gram is collected for each of its models over what
    the layers that are merged already give (RegMean++), and goes where the recipe names their statistics. A network
    that does not fit into --memory runs block by block; after Ctrl-C or a kill the same command goes on behind the
    blocks that are finished.
    """
    from weightsmith.recipes import is_recipe_file
    from weightsmith.statistics import collect as collected
    from weightsmith.statistics import collect_through

    shared: dict[str, Any] = {
        "limit": limit,
        "context": context,
        "seed": seed,
        "batch_size": batch_size,
        "memory_bytes": memory,
        "device": device,
    }
    with open_progress(quiet) as progress:
        if is_recipe_file(model):
            chosen = (out, estimator, parents, other, factors, dtype != "float32")
            _require_grams_alone(what, any(chosen))
            tasks = task or None
            found = collect_through(model, data=data, task=tasks, progress=progress, **shared)
        else:
            found = collected(
                what,
                model,
                data=_only(data, "--data"),
                task=_only(task, "--task"),
                other=other,
                factors=factors,
                out=_required(out),
                estimator=estimator,
                per=per,
                parents=dict(parents),
                dtype=dtype,
                progress=progress,
                **shared,
            )
    STREAMS.done()
    present(found, _blocks, as_json=as_json)
    return 0


def _require_grams_alone(what: str, has_others: bool) -> None:
    if what != "gram" or has_others:
        raise UsageError(
            "Through the merge of a recipe only gram is collected, into the files that its models name under "
            "`statistics:`; leave --out, --estimator, --parent, --with, --factors and --dtype out, or merge first and "
            "give the result."
        )


def _only(given: Sequence[Any], option: str) -> Any:
    """What an option was given once, None where it was not."""
    if len(given) > 1:
        raise UsageError(f"{option} is given once for a model; several are for those of a recipe.")
    return given[0] if given else None


def _required(out: Path | None) -> Path:
    if out is None:
        raise UsageError("Say with --out where the statistics go.")
    return out


def _blocks(found: Collected) -> Iterator[Block]:
    for file in found.files:
        what = f"{counted(file.tensors, 'tensor')} of {counted(file.samples, 'sample')}"
        yield Data(f"{file.path}  {file.kind}  {what}  {format_size(file.nbytes)}")
    how = f", {found.estimator} per {found.per}" if found.estimator else ""
    yield f"over {found.data}{how}" + (", block by block" if found.blocks else "")
