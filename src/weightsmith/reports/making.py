"""A report from what it is about to the file: what Python and the command line call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from weightsmith.reports.evaluation_sections import read_evaluations
from weightsmith.reports.league_sections import read_league
from weightsmith.reports.learning_sections import read_learning
from weightsmith.reports.report_files import write_report
from weightsmith.reports.report_subjects import report_of_subjects


def report(
    subjects: str | Path | Sequence[str | Path],
    file: str | Path,
    *,
    base: str | Path | None = None,
    evaluations: Sequence[str | Path] = (),
    league: str | Path | None = None,
    learning: str | Path | None = None,
    pictures: str | Path | None = None,
    threads: int | None = None,
    reads: Iterable[Path] = (),
) -> list[Path]:
    """Write a report on one recipe file, or on checkpoints, as one HTML file, and return the files that were written.

    `base` is what changes are measured from (default: the recipe's, else the first checkpoint). `evaluations` and
    `league` are files that the commands of these names saved, `learning` the log of `learn`; `pictures` is a folder for
    every picture as SVG and PNG. None of the files takes the place of what the report is made from: these files and
    `reads`.
    Raises UsageError where there is nothing to report, OutputError where a file cannot be written, and what reading the
    subjects raises. It needs matplotlib.
    """
    named = [subjects] if isinstance(subjects, (str, Path)) else subjects
    made = report_of_subjects(
        [str(subject) for subject in named],
        base=None if base is None else str(base),
        evaluations=read_evaluations([Path(saved) for saved in evaluations]),
        league=None if league is None else read_league(Path(league)),
        learning=None if learning is None else read_learning(Path(learning)),
        threads=threads,
    )
    named_files = [*evaluations, *(file for file in (league, learning) if file is not None)]
    read = (*reads, *map(Path, named_files))
    folder = None if pictures is None else Path(pictures)
    return write_report(made, Path(file), pictures=folder, reads=read)
