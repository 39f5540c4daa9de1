"""`weightsmith delta`: a fine-tune kept as small changes of its base, alone or in a library of many."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli import completing
from weightsmith.cli.documented import DocumentedCommand, DocumentedGroup
from weightsmith.cli.interruption import interruptible
from weightsmith.cli.options import (
    RunOptions,
    json_option,
    quiet_option,
    run_options,
    threads_option,
)
from weightsmith.cli.presenting import Block, Data, TextTable, present
from weightsmith.cli.progress_lines import open_progress
from weightsmith.cli.standard_streams import STREAMS
from weightsmith.cli.terminal_text import counted, duration
from weightsmith.cli.written import write
from weightsmith.tensors import format_size

if TYPE_CHECKING:
    from weightsmith.checkpoints import PackageHeader
    from weightsmith.packages import Deduped, Member, Removal

_BASE = click.option("--base", metavar="PATH", help="Where the base lies now, if not where it was.")
_PACKAGE = click.argument("package", type=click.Path(path_type=Path))
_LIBRARY = click.argument("library", type=click.Path(path_type=Path))


@click.group(
    cls=DocumentedGroup,
    examples=(
        "delta pack finetune --base base package",
        "delta pack finetune --base base package --budget 1/16",
        "delta unpack package checkpoint",
    ),
)
def delta() -> None:
    """Keep a fine-tune as small changes of its base.

    A package holds what changed, bit for bit or within a budget of bytes, and names its base by digest. It is a
    checkpoint wherever a model may stand: in recipes, `inspect`, `diff` and `evaluate`. A folder of packages and task
    bundles is a library.
    """


@delta.command(
    cls=DocumentedCommand,
    short_help="Make a package of a fine-tune.",
    examples=(
        "delta pack finetune --base base package",
        "delta pack finetune --base base package --budget 1/16",
        "delta pack finetune --base base package --budget 300MB --codecs sign,low_rank",
        "delta pack finetune --base base package --error 0.1",
    ),
)
@click.argument("finetune")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--base", required=True, metavar="BASE", help="The checkpoint that it was made from.")
@click.option(
    "--budget",
    metavar="SHARE|SIZE",
    help="Bytes of streams and header: a share of FINETUNE's such as 1/16, or a size such as 300MB.",
)
@click.option(
    "--error",
    type=float,
    metavar="E",
    help="Largest error of each tensor's change relative to the change, such as 0.1.",
)
@click.option(
    "--codecs",
    metavar="NAME,...",
    shell_complete=completing.names(completing.codecs, listed=True),
    help="Lossy codecs to try, with --budget or --error; default: all.",
)
@threads_option
@click.option("--force", is_flag=True, help="Replace OUT if it is a package that nobody changed.")
@json_option
@quiet_option
def pack(
    finetune: str,
    out: Path,
    base: str,
    budget: str | None,
    error: float | None,
    codecs: str | None,
    threads: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Make the package OUT of FINETUNE, a checkpoint or BASE+ADAPTER.

    Without --budget and --error every bit comes back. With them each matrix is stored in the codec that the measured
    errors of all codecs speak for; vectors and new rows stay exact. OUT appears whole or not at all.
    """
    from weightsmith.packages import pack as make

    begun = time.monotonic()
    names = None if codecs is None else [name.strip() for name in codecs.split(",")]
    with interruptible(out), open_progress(quiet) as progress:
        header = make(
            finetune,
            base,
            out,
            budget=budget,
            error=error,
            codecs=names,
            threads=threads,
            force=force,
            progress=progress,
        )
    STREAMS.done()
    made = _Package(out, header, time.monotonic() - begun)
    present(made, _package_blocks, as_json=as_json)
    return 0


