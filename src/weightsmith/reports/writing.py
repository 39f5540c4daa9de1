"""Reports and their pictures as files."""

from __future__ import annotations

from pathlib import Path

from weightsmith.errors import OutputError
from weightsmith.publishing.files import write_file
from weightsmith.reports.drawing import save_png, save_svg
from weightsmith.reports.page import Report, render


def write_report(report: Report, file: Path, *, pictures: Path | None = None) -> list[Path]:
    """Write the page, and every picture as SVG and PNG into the folder `pictures`; return what was written.

    Each file appears whole or not at all and replaces one of its name. Raises OutputError where one cannot be written.
    """
    contents = {file: render(report).encode("utf-8", "backslashreplace")}
    if pictures is not None:
        try:
            pictures.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            reason = problem.strerror or str(problem)
            raise OutputError(
                f"The folder {str(pictures)!r} cannot be made ({reason}); choose another for the pictures."
            ) from problem
        for picture in report.pictures:
            contents[pictures / f"{picture.key}.svg"] = save_svg(picture.figure)
            contents[pictures / f"{picture.key}.png"] = save_png(picture.figure)
    for path, content in contents.items():
        write_file(path.absolute(), content)
    return list(contents)


def check_report_file(file: Path) -> None:
    """Refuse a place that a report could not be written to, before the work that it would show.

    Raises OutputError.
    """
    if file.is_dir():
        raise OutputError(
            f"{str(file)!r} is a folder; name a file for the report, such as report.html."
        )
    if not file.absolute().parent.is_dir():
        raise OutputError(f"The folder of {str(file)!r} does not exist; create it for the report.")
