"""What a report shows of a merge: the recipe, the plan with its cost and findings, and the manifest."""

from __future__ import annotations

from pathlib import Path

from weightsmith.engine import BehindInput, Input, Manifest, Plan
from weightsmith.inspection import PlanSummary, summarize_plan
from weightsmith.reports.page import DataTable, Facts, FindingList, PageSection, TextListing
from weightsmith.tensors import format_size
from weightsmith.wording import counted, duration


def plan_sections(plan: Plan) -> list[PageSection]:
    """The recipe in its canonical form, and what merging it reads, computes and writes."""
    summary = summarize_plan(plan)
    return [
        PageSection("Recipe", (TextListing("Recipe", plan.recipe.dump()),)),
        PageSection("Plan", (_inputs(summary), _steps(summary), _cost(summary))),
        PageSection("Findings", (FindingList(summary.findings),)),
    ]


def _inputs(summary: PlanSummary) -> DataTable:
    return DataTable(
        "Inputs",
        ("checkpoint", "used as", "tensors read", "bytes", "dtype"),
        tuple(
            (
                row.reference,
                row.part,
                f"{row.tensors_read:,} of {row.tensors:,}",
                format_size(row.bytes_read),
                ", ".join(row.dtypes),
            )
            for row in summary.inputs
        ),
        frozenset({2, 3}),
    )


def _steps(summary: PlanSummary) -> DataTable:
    return DataTable(
        "Computed",
        ("what", "tensors", "parameters", "passes", "read"),
        tuple(
            (
                row.what,
                f"{row.tensors:,}",
                f"{row.elements:,}",
                str(row.passes),
                format_size(row.read_bytes),
            )
            for row in summary.steps
        ),
        frozenset({1, 2, 3, 4}),
    )


def _cost(summary: PlanSummary) -> Facts:
    cost = summary.cost
    memory = f"{format_size(summary.peak_bytes)} at the peak, {format_size(summary.memory_bytes)} allowed"
    return Facts(
        (
            ("Read", f"{format_size(summary.read_bytes)}, all passes"),
            ("Write", f"{format_size(summary.write_bytes)} in {counted(summary.shards, 'file')}"),
            ("Memory", memory),
            (
                "Time",
                f"about {duration(cost.warm_seconds)}; {duration(cost.cold_seconds)} if the inputs are not cached",
            ),
            ("Backend", f"{summary.backend}, {counted(summary.threads, 'thread')}"),
            ("Plan digest", summary.digest),
        )
    )


def manifest_sections(manifest: Manifest, folder: Path, *, with_recipe: bool) -> list[PageSection]:
    """What is on record about an output folder; its recipe too, unless another section has it."""
    facts = Facts(
        (
            ("Folder", folder.name),
            ("Written by", f"weightsmith {manifest.version}, {manifest.backend}"),
            ("Digest of the weights", manifest.digest),
            ("Recipe digest", manifest.recipe_digest),
            ("Tensors", f"{len(manifest.outputs):,} in {counted(len(manifest.shards), 'file')}"),
            ("Check", f"weightsmith verify {folder.name}"),
        )
    )
    inputs = DataTable(
        "Inputs on record",
        ("checkpoint", "revision", "tensors read", "digest"),
        tuple(
            row
            for given in manifest.inputs.values()
            for row in (_on_record(given), *map(_on_record, given.behind))
        ),
        frozenset({2}),
    )
    record = PageSection("On record", (facts, inputs))
    if not with_recipe:
        return [record]
    return [PageSection("Recipe", (TextListing("Recipe", manifest.recipe),)), record]


def _on_record(given: Input | BehindInput) -> tuple[str, ...]:
    return (
        given.hub_id or given.reference,
        given.revision or "-",
        f"{len(given.tensors):,}",
        given.digest,
    )
