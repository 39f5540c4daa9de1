"""`weightsmith testbed`: real model families, trained on this machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli import completing
from weightsmith.cli.documented import DocumentedCommand, DocumentedGroup
from weightsmith.cli.interruption import INTERRUPTED
from weightsmith.cli.options import json_option, quiet_option
from weightsmith.cli.presenting import Block, Data, TextTable, present
from weightsmith.cli.progress_lines import open_progress
from weightsmith.cli.standard_streams import STREAMS
from weightsmith.cli.terminal_text import duration

if TYPE_CHECKING:
    from weightsmith.testbeds import TrainedFamily


@click.group(
    cls=DocumentedGroup,
    examples=("testbed list", "testbed build vision-tiny"),
)
def testbed() -> None:
    """Build real model families to merge and to evaluate.

    A family is a base, its experts, held-out data and suites. It is trained on this machine, from data that comes
    inside packages, and the same everywhere where the libraries have the same versions.
    """


@testbed.command(
    "list",
    cls=DocumentedCommand,
    short_help="Show the families.",
    examples=("testbed list",),
)
@json_option
def list_(as_json: bool) -> int:
    """Show the families, what they need, and which are built."""
    from weightsmith.testbeds import FAMILIES

    families = _Families(tuple(map(_placed, FAMILIES.values())))
    present(families, _list_blocks, as_json=as_json)
    return 0


@dataclass(frozen=True, slots=True)
class _Placed:
    """A family, where it lies in the cache, and whether it is built."""

    family: TrainedFamily
    folder: Path
    is_built: bool

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        family = self.family
        return {
            "name": family.name,
            "title": family.title,
            "needs": list(family.needs),
            "download_megabytes": family.download_megabytes,
            "cpu_minutes": family.cpu_minutes,
            "path": str(self.folder),
            "is_built": self.is_built,
        }


def _placed(family: TrainedFamily) -> _Placed:
    from weightsmith.testbeds import RECORD, family_folder

    folder = family_folder(family.name)
    return _Placed(family, folder, (folder / RECORD).is_file())


@dataclass(frozen=True, slots=True)
class _Families:
    """All families."""

    families: Sequence[_Placed]

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"families": [one.to_mapping() for one in self.families]}


def _list_blocks(found: _Families) -> Iterator[Block]:
    rows = [
        (
            one.family.name,
            one.family.title,
            f"{one.family.download_megabytes} MB",
            duration(60 * one.family.cpu_minutes),
            "yes" if one.is_built else "no",
        )
        for one in found.families
    ]
    heads = ("family", "what it is", "download", "CPU time", "built")
    yield TextTable("Families", heads, rows, frozenset({2, 3}))


@testbed.command(
    cls=DocumentedCommand,
    short_help="Train a family.",
    examples=("testbed build vision-tiny", "testbed build vision --out families/vision"),
)
@click.argument("name", shell_complete=completing.names(completing.families))
@click.option(
    "--out", metavar="DIR", type=click.Path(path_type=Path), help="Where to, if not into the cache."
)
@click.option("--force", is_flag=True, help="Build again what is built, and replace it.")
@click.option(
    "--fresh", is_flag=True, help="Discard an interrupted build instead of going on with it."
)
@json_option
@quiet_option
def build(name: str, out: Path | None, force: bool, fresh: bool, as_json: bool, quiet: bool) -> int:
    """Train the family NAME and write its checkpoints, data, suites and family.json.

    One that is built already is left as it is. An interrupted build keeps what it finished and goes on.
    """
    from weightsmith.testbeds import build as building

    begun = time.monotonic()
    try:
        with open_progress(quiet) as progress:
            folder = building.build(name, out, force=force, fresh=fresh, progress=progress)
    except KeyboardInterrupt:
        line = "finished models are safe, and the same command goes on from there"
        print(f"weightsmith: interrupted: {line}.", file=sys.stderr)
        return INTERRUPTED
    STREAMS.done()
    built = _Built(name, folder, time.monotonic() - begun)
    present(built, _built_blocks, as_json=as_json)
    return 0


@dataclass(frozen=True, slots=True)
class _Built:
    """A family that has been built, or was there already."""

    name: str
    folder: Path
    seconds: float

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"name": self.name, "path": str(self.folder), "seconds": self.seconds}


def _built_blocks(built: _Built) -> Iterator[Block]:
    yield Data(f"{built.folder}  {duration(built.seconds)}")


@testbed.command(
    cls=DocumentedCommand,
    short_help="Show where a family lies.",
    examples=("testbed path vision-tiny",),
)
@click.argument("name", shell_complete=completing.names(completing.families))
@json_option
def path(name: str, as_json: bool) -> int:
    """Show the folder of the family NAME in the cache; the exit code is 1 where it is not built yet."""
    from weightsmith.testbeds import find_family

    found = _placed(find_family(name))
    present(found, _path_blocks, as_json=as_json)
    if found.is_built:
        return 0
    there = f"`weightsmith testbed build {name}` builds it there"
    print(f"weightsmith: {name} is not built; {there}.", file=sys.stderr)
    return 1


def _path_blocks(found: _Placed) -> Iterator[Block]:
    yield Data(str(found.folder))
