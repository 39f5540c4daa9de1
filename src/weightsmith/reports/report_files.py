"""Reports and their pictures as files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from weightsmith.errors import OutputError
from weightsmith.publishing import (
    check_file,
    publish_file,
    refuse_inputs,
    refuse_recorded,
    with_seal,
)
from weightsmith.reports.drawing import save_png, save_svg
from weightsmith.reports.page import Report, render

# What the files are sealed as.
REPORT = "report"
PICTURE = "picture"


def write_report(
    report: Report, file: Path, *, pictures: Path | None = None, reads: Iterable[Path] = ()
) -> list[Path]:
    """Write the page, and every picture as SVG and PNG into the folder `pictures`; return what was written.

    Each file appears whole or not at all and replaces one of its name only if that is a report or picture of
    weightsmith's, as it was written; `reads` is what the report was made from, where none is put. Raises OutputError
    where one may not or cannot be written, before any is.
    """
    reads = tuple(reads)
    contents = {file: (REPORT, render(report).encode("utf-8", "backslashreplace"))}
    if pictures is not None:
        for picture in report.pictures:
            contents[pictures / f"{picture.key}.svg"] = PICTURE, save_svg(picture.figure)
            contents[pictures / f"{picture.key}.png"] = PICTURE, save_png(picture.figure)
        _make_folder(pictures, contents, reads)
    for path, (kind, _) in contents.items():
        check_file(path, kind, reads)
    for path, (kind, content) in contents.items():
        publish_file(path, with_seal(content, kind), kind, reads)
    return list(contents)


def _make_folder(folder: Path, files: Iterable[Path], reads: Iterable[Path]) -> None:
    for file in files:
        refuse_inputs(file, reads)
        refuse_recorded(file)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise OutputError(
            f"The folder {str(folder)!r} cannot be made ({reason}); choose another for the pictures."
        ) from problem


def check_report_file(file: Path, reads: Iterable[Path] = ()) -> None:
    """Refuse a place that a report may not or could not be written to, before the work that it would show.

    Raises OutputError.
    """
    if file.is_dir():
        raise OutputError(
            f"{str(file)!r} is a folder; name a file for the report, such as report.html."
        )
    check_file(file, REPORT, reads)
