"""`weightsmith evaluate`: score a checkpoint, or a recipe without writing its result, on a suite."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weightsmith.cli.input_paths import places_read, suite_files
from weightsmith.cli.interruption import INTERRUPTED
from weightsmith.cli.judging.report import check_place, write_beside
from weightsmith.cli.options import (
    THREADS,
    device_option,
    json_option,
    quiet_option,
    report_option,
    size,
)
from weightsmith.cli.presenting import Block, TextTable, present
from weightsmith.cli.progress_lines import open_progress
from weightsmith.cli.saving import SavingCommand, check_save, save, save_option
from weightsmith.cli.terminal_text import counted

if TYPE_CHECKING:
    from weightsmith.evaluation import Evaluation, TaskScore
    from weightsmith.reports import Report

# What the file of --json is sealed as.
_KIND = "evaluation"


@click.command(
    cls=SavingCommand,
    examples=(
        "evaluate merged --suite family/suite.test.yaml",
        "evaluate ties.yaml --suite family/suite.validation.yaml --task greek --save scores.json",
    ),
)
@click.argument("subject", metavar="CHECKPOINT|RECIPE")
@click.option("--suite", required=True, metavar="FILE", help="The suite: a YAML file of tasks.")
@click.option("--task", "tasks", multiple=True, help="Do this task only; repeatable.")
@click.option("--limit", type=click.IntRange(min=1), help="Take the first items of each task only.")
@device_option
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Items at a time; default: the task's."
)
@click.option(
    "--memory", type=size, help="Bound on the memory of a recipe's merge beside its result."
)
@click.option("--threads", type=THREADS, help="Worker threads of a recipe's merge.")
@click.option("--no-cache", is_flag=True, help="Compute every score anew, and keep none.")
@report_option
@json_option
@save_option
@quiet_option
def evaluate(
    subject: str,
    suite: str,
    tasks: tuple[str, ...],
    limit: int | None,
    device: str,
    batch_size: int | None,
    memory: int | None,
    threads: int | None,
    no_cache: bool,
    report_file: Path | None,
    as_json: bool,
    save_file: Path | None,
    quiet: bool,
) -> int:
    """Score a checkpoint, or what a recipe makes, on the tasks of a suite.

    A recipe is merged in memory and nothing of it is written. Every score is shown with its number of items and its
    95 % bootstrap interval. Scores are kept by the digest of the weights and of the task, so what was computed once is
    found again; after Ctrl-C the same command goes on with the task that was interrupted.
    """
    from weightsmith.evaluation import evaluate as evaluated

    reads: tuple[Path, ...] = ()
    if report_file is not None or save_file is not None:
        reads = (*places_read(subject), *suite_files(suite))
    check_place(report_file, reads)
    check_save(save_file, _KIND, reads, report_file)
    try:
        with open_progress(quiet) as progress:
            found = evaluated(
                subject,
                suite,
                tasks=tasks,
                limit=limit,
                device=device,
                batch_size=batch_size,
                threads=threads,
                memory_bytes=memory,
                cache=not no_cache,
                progress=progress,
            )
    except KeyboardInterrupt:
        return _interrupted(progress.parts_finished(), kept=not no_cache)
    write_beside(report_file, lambda: _report(found), reads)
    save(found, save_file, _KIND, reads)
    present(found, _blocks, as_json=as_json)
    return 0


def _report(found: Evaluation) -> Report:
    from weightsmith.reports import report_of_evaluation

    return report_of_evaluation(found)


def _blocks(found: Evaluation) -> Iterator[Block]:
    rows = [score_row(score) for score in found.scores]
    title = f"{found.subject} on {found.suite}"
    columns = ("task", "metric", "score", "95 % interval", "items", "better")
    yield TextTable(title, columns, rows, frozenset({2, 3, 4}), spare=(5,))
    if found.cached:
        yield f"{counted(len(found.cached), 'task')} of {len(found.scores)} found in the cache."


def score_row(score: TaskScore) -> tuple[str, ...]:
    """A task's score as a row of a table."""
    return (
        score.task,
        score.metric,
        number(score.value),
        f"{number(score.low)} to {number(score.high)}",
        f"{score.items:,}",
        "higher" if score.higher_is_better else "lower",
    )


def number(value: float) -> str:
    """A score with four digits behind the point, or four in all where it is large."""
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"


def _interrupted(done: int, *, kept: bool) -> int:
    if kept and done:
        what = f"{counted(done, 'finished task')} kept, and the same command goes on from there"
    else:
        what = "no task was finished, and the same command starts over"
        what = what if kept else "nothing was kept, and the same command starts over"
    print(f"weightsmith: interrupted: {what}.", file=sys.stderr)
    return INTERRUPTED
