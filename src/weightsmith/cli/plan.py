"""`weightsmith plan`: what a merge will read, compute and write."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.options import Machine, json_option, machine_options, overrides_option
from weightsmith.cli.output import (
    Table,
    findings_json,
    show_findings,
    show_json,
    show_line,
    show_table,
)
from weightsmith.cli.text import counted, duration, shape
from weightsmith.cli.vocabulary import show_vocabulary
from weightsmith.findings import Severity
from weightsmith.tensors.sizes import format_size
from weightsmith.tensors.strict_json import collection_paused

if TYPE_CHECKING:
    from weightsmith.engine.plan import Plan
    from weightsmith.inspection.explanation import Explanation
    from weightsmith.inspection.plan_summary import PlanSummary


@click.command(
    cls=DocumentedCommand,
    short_help="Show what a merge will read, compute and write.",
    examples=(
        "plan ties.yaml",
        "plan ties.yaml --set parameters.density=0.3",
        "plan ties.yaml --explain model.norm.weight",
    ),
)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--explain", metavar="TENSOR", help="Print the formula of one output tensor with its numbers."
)
@json_option
@overrides_option
@machine_options
def plan(
    recipe: Path, explain: str | None, as_json: bool, overrides: tuple[str, ...], **machine: Any
) -> int:
    """Show what merging RECIPE will read, compute and write.

    Lists every finding with its fix; --explain leaves out notes. Where a rule makes rows of missing tokens, its error
    is measured on tokens that are known. The exit code is 1 if one of the findings is an error.
    """
    made = planned(recipe, overrides, Machine(**machine))
    if explain is not None:
        _show_explanation(made, explain, as_json)
        return 1 if made.errors else 0
    return show_plan(made, as_json=as_json)


def show_plan(made: Plan, *, as_json: bool = False) -> int:
    """Show a plan; the exit code is 1 if it cannot be run."""
    from weightsmith.inspection.plan_summary import summarize_plan

    summary = summarize_plan(made)
    if as_json:
        show_json(_as_json(summary))
    else:
        _show(summary)
    return 1 if made.errors else 0


def planned(
    recipe: Path, overrides: tuple[str, ...], machine: Machine, *, shard_size: int | None = None
) -> Plan:
    """The plan of a recipe file; `shard_size` goes before the recipe's own."""
    with collection_paused():
        from weightsmith.engine.plan import make_plan
        from weightsmith.recipes import Recipe

        loaded = Recipe.load(recipe, overrides=overrides)
        if shard_size is not None:
            document = loaded.document.model_copy(update={"shard_size": shard_size})
            loaded = replace(loaded, document=document)
        made = make_plan(loaded, **machine.options())
    # Modules and plan live as long as the process: no collection has to look at them.
    gc.freeze()
    return made


def _show(summary: PlanSummary) -> None:
    show_table(
        Table(
            "Inputs",
            ("checkpoint", "used as", "tensors read", "bytes", "dtype"),
            [
                (
                    i.reference,
                    i.part,
                    f"{i.tensors_read:,} of {i.tensors:,}",
                    format_size(i.bytes_read),
                    ", ".join(i.dtypes),
                )
                for i in summary.inputs
            ],
            frozenset({2, 3}),
        )
    )
    show_table(
        Table(
            "Computed",
            ("what", "tensors", "parameters", "passes", "read"),
            [
                (
                    s.what,
                    f"{s.tensors:,}",
                    f"{s.elements:,}",
                    str(s.passes),
                    format_size(s.read_bytes),
                )
                for s in summary.steps
            ],
            frozenset({1, 2, 3, 4}),
        )
    )
    if summary.vocabulary is not None:
        show_vocabulary(summary.vocabulary)
    cost = summary.cost
    show_table(
        Table(
            "Cost",
            ("", ""),
            [
                (
                    "read",
                    f"{format_size(summary.read_bytes)} ({format_size(summary.input_bytes)} of inputs, all passes)",
                ),
                (
                    "write",
                    f"{format_size(summary.write_bytes)} in {counted(summary.shards, 'file')}",
                ),
                (
                    "memory",
                    f"{format_size(summary.peak_bytes)} at the peak, {format_size(summary.memory_bytes)} allowed",
                ),
                (
                    "time",
                    f"about {duration(cost.warm_seconds)}; {duration(cost.cold_seconds)} if the inputs are not cached",
                ),
                ("backend", f"{summary.backend}, {counted(summary.threads, 'thread')}"),
            ],
        )
    )
    show_findings(summary.findings)
    if summary.errors:
        show_line(f"{counted(summary.errors, 'error')}: this plan cannot be run.")
    else:
        show_line("This plan can be run.")


def _as_json(summary: PlanSummary) -> dict[str, Any]:
    return {
        "schema": 1,
        "runnable": not summary.errors,
        "digest": summary.digest,
        "inputs": [
            {
                "reference": i.reference,
                "path": str(i.path),
                "part": i.part,
                "tensors": i.tensors,
                "tensors_read": i.tensors_read,
                "bytes_read": i.bytes_read,
                "dtypes": i.dtypes,
            }
            for i in summary.inputs
        ],
        "computed": [
            {
                "what": s.what,
                "tensors": s.tensors,
                "elements": s.elements,
                "passes": s.passes,
                "read_bytes": s.read_bytes,
            }
            for s in summary.steps
        ],
        "read_bytes": summary.read_bytes,
        "write_bytes": summary.write_bytes,
        "shards": summary.shards,
        "peak_memory_bytes": summary.peak_bytes,
        "memory_bytes": summary.memory_bytes,
        "seconds": {"warm": summary.cost.warm_seconds, "cold": summary.cost.cold_seconds},
        "backend": summary.backend,
        "threads": summary.threads,
        **({"vocabulary": summary.vocabulary.to_mapping()} if summary.vocabulary else {}),
        "findings": findings_json(summary.findings),
    }


def _show_explanation(made: Plan, tensor: str, as_json: bool) -> None:
    from weightsmith.inspection.explanation import explain_tensor

    explanation = explain_tensor(made, tensor)
    notable = [f for f in made.findings if f.severity is not Severity.NOTE]
    if as_json:
        show_json({**explanation.to_mapping(), "findings": findings_json(notable)})
        return
    for line in _explained(explanation):
        show_line(line)
    if notable:
        show_line()
        show_findings(notable)


def _explained(explanation: Explanation) -> list[str]:
    facts = [f"{shape(explanation.shape)} {explanation.dtype}", f"role {explanation.role}"]
    if explanation.layer is not None:
        depth = f"depth {explanation.position:.3g}"
        facts.append(f"layer {explanation.layer} of {explanation.layers} ({depth})")
    if explanation.tied_to is not None:
        facts.append(f"tied to {explanation.tied_to}")
    done = f"{explanation.action} in {counted_passes(explanation.passes)}"
    return [f"{explanation.name}  {', '.join(facts)}", done, "", *explanation.lines]


def counted_passes(number: int) -> str:
    """`1 pass`, `3 passes`."""
    return "1 pass" if number == 1 else f"{number} passes"
