"""`weightsmith report`: one HTML file to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.input_paths import places_read
from weightsmith.cli.options import json_option, threads_option
from weightsmith.cli.presenting import Block, Data, present
from weightsmith.cli.standard_streams import STREAMS
from weightsmith.cli.terminal_text import counted

if TYPE_CHECKING:
    from weightsmith.reports import Report


@click.command(
    cls=DocumentedCommand,
    examples=(
        "report ties.yaml -o report.html",
        "report expert-1 expert-2 --base base -o report.html --pictures pictures",
        "report --league league.json --evaluation merged.json -o report.html",
        "report learned.yaml --learning learned.learning.json -o report.html",
    ),
)
@click.argument("subjects", nargs=-1, metavar="RECIPE|CHECKPOINT...")
@click.option("--base", help="The checkpoint that changes are measured from.")
@click.option(
    "--evaluation",
    "evaluations",
    multiple=True,
    type=click.Path(path_type=Path),
    help="What `evaluate --save` wrote; repeatable.",
)
@click.option("--league", type=click.Path(path_type=Path), help="What `league --save` wrote.")
@click.option("--learning", type=click.Path(path_type=Path), help="The log that `learn` wrote.")
@click.option(
    "-o",
    "--output",
    "file",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="Where to write the report.",
)
@click.option(
    "--pictures",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Also write every picture there, as SVG and PNG.",
)
@json_option
@threads_option
def report(
    subjects: tuple[str, ...],
    base: str | None,
    evaluations: tuple[Path, ...],
    league: Path | None,
    learning: Path | None,
    file: Path,
    pictures: Path | None,
    as_json: bool,
    threads: int | None,
) -> int:
    """Write a report on one RECIPE, or on checkpoints, as one HTML file.

    A recipe is shown with its plan; a merged checkpoint with its record. Maps by layer and role show what each model
    changed of the base, and how their changes meet; the checkpoints are streamed for it. The file needs neither
    network nor scripts.
    """
    from weightsmith.reports import report as make

    reads = (
        *places_read(*subjects, base),
        *evaluations,
        *(saved for saved in (league, learning) if saved is not None),
    )
    check_place(file, reads)
    written = make(
        subjects,
        file,
        base=base,
        evaluations=evaluations,
        league=league,
        learning=learning,
        pictures=pictures,
        threads=threads,
        reads=reads,
    )
    STREAMS.done()
    present(_Files(file, tuple(written[1:])), _blocks, as_json=as_json)
    return 0


@dataclass(frozen=True, slots=True)
class _Files:
    """A report that has been written, and its pictures."""

    file: Path
    pictures: Sequence[Path]

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"out": str(self.file), "pictures": [str(picture) for picture in self.pictures]}


def _blocks(files: _Files) -> Iterator[Block]:
    more = f" and {counted(len(files.pictures), 'picture')}" if files.pictures else ""
    yield Data(f"{files.file}{more}")


def check_place(file: Path | None, reads: Iterable[Path] = ()) -> None:
    """Refuse a --report that may not or could not be written, before the work that it would show.

    `reads` is what the command reads.
    """
    if file is not None:
        from weightsmith.reports import check_report_file, require_matplotlib

        check_report_file(file, reads)
        require_matplotlib()


def write_beside(file: Path | None, make: Callable[[], Report], reads: Iterable[Path] = ()) -> None:
    """Write what --report asks for, if it was given."""
    if file is not None:
        from weightsmith.reports import write_report

        write_report(make(), file, reads=reads)
        STREAMS.done()
