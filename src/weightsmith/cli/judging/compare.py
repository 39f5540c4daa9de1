"""`weightsmith compare`: a new version against the old one, its parents and its base, with gates for CI."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli.input_paths import places_read, suite_files
from weightsmith.cli.interruption import INTERRUPTED
from weightsmith.cli.judging.report import check_place, write_beside
from weightsmith.cli.listing import ListingCommand
from weightsmith.cli.options import device_option, json_option, quiet_option, report_option
from weightsmith.cli.presenting import Block, Cell, ShownInterval, TextTable, present
from weightsmith.cli.progress_lines import open_progress
from weightsmith.cli.saving import check_save, save, save_option

if TYPE_CHECKING:
    from weightsmith.comparison import Comparison, Estimate, GateResult, TaskComparison
    from weightsmith.reports import Report

_SHOWN_IDS = 10
# What the file of --json is sealed as.
_KIND = "comparison"


@click.command(
    cls=ListingCommand,
    lists=("--parents", "--gate"),
    examples=(
        "compare old new --suite suite.yaml",
        "compare old.json new.json --gate 'negative_flips<0.02'",
        "compare average recipe.yaml --parents fr de --base base --suite suite.yaml",
    ),
)
@click.argument("old")
@click.argument("new")
@click.option(
    "--parents", multiple=True, metavar="MODEL...", help="The models that NEW was made of."
)
@click.option("--base", help="The model that the parents were made from.")
@click.option("--suite", metavar="FILE", help="The suite to evaluate on.")
@click.option(
    "--gate",
    "gates",
    multiple=True,
    metavar="EXPR...",
    help="What must hold, such as negative_flips<0.02.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="By how much an item's graded score may move without counting as changed.",
)
@device_option
@report_option
@json_option
@save_option
@quiet_option
def compare(
    old: str,
    new: str,
    parents: Sequence[str],
    base: str | None,
    suite: str | None,
    gates: Sequence[str],
    tolerance: float,
    device: str,
    report_file: Path | None,
    as_json: bool,
    save_file: Path | None,
    quiet: bool,
) -> int:
    """Compare the model NEW with OLD, which it is to replace.

    Models are checkpoints, recipes, or what `evaluate --save` wrote. The exit code is 1 if a gate does not hold.
    """
    from weightsmith.comparison import check_gates, parse_gate
    from weightsmith.comparison import compare as compare_models

    reads: tuple[Path, ...] = ()
    if report_file is not None or save_file is not None:
        reads = (*places_read(old, new, *parents, base), *suite_files(suite))
    check_place(report_file, reads)
    check_save(save_file, _KIND, reads, report_file)
    parsed = [parse_gate(gate) for gate in gates]
    options: dict[str, Any] = {"tolerance": tolerance, "device": device}
    try:
        with open_progress(quiet) as progress:
            options["progress"] = progress
            found = compare_models(old, new, suite, parents=parents, base=base, **options)
    except KeyboardInterrupt:
        what = "finished tasks are kept, and the same command goes on from there"
        print(f"weightsmith: interrupted: {what}.", file=sys.stderr)
        return INTERRUPTED
    judged = _Judged(found, check_gates(found, parsed))
    write_beside(report_file, lambda: _report(found), reads)
    save(judged, save_file, _KIND, reads)
    present(judged, _blocks, as_json=as_json)
    return 0 if all(result.passed for result in judged.gates) else 1


@dataclass(frozen=True, slots=True)
class _Judged:
    """A comparison with what its gates say."""

    comparison: Comparison
    gates: Sequence[GateResult]

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return self.comparison.to_mapping() | {"gates": [gate.to_mapping() for gate in self.gates]}


def _report(found: Comparison) -> Report:
    from weightsmith.reports import report_of_comparison

    return report_of_comparison(found)


def _blocks(judged: _Judged) -> Iterator[Block]:
    found = judged.comparison
    yield f"old  {found.old}"
    yield f"new  {found.new}"
    yield ""
    yield _scores(found.tasks)
    yield from _flips("Flips from old to new", found.tasks)
    yield from _graded(found.tasks)
    yield from _slices(found.tasks)
    for parent in found.parents:
        yield from _flips(f"Flips from the parent {parent.subject} to new", parent.tasks)
    yield from _skill(found)
    yield from _ids(found.tasks)
    if judged.gates:
        rows = [
            (result.gate.text, "holds" if result.passed else "FAILS", result.sentence)
            for result in judged.gates
        ]
        yield TextTable("Gates", ("gate", "", "found"), rows)


def _scores(tasks: Sequence[TaskComparison]) -> TextTable:
    heads = ("task", "metric", "items", "old", "new", "new - old", "p", "new is")
    rows = [
        (
            task.task,
            task.metric,
            f"{task.change.items:,}",
            interval(task.old.value, task.old.low, task.old.high),
            interval(task.new.value, task.new.low, task.new.high),
            estimate(task.change.difference.estimate, signed=True),
            f"{task.change.p_value:.2g}",
            task.change.difference.verdict,
        )
        for task in tasks
    ]
    title = "Scores with 95 % intervals; p is McNemar's (mid-p), or that of the paired bootstrap"
    return TextTable(title, heads, rows, frozenset(range(2, 7)), spare=(2,))


def _flips(title: str, tasks: Sequence[TaskComparison]) -> Iterator[Block]:
    heads = (
        "task",
        "negative",
        "rate",
        "relative",
        "positive",
        "rate",
        "still right",
        "wrong before",
        "changed, wrong",
    )
    rows = [
        (
            task.task,
            f"{len(flips.negative):,}",
            _share(flips.negative_rate),
            _number(flips.relative_negative_rate),
            f"{len(flips.positive):,}",
            _share(flips.positive_rate),
            _share(flips.backward_trust),
            _share(flips.backward_errors),
            _share(flips.changed_wrong_rate),
        )
        for task in tasks
        if (flips := task.change.flips) is not None
    ]
    if rows:
        yield TextTable(title, heads, rows, frozenset(range(1, 9)), spare=(8, 7, 6, 3))


def _graded(tasks: Sequence[TaskComparison]) -> Iterator[Block]:
    rows = [
        (
            task.task,
            _number(graded.gain),
            _number(graded.regression),
            _share(graded.improved_rate),
            _share(graded.regressed_rate),
        )
        for task in tasks
        if (graded := task.change.graded) is not None
    ]
    if rows:
        heads = ("task", "gain", "regression", "items better", "items worse")
        yield TextTable("Graded items from old to new", heads, rows, frozenset(range(1, 5)))


def _slices(tasks: Sequence[TaskComparison]) -> Iterator[Block]:
    rows = [
        (
            task.task,
            name,
            f"{change.items:,}",
            f"{change.old:.4g}",
            f"{change.new:.4g}",
            estimate(change.difference.estimate, signed=True),
            "-" if change.flips is None else f"{len(change.flips.negative):,}",
            "-" if change.flips is None else f"{len(change.flips.positive):,}",
        )
        for task in tasks
        for name, change in task.slices
    ]
    if rows:
        heads = ("task", "slice", "items", "old", "new", "new - old", "negative", "positive")
        yield TextTable("Slices", heads, rows, frozenset(range(2, 8)))


def _skill(found: Comparison) -> Iterator[Block]:
    skill = found.skill
    if skill is None:
        return
    rows = [
        (
            one.task,
            one.parent,
            estimate(one.gained, signed=True),
            estimate(one.retained),
            estimate(one.normalized),
        )
        for one in skill.skills
    ]
    if rows:
        heads = ("task", "parent", "parent gained", "retained", "new over parent")
        yield TextTable("Skill of the parents in new", heads, rows, frozenset(range(2, 5)))
    summary = [
        (name, estimate(value))
        for name, value in (
            ("normalised score", skill.normalized_score),
            ("retained skill", skill.retained),
            ("forgetting of general skill", skill.forgetting),
            ("generalisation to unseen tasks", skill.generalization),
        )
        if value is not None
    ]
    if summary:
        yield TextTable("Over tasks", ("", ""), summary, frozenset({1}))


def _ids(tasks: Sequence[TaskComparison]) -> Iterator[Block]:
    for task in tasks:
        lost = () if task.change.flips is None else task.change.flips.negative
        if lost:
            more = f" and {len(lost) - _SHOWN_IDS:,} more" if len(lost) > _SHOWN_IDS else ""
            yield (f"{task.task} lost {', '.join(lost[:_SHOWN_IDS])}{more}")
    if any(task.change.flips and task.change.flips.negative for task in tasks):
        yield ""


def interval(value: float, low: float, high: float) -> ShownInterval:
    """A score with its interval: `0.842 [0.817, 0.866]`."""
    return ShownInterval(f"{value:.4g}", f"[{low:.4g}, {high:.4g}]")


def estimate(found: Estimate | None, *, signed: bool = False) -> Cell:
    """An estimate with its interval, or a dash."""
    if found is None:
        return "-"
    value = f"{found.value:+.4g}" if signed else f"{found.value:.4g}"
    return ShownInterval(value, f"[{found.low:.4g}, {found.high:.4g}]")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
