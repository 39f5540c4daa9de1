"""`weightsmith plan`: what a merge will read, compute and write."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.options import (
    Machine,
    json_option,
    machine_options,
    overrides_option,
    values_option,
)
from weightsmith.cli.presenting import Block, FindingsBlock, TextTable, present
from weightsmith.cli.terminal_text import counted, duration, shape
from weightsmith.cli.vocabulary_options import vocabulary_blocks
from weightsmith.tensors import collection_paused, format_size, start_blas_on_one_thread

if TYPE_CHECKING:
    from weightsmith.engine import Plan
    from weightsmith.inspection import Explanation, PlanSummary

# Free numbers that are shown; JSON has all of them.
_MOST_NUMBERS = 40


@click.command(
    cls=DocumentedCommand,
    examples=(
        "plan ties.yaml",
        "plan ties.yaml --set parameters.density=0.3",
        "plan free.yaml --values start",
        "plan ties.yaml --explain model.norm.weight",
    ),
)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--explain", metavar="TENSOR", help="Print the formula of one output tensor with its numbers."
)
@json_option
@overrides_option
@values_option
@machine_options
def plan(
    recipe: Path,
    explain: str | None,
    as_json: bool,
    overrides: tuple[str, ...],
    values: str | None,
    **machine: Any,
) -> int:
    """Show what merging RECIPE will read, compute and write.

    Lists free numbers by name, for whose starting values the rest is, unless --values gives others. Lists every finding
    with its fix; --explain leaves out notes. Where a rule makes rows of missing tokens, its error is measured on tokens
    that are known. The exit code is 1 if one of the findings is an error.
    """
    made = planned(recipe, overrides, Machine(**machine), values=values)
    if explain is not None:
        from weightsmith.inspection import explain_tensor

        present(explain_tensor(made, explain), _explained, as_json=as_json)
        return 1 if made.errors else 0
    return show_plan(made, as_json=as_json)


def show_plan(made: Plan, *, as_json: bool = False) -> int:
    """Show a plan; the exit code is 1 if it cannot be run."""
    from weightsmith.inspection import summarize_plan

    present(summarize_plan(made), _blocks, as_json=as_json)
    return 1 if made.errors else 0


def planned(
    recipe: Path,
    overrides: tuple[str, ...],
    machine: Machine,
    *,
    shard_size: int | None = None,
    values: str | None = None,
) -> Plan:
    """The plan of a recipe file; `shard_size` goes before the recipe's own, `values` are a file's, or `start`."""
    start_blas_on_one_thread()
    with collection_paused():
        from weightsmith.engine import make_plan
        from weightsmith.recipes import Recipe

        loaded = Recipe.load(recipe, overrides=overrides)
        if shard_size is not None:
            document = loaded.document.model_copy(update={"shard_size": shard_size})
            loaded = replace(loaded, document=document)
        made = make_plan(loaded, values=_values(values), **machine.options())
        # Modules and plan live as long as the process: no collection has to look at them, and the first that is
        # allowed again would look at all.
        gc.freeze()
    return made


def _values(given: str | None) -> Any:
    """What --values gives: a file's numbers, or the word itself."""
    if given is None or given == "start":
        return given
    from weightsmith.recipes import read_values

    return read_values(Path(given))


def _blocks(summary: PlanSummary) -> Iterator[Block]:
    inputs = [
        (
            i.reference,
            i.part,
            f"{i.tensors_read:,} of {i.tensors:,}",
            format_size(i.bytes_read),
            ", ".join(i.dtypes),
        )
        for i in summary.inputs
    ]
    heads = ("checkpoint", "used as", "tensors read", "bytes", "dtype")
    yield TextTable("Inputs", heads, inputs, frozenset({2, 3}))
    steps = [
        (s.what, f"{s.tensors:,}", f"{s.elements:,}", str(s.passes), format_size(s.read_bytes))
        for s in summary.steps
    ]
    heads = ("what", "tensors", "parameters", "passes", "read")
    yield TextTable("Computed", heads, steps, frozenset({1, 2, 3, 4}))
    if summary.vocabulary is not None:
        yield from vocabulary_blocks(summary.vocabulary)
    yield from _free_numbers(summary)
    yield TextTable("Cost", ("", ""), _cost(summary))
    yield FindingsBlock(summary.findings)
    if summary.errors:
        yield f"{counted(summary.errors, 'error')}: this plan cannot be run."
    elif summary.free:
        numbers = counted(sum(row.count for row in summary.free), "free number")
        yield f"{numbers} without a value: this plan can be run with --values FILE, or --values start."
    else:
        yield "This plan can be run."


def _free_numbers(summary: PlanSummary) -> Iterator[Block]:
    """Those that belong together by what they are called, the first and the last of many."""
    if not summary.free:
        return
    rows = [
        (
            row.name,
            f"{row.count:,}",
            f"[{row.low:g}, {row.high:g}]",
            f"{row.start:g}",
            f"{row.tensors:,}",
        )
        for row in summary.free
    ]
    if len(rows) > _MOST_NUMBERS:
        half = _MOST_NUMBERS // 2
        left_out = (f"... {len(rows) - 2 * half:,} more", "", "", "", "")
        rows = [*rows[:half], left_out, *rows[-half:]]
    heads = ("name", "count", "between", "start", "tensors")
    total = sum(row.count for row in summary.free)
    yield TextTable(f"Free numbers: {total:,}", heads, rows, frozenset({1, 3, 4}))


def _cost(summary: PlanSummary) -> list[tuple[str, str]]:
    cost, read = summary.cost, format_size(summary.read_bytes)
    peak, allowed = format_size(summary.peak_bytes), format_size(summary.memory_bytes)
    warm, cold = duration(cost.warm_seconds), duration(cost.cold_seconds)
    return [
        ("read", f"{read} ({format_size(summary.input_bytes)} of inputs, all passes)"),
        ("write", f"{format_size(summary.write_bytes)} in {counted(summary.shards, 'file')}"),
        ("memory", f"{peak} at the peak, {allowed} allowed"),
        ("time", f"about {warm}; {cold} if the inputs are not cached"),
        ("backend", f"{summary.backend}, {counted(summary.threads, 'thread')}"),
    ]


def _explained(explanation: Explanation) -> Iterator[Block]:
    facts = [f"{shape(explanation.shape)} {explanation.dtype}", f"role {explanation.role}"]
    if explanation.layer is not None:
        depth = f"depth {explanation.position:.3g}"
        facts.append(f"layer {explanation.layer} of {explanation.layers} ({depth})")
    if explanation.tied_to is not None:
        facts.append(f"tied to {explanation.tied_to}")
    yield f"{explanation.name}  {', '.join(facts)}"
    yield f"{explanation.action} in {counted_passes(explanation.passes)}"
    yield ""
    yield from explanation.lines
    if explanation.findings:
        yield ""
        yield FindingsBlock(explanation.findings)


def counted_passes(number: int) -> str:
    """`1 pass`, `3 passes`."""
    return "1 pass" if number == 1 else f"{number} passes"
