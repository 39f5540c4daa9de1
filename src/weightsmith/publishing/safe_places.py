"""Where an output may be put: nowhere in, at or around what is read for it, and not through a link."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from weightsmith.errors import OutputError
from weightsmith.publishing.records import RECORDS
from weightsmith.tensors import expanded, shown

# What is put behind the name of an output for the folder where it grows.
SUFFIX = ".partial"


def staging_folder(out: Path) -> Path:
    """Where the output folder `out` grows."""
    return out.with_name(out.name + SUFFIX)


def check_place(out: Path, reads: Iterable[Path]) -> Path:
    """The absolute path of an output, once it is clear that writing there can harm nothing that is read.

    `reads` are the folders and files that the command reads. Raises OutputError for one of them, for a place inside or
    around one, for a place inside another output, which would no longer be as its record has it, for a link, and where
    nothing can be written.
    """
    out = Path(os.path.abspath(expanded(out)))
    refuse_inputs(out, reads)
    if out.is_symlink():
        raise OutputError(f"The output {shown(out)} is a symbolic link; name the real place.")
    if not out.parent.is_dir():
        raise OutputError(
            f"The folder {shown(out.parent)} for the output does not exist; create it first."
        )
    if not os.access(out.parent, os.W_OK):
        raise OutputError(
            f"The folder {shown(out.parent)} cannot be written to; choose another place for the output."
        )
    refuse_recorded(out)
    return out


def refuse_recorded(out: Path) -> None:
    """Raise OutputError for a place inside another output, which would no longer be as its record has it."""
    for folder in Path(os.path.realpath(out)).parents:
        if any((folder / name).is_file() for name in RECORDS):
            raise OutputError(
                f"The output {shown(out)} lies inside {shown(folder)}, whose record names all that is in it; choose a "
                "place outside of it."
            )


def refuse_inputs(out: Path, reads: Iterable[Path]) -> None:
    """Raise OutputError for an output that is, lies inside, or would hold one of the folders and files that are
    read, and for the root of all folders, which would hold everything.
    """
    real = Path(os.path.realpath(out))
    if not real.name:
        raise OutputError(f"{shown(out)} cannot be an output; name a place below it.")
    staged = staging_folder(real)
    for path in reads:
        source = Path(os.path.realpath(path))
        if real == source:
            raise OutputError(
                f"The output {shown(out)} is also an input; choose another place, inputs are never changed."
            )
        if source in real.parents and source.is_dir():
            raise OutputError(
                f"The output {shown(out)} lies inside the input {shown(path)}; choose a place outside of it."
            )
        if real in source.parents or staged in (source, *source.parents):
            raise OutputError(
                f"The output {shown(out)} contains the input {shown(path)}; choose another place."
            )
