"""`weightsmith adapter extract`: the adapter that makes a base into a fine-tune."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from weightsmith.cli.adapters.adapter_options import (
    bound_options,
    peft_dialect_option,
    ranks_text,
    tensors_option,
)
from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.options import Command, force_option, json_option, quiet_option, threads_option
from weightsmith.cli.presenting import Block, Data, TextTable, present, show_findings
from weightsmith.cli.progress_lines import open_progress
from weightsmith.cli.standard_streams import STREAMS
from weightsmith.cli.terminal_text import duration, percent, shape
from weightsmith.naming import natural_key
from weightsmith.tensors import format_size

if TYPE_CHECKING:
    from weightsmith.checkpoints import Checkpoint
    from weightsmith.lora import Dialect, ExtractedTensor, ExtractionReport

_FACTORED = ("replace", "lora", "skip")


def _way(what: str, ways: Sequence[str], default: str, text: str) -> Callable[[Command], Command]:
    """An option for the way in which a kind of tensors is kept."""
    choice = click.Choice(ways)
    return click.option(f"--{what}", type=choice, default=default, show_default=True, help=text)


@click.command(
    cls=DocumentedCommand,
    short_help="Make an adapter of a fine-tune and its base.",
    examples=(
        "adapter extract finetune base adapter --rank 32",
        "adapter extract finetune base adapter --energy 0.9 --dtype bfloat16",
        "adapter extract finetune base adapter --budget 100MB --embeddings lora",
    ),
)
@click.argument("finetune")
@click.argument("base")
@click.argument("out", type=click.Path(path_type=Path))
@bound_options
@click.option(
    "--budget",
    metavar="SHARE|SIZE",
    help="Bytes of all tensors, spent where they gain most: a size as 100MB, or a share of FINETUNE's as 1/16.",
)
@_way(
    "embeddings",
    _FACTORED,
    "replace",
    "Store changed tables whole, factor them, or leave them out.",
)
@_way("heads", _FACTORED, "lora", "The same of output heads.")
@_way("biases", ("add", "skip"), "add", "Store changes of biases, or leave them out.")
@_way("norms", ("replace", "skip"), "replace", "Store changed norms whole, or leave them out.")
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave out tensors with names like this, as '*.position_embeddings'; may be given several times.",
)
@peft_dialect_option
@click.option(
    "--dtype",
    type=click.Choice(("float32", "bfloat16", "float16")),
    default="float32",
    show_default=True,
    help="The type that factors are stored in; errors are measured after rounding to it.",
)
@threads_option
@tensors_option
@json_option
@force_option
@quiet_option
def extract(
    finetune: str,
    base: str,
    out: Path,
    rank: int | None,
    energy: float | None,
    error: float | None,
    budget: str | None,
    dialect: str,
    dtype: str,
    threads: int | None,
    each: bool,
    as_json: bool,
    force: bool,
    quiet: bool,
    exclude: tuple[str, ...],
    **ways: str,
) -> int:
    """Make the adapter OUT, with which BASE comes as near to FINETUNE as is asked.

    One of --rank, --energy, --error and --budget is needed; --rank may limit the others. Matrices are factored by
    singular values of their difference in float64. What is lost is measured on the numbers that are stored, and shown
    by layer.
    """
    from weightsmith.adapters import open_model
    from weightsmith.engine import extract_adapter
    from weightsmith.lora import Choices
    from weightsmith.packages import budget_bytes

    begun = time.monotonic()
    tuned = open_model(finetune)
    dense = sum(tensor.nbytes for tensor in tuned.tensors.values())
    with open_progress(quiet) as progress:
        report = extract_adapter(
            finetune,
            base,
            out,
            rank=rank,
            energy=energy,
            error=error,
            budget_bytes=None if budget is None else budget_bytes(budget, dense),
            choices=Choices(**cast("dict[str, Any]", ways), exclude=exclude),
            dialect=cast("Dialect", dialect),
            dtype=dtype,
            threads=threads,
            force=force,
            progress=progress,
        )
    STREAMS.done()
    made = _Extracted(out, tuned, report, dense, time.monotonic() - begun, each)
    if not (quiet or as_json):
        show_findings(report.findings, to_stderr=True)
    present(made, _blocks, as_json=as_json)
    return 0


@dataclass(frozen=True, slots=True)
class _Extracted:
    """An adapter that has been extracted; `each` asks for a row for every tensor."""

    out: Path
    finetune: Checkpoint
    report: ExtractionReport
    dense_bytes: int
    seconds: float
    each: bool

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        made = {"out": str(self.out), "dense_bytes": self.dense_bytes, "seconds": self.seconds}
        return made | self.report.to_mapping()


def _blocks(made: _Extracted) -> Iterator[Block]:
    yield _by_tensor(made.report) if made.each else _by_layer(made.report, made.finetune)
    yield from _totals(made.report, made.dense_bytes)
    yield Data(f"{made.out}  {duration(made.seconds)}")


def _by_layer(report: ExtractionReport, finetune: Checkpoint) -> TextTable:
    """A row for each block, and for each tensor outside of blocks."""
    groups: dict[str, list[ExtractedTensor]] = {}
    for tensor in report.tensors:
        name = tensor.key.partition("[")[0]
        role = finetune.places.get(name)
        inside = role is not None and role.layer is not None
        place = f"{role.stack}.{role.layer}" if role is not None and inside else name
        groups.setdefault(place, []).append(tensor)
    order = {name: i for i, name in enumerate(finetune.tensors)}
    named = sorted(groups.items(), key=lambda item: order.get(item[1][0].key.partition("[")[0], 0))
    rows = [
        (
            place,
            str(len(found)),
            _ranks(found),
            format_size(sum(t.nbytes for t in found)),
            _lost(found),
        )
        for place, found in named
    ]
    columns = ("layer", "tensors", "rank", "bytes", "lost")
    return TextTable("Changes", columns, rows, frozenset({1, 2, 3, 4}))


def _by_tensor(report: ExtractionReport) -> TextTable:
    rows = [
        (
            tensor.key,
            shape(tensor.shape),
            tensor.treatment.value,
            str(tensor.rank or "-"),
            _signal(tensor),
            format_size(tensor.nbytes),
            _lost([tensor]),
        )
        for tensor in sorted(report.tensors, key=lambda t: natural_key(t.key))
    ]
    columns = ("tensor", "shape", "how", "rank", "signal", "bytes", "lost")
    return TextTable("Changes", columns, rows, frozenset({3, 4, 5, 6}), spare=(4, 1))


def _ranks(tensors: Sequence[ExtractedTensor]) -> str:
    ranks = [t.rank for t in tensors if t.rank]
    return ranks_text(ranks) if ranks else tensors[0].treatment.value


def _signal(tensor: ExtractedTensor) -> str:
    """How many directions stand out of the rounding; `all` where every one that was found does."""
    if not tensor.rank:
        return "-"
    return "all" if tensor.signal is None else str(tensor.signal)


def _lost(tensors: Sequence[ExtractedTensor]) -> str:
    change = math.hypot(*(t.change or 0.0 for t in tensors))
    error = math.hypot(*(t.error or 0.0 for t in tensors))
    if not change:
        return "-"
    return percent(error / change)


def _totals(report: ExtractionReport, dense: int) -> Iterator[str]:
    written = [t for t in report.tensors if t.nbytes]
    yield (
        f"lost     {percent(report.relative)} of the change: {report.error:.4g} of {report.change:.4g} "
        "(Frobenius norms)"
    )
    yield (
        f"size     {format_size(report.nbytes)} in {len(written)} of {len(report.tensors)} changed tensors, "
        f"{100 * report.nbytes / dense:.3g} % of the fine-tune"
    )
    if report.left_out:
        shown = ", ".join(t.key for t in report.left_out[:3])
        more = f" and {len(report.left_out) - 3} more" if len(report.left_out) > 3 else ""
        yield f"left out {shown}{more}"
    if report.unchanged:
        yield f"the same {report.unchanged} tensors"
