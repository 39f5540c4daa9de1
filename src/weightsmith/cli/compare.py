"""`weightsmith compare`: a new version against the old one, its parents and its base, with gates for CI."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.evaluate import Telling
from weightsmith.cli.interruption import INTERRUPTED
from weightsmith.cli.json_file import check_json_file, write_json_file
from weightsmith.cli.options import report_option
from weightsmith.cli.output import Table, show_json, show_line, show_table
from weightsmith.cli.reading import places_read, suite_files
from weightsmith.cli.report import check_place, write_beside

if TYPE_CHECKING:
    from weightsmith.comparison.compare import Change, Comparison, TaskComparison
    from weightsmith.comparison.gates import GateResult
    from weightsmith.comparison.resampling import Estimate
    from weightsmith.reports.page import Report

_SHOWN_IDS = 10
# What the file of --json is sealed as.
_KIND = "comparison"
_LISTS = frozenset({"--parents", "--gate"})


class ListingCommand(DocumentedCommand):
    """A command two of whose options take all arguments up to the next option: `--parents A B C --base D`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat such an option before each of its values, as click has it."""
        written: list[str] = []
        current = None
        for argument in args:
            if current is not None and not argument.startswith("--"):
                written += [current, argument]
                continue
            current = argument if argument in _LISTS else None
            if current is None:
                written.append(argument)
        return super().parse_args(ctx, written)


@click.command(
    cls=ListingCommand,
    short_help="Compare two versions: scores, flips, retained skill, gates.",
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
@click.option("--device", default="cpu", show_default=True, help="Where models run.")
@click.option(
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Write everything found to FILE (- for stdout, instead of tables).",
)
@report_option
@click.option("--quiet", is_flag=True, help="Show no progress.")
def compare(
    old: str,
    new: str,
    parents: Sequence[str],
    base: str | None,
    suite: str | None,
    gates: Sequence[str],
    tolerance: float,
    device: str,
    json_file: Path | None,
    report_file: Path | None,
    quiet: bool,
) -> int:
    """Compare the model NEW with OLD, which it is to replace.

    Models are checkpoints, recipes, or what `evaluate --json` wrote. The exit code is 1 if a gate does not hold.
    """
    from weightsmith.comparison.compare import compare as compare_models
    from weightsmith.comparison.gates import check_gates, parse_gate

    file = None if json_file is None or str(json_file) == "-" else json_file
    reads: tuple[Path, ...] = ()
    if report_file is not None or file is not None:
        reads = (*places_read(old, new, *parents, base), *suite_files(suite))
    check_place(report_file, reads)
    check_json_file(file, _KIND, reads, report_file)
    parsed = [parse_gate(gate) for gate in gates]
    options: dict[str, Any] = {"tolerance": tolerance, "device": device, "progress": Telling(quiet)}
    try:
        found = compare_models(old, new, suite, parents=parents, base=base, **options)
    except KeyboardInterrupt:
        what = "finished tasks are kept, and the same command goes on from there"
        print(f"weightsmith: interrupted: {what}.", file=sys.stderr)
        return INTERRUPTED
    results = check_gates(found, parsed)
    write_beside(report_file, lambda: _report(found), reads)
    content = found.to_mapping() | {"gates": [result.to_mapping() for result in results]}
    if file is not None:
        write_json_file(file, content, _KIND, reads)
    if file is json_file:
        _show(found, results)
    else:
        show_json(content)
    return 0 if all(result.passed for result in results) else 1


def _report(found: Comparison) -> Report:
    from weightsmith.reports.subjects import report_of_comparison

    return report_of_comparison(found)


def _show(found: Comparison, results: Sequence[GateResult]) -> None:
    show_line(f"old  {found.old}")
    show_line(f"new  {found.new}")
    show_line()
    show_table(_scores(found.tasks))
    _show_flips("Flips from old to new", found.tasks)
    _show_graded(found.tasks)
    _show_slices(found.tasks)
    for parent in found.parents:
        _show_flips(f"Flips from the parent {parent.subject} to new", parent.tasks)
    _show_skill(found)
    _show_ids(found.tasks)
    _show_gates(results)


def _scores(tasks: Sequence[TaskComparison]) -> Table:
    heads = ("task", "metric", "items", "old", "new", "new - old", "p", "new is")
    rows = [
        (
            task.task,
            task.metric,
            f"{task.change.items:,}",
            interval(task.old.value, task.old.low, task.old.high),
            interval(task.new.value, task.new.low, task.new.high),
            estimate(task.change.difference.estimate, signed=True),
            _p(task.change),
            task.change.difference.verdict,
        )
        for task in tasks
    ]
    title = "Scores with 95 % intervals; p is McNemar's (mid-p), or that of the paired bootstrap"
    return Table(title, heads, rows, frozenset(range(2, 7)))


def _p(change: Change) -> str:
    number = change.mcnemar.mid_p if change.mcnemar is not None else change.difference.p_value
    return f"{number:.2g}"


def _show_flips(title: str, tasks: Sequence[TaskComparison]) -> None:
    heads = (
        "task",
        "negative",
        "rate",
        "relative",
        "positive",
        "rate",
        "trust",
        "errors kept",
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
        show_table(Table(title, heads, rows, frozenset(range(1, 9))))


def _show_graded(tasks: Sequence[TaskComparison]) -> None:
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
        show_table(Table("Graded items from old to new", heads, rows, frozenset(range(1, 5))))


def _show_slices(tasks: Sequence[TaskComparison]) -> None:
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
        show_table(Table("Slices", heads, rows, frozenset(range(2, 8))))


def _show_skill(found: Comparison) -> None:
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
        show_table(Table("Skill of the parents in new", heads, rows, frozenset(range(2, 5))))
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
        show_table(Table("Over tasks", ("", ""), summary, frozenset({1})))


def _show_ids(tasks: Sequence[TaskComparison]) -> None:
    for task in tasks:
        lost = () if task.change.flips is None else task.change.flips.negative
        if lost:
            more = f" and {len(lost) - _SHOWN_IDS:,} more" if len(lost) > _SHOWN_IDS else ""
            show_line(f"{task.task} lost {', '.join(lost[:_SHOWN_IDS])}{more}")
    if any(task.change.flips and task.change.flips.negative for task in tasks):
        show_line()


def _show_gates(results: Sequence[GateResult]) -> None:
    if not results:
        return
    rows = [
        ("holds" if result.passed else "FAILS", result.gate.text, result.sentence)
        for result in results
    ]
    show_table(Table("Gates", ("", "gate", "found"), rows))


def interval(value: float, low: float, high: float) -> str:
    """A score with its interval: `0.842 [0.817, 0.866]`."""
    return f"{value:.4g} [{low:.4g}, {high:.4g}]"


def estimate(found: Estimate | None, *, signed: bool = False) -> str:
    """An estimate with its interval, or a dash."""
    if found is None:
        return "-"
    value: Any = f"{found.value:+.4g}" if signed else f"{found.value:.4g}"
    return f"{value} [{found.low:.4g}, {found.high:.4g}]"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