@delta.command(
    cls=DocumentedCommand,
    short_help="Write a package as an ordinary checkpoint.",
    examples=(
        "delta unpack package checkpoint",
        "delta unpack package checkpoint --base elsewhere",
    ),
)
@click.argument("package")
@click.argument("out", type=click.Path(path_type=Path))
@_BASE
@run_options
def unpack(
    package: str,
    out: Path,
    base: str | None,
    **run: Any,
) -> int:
    """Write PACKAGE as the checkpoint OUT, with a manifest of its own.

    The base, every stream and every tensor that comes out are compared with their digests.
    """
    from weightsmith.packages import unpack as unpacked

    begun = time.monotonic()
    how = RunOptions(**run)
    make = partial(unpacked, package, out, base=base, **how.writing())
    return write(out, begun, make, quiet=how.quiet, as_json=how.as_json)


@delta.command(
    cls=DocumentedCommand,
    short_help="Show what a package holds.",
    examples=("delta show package", "delta show package --tensors"),
)
@_PACKAGE
@click.option("--tensors", is_flag=True, help="Also list every tensor.")
@json_option
def show(package: Path, tensors: bool, as_json: bool) -> int:
    """Show the codecs of PACKAGE, their bytes and measured errors, and its base, from headers alone."""
    from weightsmith.checkpoints import read_package_header

    found = _Package(package, read_package_header(package), with_tensors=tensors)
    present(found, _package_blocks, as_json=as_json)
    return 0


@delta.command(
    "list",
    cls=DocumentedCommand,
    short_help="Show what a library holds.",
    examples=("delta list library",),
)
@_LIBRARY
@json_option
def list_(library: Path, as_json: bool) -> int:
    """Show the members of LIBRARY: packages and the tasks of bundles, with base, codecs, bytes, ratio and error."""
    from weightsmith.packages import members

    present(_Library(members(library)), _library_blocks, as_json=as_json)
    return 0


@delta.command(
    cls=DocumentedCommand,
    short_help="Store what packages of a library have in common once.",
    examples=("delta dedupe library",),
)
@_LIBRARY
@json_option
def dedupe(library: Path, as_json: bool) -> int:
    """Store streams that several packages of LIBRARY have in common once, in LIBRARY/.shared.

    Every package stays readable at every moment; cut short, the same command goes on.
    """
    from weightsmith.packages import dedupe as share

    done = share(library)
    STREAMS.done()
    present(done, _shared_blocks, as_json=as_json)
    return 0


@delta.command(
    cls=DocumentedCommand,
    short_help="Remove what no package of a library needs.",
    examples=("delta gc library --dry-run", "delta gc library"),
)
@_LIBRARY
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@json_option
def gc(library: Path, dry_run: bool, as_json: bool) -> int:
    """Remove shared streams that no package of LIBRARY refers to, and leftovers of interrupted writes."""
    from weightsmith.packages import gc as collect

    found = _Collected(collect(library, dry_run=dry_run), removed=not dry_run)
    if not dry_run:
        STREAMS.done()
    present(found, _collected_blocks, as_json=as_json)
    return 0


@delta.command(
    cls=DocumentedCommand,
    short_help="Write a model of a library as a checkpoint.",
    examples=("delta materialise library french checkpoint",),
)
@_LIBRARY
@click.argument("name", shell_complete=completing.members)
@click.argument("out", type=click.Path(path_type=Path))
@_BASE
@run_options
def materialise(
    library: Path,
    name: str,
    out: Path,
    base: str | None,
    **run: Any,
) -> int:
    """Write the member NAME of LIBRARY (a package, or BUNDLE#TASK) as the checkpoint OUT."""
    from weightsmith.packages import materialise as made_of

    begun = time.monotonic()
    how = RunOptions(**run)
    make = partial(made_of, library, name, out, base=base, **how.writing())
    return write(out, begun, make, quiet=how.quiet, as_json=how.as_json)


