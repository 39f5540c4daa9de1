"""A library: a folder of delta packages and task bundles, of which any member can be made a checkpoint again.

LIBRARY/
  NAME/...     a package, or a bundle whose tasks are the members NAME#TASK
  .shared/     streams that several packages have in common, each in a file named by its digest

Whatever else lies there is left alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightsmith.checkpoints import (
    PACKAGE_HEADER,
    SHARED,
    STREAMS,
    bundles,
    is_bundle,
    is_package,
    open_checkpoint,
    open_packed,
    open_task,
    read_package_header,
    shared_file,
)
from weightsmith.engine import Manifest, run
from weightsmith.errors import CheckpointError, UsageError
from weightsmith.naming import nearest
from weightsmith.packages.unpacking import copy_plan, unpack
from weightsmith.publishing import SUFFIX
from weightsmith.tensors import LazyTensor, expanded, parse_file, shown


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a library.

    `nbytes` is what it takes on disk: header and streams, of streams and bundles that are shared its equal part.
    `dense_bytes` are those of the checkpoint that it decodes to, `error` the relative error of its change (None where
    none was measured). `problem` says why it cannot be read.
    """

    name: str
    kind: str
    base: str = ""
    base_digest: str = ""
    codecs: Mapping[str, int] = field(default_factory=dict)
    nbytes: float = 0.0
    dense_bytes: int = 0
    error: float | None = None
    problem: str = ""

    @property
    def ratio(self) -> float:
        """Bytes on disk by bytes of the checkpoint."""
        return self.nbytes / self.dense_bytes if self.dense_bytes else 0.0

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "base": self.base,
            "base_digest": self.base_digest,
            "codecs": dict(self.codecs),
            "bytes": self.nbytes,
            "dense_bytes": self.dense_bytes,
            "ratio": self.ratio,
            "error": self.error,
            "problem": self.problem,
        }


def folders_of(library: Path) -> list[Path]:
    """The folders in a library that may be members, by name; links, hidden folders and unfinished ones are left out.

    Raises UsageError if `library` is no folder, or is a package itself.
    """
    if not library.is_dir():
        raise UsageError(f"{str(library)!r} is no folder: give the folder that holds the packages.")
    if is_package(library):
        raise UsageError(f"{str(library)!r} is a package itself: give the folder that holds it.")
    return sorted(
        entry
        for entry in library.iterdir()
        if entry.is_dir()
        and not entry.is_symlink()
        and not entry.name.startswith(".")
        and not entry.name.endswith(SUFFIX)
    )


def packages_of(library: Path) -> list[Path]:
    """The packages in a library, by name."""
    return [folder for folder in folders_of(library) if is_package(folder)]


def members(library: str | Path) -> list[Member]:
    """What a library holds, from headers alone, by name; folders that are neither packages nor bundles are left out."""
    library = expanded(library)
    shared = _shared_uses(library)
    return [member for folder in folders_of(library) for member in _members_in(folder, shared)]


def _members_in(folder: Path, shared: Mapping[str, int]) -> list[Member]:
    try:
        if is_package(folder):
            return [_package(folder, shared)]
        return _tasks(folder) if is_bundle(folder) else []
    except CheckpointError as error:
        kind = "package" if is_package(folder) else "bundle"
        return [Member(folder.name, kind, problem=str(error))]


def _shared_uses(library: Path) -> dict[str, int]:
    """How many streams of packages lie in each shared file, by digest."""
    uses: dict[str, int] = {}
    for folder in packages_of(library):
        with suppress(CheckpointError):
            for digest in absent_streams(folder).values():
                uses[digest] = uses.get(digest, 0) + 1
    return uses


def absent_streams(folder: Path) -> dict[str, str]:
    """The streams, by name, that a package does not hold itself, with their digests.

    Raises CheckpointError for a package that is damaged.
    """
    there = {tensor.name for tensor in own_streams(folder).values()}
    return {name: d for name, d in read_package_header(folder).streams.items() if name not in there}


def own_streams(folder: Path) -> dict[str, LazyTensor]:
    """The streams that lie in a package's own file, by name. Raises CheckpointError for a file that is damaged."""
    file = folder / STREAMS
    if not file.is_file() or file.is_symlink():
        raise CheckpointError(f"{shown(folder)} has no {STREAMS}: fetch the package again.")
    return {tensor.name: tensor for tensor in parse_file(file).tensors}


def _package(folder: Path, shared: Mapping[str, int]) -> Member:
    header = read_package_header(folder)
    absent = absent_streams(folder)
    nbytes: float = (folder / PACKAGE_HEADER).stat().st_size + (folder / STREAMS).stat().st_size
    for digest in absent.values():
        file = shared_file(folder.parent / SHARED, digest)
        nbytes += file.stat().st_size / shared.get(digest, 1) if file.is_file() else 0
    return Member(
        folder.name,
        "package",
        header.base_reference,
        header.base_digest,
        header.codecs(),
        nbytes,
        header.dense_bytes,
        header.error,
    )


def _tasks(folder: Path) -> list[Member]:
    header = bundles.read_bundle_header(folder)
    stored = sum(tensor.nbytes for tensor in open_packed(folder).tensors.values())
    coded = sum(tensor.coded for tensor in header.tensors.values())
    found = []
    for task in header.tasks:
        name = f"{folder.name}#{task.label}"
        opened = open_task(folder, task.label)
        dense = sum(tensor.nbytes for tensor in opened.tensors.values())
        share = stored / len(header.tasks)
        codecs = {header.method: coded}
        found.append(
            Member(name, "task", header.base_reference, header.base_digest, codecs, share, dense)
        )
    return found


def materialise(
    library: str | Path,
    name: str,
    out: str | Path,
    *,
    base: str | Path | None = None,
    **options: Any,
) -> Manifest:
    """Write the member `name` (a package, or BUNDLE#TASK) of a library as the checkpoint `out`; returns its manifest.

    `options` are those of `unpack`. Raises UsageError if there is no such member, and what unpacking raises.
    """
    library = expanded(library)
    folder, _, task = name.partition("#")
    place = library / folder
    if place not in folders_of(library) or not (is_package(place) or is_bundle(place)):
        names = [member.name for member in members(library)]
        near = nearest(name, names)
        hint = f"did you mean {near!r}?" if near else _listed(names)
        raise UsageError(f"The library {str(library)!r} has no model {name!r}; {hint}")
    if is_package(place) and not task:
        return unpack(place, out, base=base, **options)
    running = {key: options.pop(key) for key in ("force", "fresh", "progress") if key in options}
    reference = f"{place}#{task}"
    opened = open_task(place, task, base=base) if task else open_checkpoint(place, base=base)
    return run(copy_plan(opened, reference, **options), Path(out), **running)


def _listed(names: list[str]) -> str:
    if not names:
        return "it is empty."
    some = ", ".join(repr(name) for name in itertools.islice(names, 10))
    return f"there are {some}{' and others' if len(names) > 10 else ''}."
