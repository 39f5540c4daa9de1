"""`weightsmith testbed`: real model families, trained on this machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli import completing
from weightsmith.cli.documented import DocumentedCommand, DocumentedGroup
from weightsmith.cli.interruption import INTERRUPTED
from weightsmith.cli.options import json_option
from weightsmith.cli.presenting import Block, Data, TextTable, present
from weightsmith.cli.standard_streams import STREAMS
from weightsmith.cli.terminal_text import duration, harmless

if TYPE_CHECKING:
    from weightsmith.testbeds import TrainedFamily

_EVERY_SECONDS = 5.0


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
@click.option("--quiet", is_flag=True, help="Show no progress.")
def build(name: str, out: Path | None, force: bool, fresh: bool, as_json: bool, quiet: bool) -> int:
    """Train the family NAME and write its checkpoints, data, suites and family.json.

    One that is built already is left as it is. An interrupted build keeps what it finished and goes on.
    """
    from weightsmith.testbeds import build as building

    begun = time.monotonic()
    progress = building.SilentBuild() if quiet else BuildLines(_to_stderr)
    try:
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
    _to_stderr(
        f"weightsmith: {name} is not built; `weightsmith testbed build {name}` builds it there."
    )
    return 1


def _path_blocks(found: _Placed) -> Iterator[Block]:
    yield Data(str(found.folder))


class BuildLines:
    """A build's progress as lines: a line at a step's beginning and end, and one every few seconds within."""

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._clock = write, clock
        self._total = self._done = self._made = self._cost = 0.0
        self._begun = self._step_begun = self._said = clock()
        self._name = ""

    def start(self, total_cost: float, finished_cost: float) -> None:
        """Say how long it will take, or what an earlier build has done."""
        self._total, self._done, self._begun = total_cost, finished_cost, self._clock()
        if finished_cost:
            self._write(f"resuming: {100 * finished_cost / total_cost:.0f} % are finished")
        else:
            self._write(f"building: about {duration(total_cost)} of CPU time")

    def step(self, name: str, cost: float) -> None:
        """Say which step begins."""
        self._name, self._cost = name, cost
        self._step_begun = self._said = self._clock()
        self._write(f"{self._share(0)}  {harmless(name)}")

    def within(self, done: int, total: int) -> None:
        """Say how far the step is, how fast it goes and how long the build will take, every few seconds."""
        now = self._clock()
        if not done or now - self._said < _EVERY_SECONDS:
            return
        self._said = now
        rate = done / max(now - self._step_begun, 1e-9)
        share = done / total
        line = f"{self._share(share)}  {harmless(self._name)}  {done:,} of {total:,}  {rate:.1f}/s"
        self._write(f"{line}  {self._left(share, now)} left")

    def finished(self, name: str, figures: Mapping[str, Any]) -> None:
        """Count the step."""
        self._done += self._cost
        self._made += self._cost
        took = duration(self._clock() - self._step_begun)
        self._write(f"{self._share(0)}  {harmless(name)} finished in {took}")

    def _share(self, within: float) -> str:
        return f"{100 * (self._done + within * self._cost) / self._total:3.0f} %"

    def _left(self, within: float, now: float) -> str:
        """The time left, if what remains costs as much per expected second as what this build has done."""
        made = self._made + within * self._cost
        remaining = self._total - self._done - within * self._cost
        return duration(remaining * (now - self._begun) / max(made, 1e-9))


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