@dataclass(frozen=True, slots=True)
class _Package:
    """A package as its header describes it; with `seconds`, as it has just been made."""

    place: Path
    header: PackageHeader
    seconds: float | None = None
    with_tensors: bool = False

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it: what the header has, and its sums."""
        header = self.header
        made = {} if self.seconds is None else {"out": str(self.place), "seconds": self.seconds}
        return {
            **header.to_mapping(),
            "codecs": header.codecs(),
            "bytes": header.coded_bytes,
            "dense_bytes": header.dense_bytes,
            **made,
        }


def _package_blocks(package: _Package) -> Iterator[Block]:
    header = package.header
    sizes: dict[str, list[float]] = {}
    for tensor in header.tensors.values():
        for piece in tensor.pieces:
            found = sizes.setdefault(piece.codec, [0, 0, 0.0])
            found[0] += 1
            found[1] += piece.nbytes
            found[2] = max(found[2], piece.error)
    rows = [
        (codec, f"{count:.0f}", format_size(nbytes), _error(error))
        for codec, (count, nbytes, error) in sorted(sizes.items())
    ]
    columns = ("codec", "tensors", "size", "largest error")
    yield TextTable("Codecs", columns, rows, frozenset({1, 2, 3}))
    share = header.coded_bytes / max(header.dense_bytes, 1)
    dense = format_size(header.dense_bytes)
    yield f"of      {header.reference}"
    yield f"base    {header.base_reference}, digest {header.base_digest}"
    yield f"size    {format_size(header.coded_bytes)}, {100 * share:.1f} % of {dense}"
    yield f"error   {_error(header.error)}"
    if package.with_tensors:
        yield ""
        yield _tensors(header)
    if package.seconds is not None:
        yield Data(f"{package.place}  {header.digest}  {duration(package.seconds)}")


def _tensors(header: PackageHeader) -> TextTable:
    rows = []
    for name, tensor in header.tensors.items():
        codecs = " + ".join(piece.codec for piece in tensor.pieces)
        nbytes = sum(piece.nbytes for piece in tensor.pieces)
        codec = f"as {tensor.same_as}" if tensor.same_as is not None else codecs
        lengths = " x ".join(map(str, tensor.shape))
        error = _error(tensor.error)
        rows.append((name, lengths, str(tensor.dtype), codec, format_size(nbytes), error))
    columns = ("tensor", "shape", "dtype", "codec", "size", "error")
    return TextTable("Tensors", columns, rows, frozenset({4, 5}))


@dataclass(frozen=True, slots=True)
class _Library:
    """What a library holds."""

    members: Sequence[Member]

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"members": [member.to_mapping() for member in self.members]}


def _library_blocks(library: _Library) -> Iterator[Block]:
    rows = [
        (
            m.name,
            Path(m.base).name,
            m.problem or _mix(m.codecs),
            format_size(m.nbytes),
            f"{100 * m.ratio:.1f} %",
            "" if m.error is None else _error(m.error),
        )
        for m in library.members
    ]
    columns = ("name", "base", "codecs", "size", "of dense", "error")
    yield TextTable("Models", columns, rows, frozenset({3, 4, 5}), spare=(1, 4))
    total = format_size(sum(m.nbytes for m in library.members))
    yield f"{counted(len(library.members), 'model')}, {total}"


@dataclass(frozen=True, slots=True)
class _Collected:
    """What no package needs, and whether it has been removed."""

    removals: Sequence[Removal]
    removed: bool

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(removal.nbytes for removal in self.removals)

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        paths = [{"path": str(r.path), "bytes": r.nbytes} for r in self.removals]
        return {"removed": self.removed, "bytes": self.nbytes, "paths": paths}


def _collected_blocks(collected: _Collected) -> Iterator[Block]:
    for removal in collected.removals:
        yield Data(f"{removal.path}  {format_size(removal.nbytes)}")
    word = "freed" if collected.removed else "would be freed"
    things = counted(len(collected.removals), "thing")
    yield f"{things}, {format_size(collected.nbytes)} {word}"


def _shared_blocks(done: Deduped) -> Iterator[Block]:
    freed = format_size(done.freed)
    streams, packages = counted(done.streams, "shared stream"), counted(done.packages, "package")
    yield f"{streams}, {packages} made smaller, {freed} freed"


def _mix(codecs: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {codec}" for codec, count in codecs.items())


def _error(error: float) -> str:
    return "none" if error == 0 else f"{error:.3g}"
