"""`--json FILE`: results as a file, checked before the work for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from weightsmith.cli.streams import STREAMS
from weightsmith.errors import UsageError


def check_json_file(
    file: Path | None, kind: str, reads: Iterable[Path], report_file: Path | None
) -> None:
    """Refuse a --json FILE that may not or could not be written; `reads` is what the command reads."""
    if file is None:
        return
    from weightsmith.publishing.files import check_file

    if report_file is not None and file.absolute() == report_file.absolute():
        raise UsageError(f"--json and --report both name {str(file)!r}; name two files.")
    check_file(file, kind, reads)


def write_json_file(
    file: Path, content: Mapping[str, Any], kind: str, reads: Iterable[Path]
) -> None:
    """Write results of a kind, sealed, so that the same command may replace them."""
    from weightsmith.publishing.files import publish_file
    from weightsmith.publishing.seals import sealed_json

    publish_file(file, sealed_json(content, kind), kind, reads)
    STREAMS.done()
