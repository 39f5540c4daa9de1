"""Streams that several packages of a library have in common, stored once.

`dedupe` writes a stream into `.shared` first, durably, then makes the packages anew without it, one after the other,
each by one rename; a package looks for its streams at home first and then there. So every package can be read whenever
the work is cut short, and the next call goes on. `gc` removes what no package refers to.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightsmith.checkpoints import SHARED, STREAMS, read_package_header, shared_file, shared_stream
from weightsmith.engine import Journal, Staging
from weightsmith.errors import CheckpointError, OutputError
from weightsmith.packages.package_library import (
    absent_streams,
    folders_of,
    own_streams,
    packages_of,
)
from weightsmith.packages.package_streams import write_streams
from weightsmith.packages.packing import PLAN
from weightsmith.publishing import SUFFIX, staged_name
from weightsmith.tensors import (
    OPEN_FILES,
    LazyTensor,
    chunks_of,
    digest_tensor,
    expanded,
    shown,
    sync_folder,
)

# Smaller streams stay where they are: a file of their own would take as much room.
SMALLEST = 4096
_LOCK = "lock"
_STREAM = "stream"


@dataclass(frozen=True, slots=True)
class Deduped:
    """What `dedupe` did: streams that are stored once now, packages that were made smaller, bytes that were freed."""

    streams: int
    packages: int
    freed: int

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Removal:
    """One thing that no package needs, and its bytes."""

    path: Path
    nbytes: int


def dedupe(library: str | Path) -> Deduped:
    """Store equal streams of the packages in a library once.

    Raises CheckpointError for a package that is damaged, before anything of it is changed; OutputError while another
    `dedupe` or `gc` works there.
    """
    library = expanded(library)
    found = packages_of(library)
    if not found:
        return Deduped(0, 0, 0)
    try:
        for folder in found:
            own_streams(folder)
            read_package_header(folder)
        (library / SHARED).mkdir(exist_ok=True)
        with _locked(library):
            return _dedupe(library, found)
    finally:
        OPEN_FILES.close()


def _dedupe(library: Path, found: list[Path]) -> Deduped:
    before = _size(library)
    shared = library / SHARED
    uses: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for folder in found:
        own = own_streams(folder)
        for name, digest in read_package_header(folder).streams.items():
            uses[digest] = uses.get(digest, 0) + 1
            if name in own:
                sizes[digest] = own[name].nbytes
    wanted = {d for d, size in sizes.items() if uses[d] > 1 and size >= SMALLEST}
    changed = [folder for folder in found if _move(folder, shared, wanted)]
    return Deduped(len(wanted), len(changed), before - _size(library))


def _move(folder: Path, shared: Path, wanted: set[str]) -> bool:
    """Make a package anew without the streams that are wanted elsewhere; False if it has none of them."""
    header, own = read_package_header(folder), own_streams(folder)
    leaving = {n: d for n, d in header.streams.items() if n in own and d in wanted}
    for name, digest in leaving.items():
        _put(shared, digest, own[name])
    if leaving:
        staying = {name: stream for name, stream in own.items() if name not in leaving}
        write_streams(folder / STREAMS, staying)
    return bool(leaving)


def _put(shared: Path, digest: str, stream: LazyTensor) -> None:
    """Have a stream among the shared ones, byte for byte."""
    found = digest_tensor(stream)
    if found != digest:
        raise CheckpointError(
            f"{stream.location} has the digest {found}, but {digest} is on record: the package is damaged, fetch it "
            "or make it again."
        )
    file = shared_file(shared, digest)
    if file.exists():
        there = shared_stream(shared, digest)
        pairs = zip(chunks_of(there), chunks_of(stream), strict=False)
        if there.nbytes == stream.nbytes and all(a == b for a, b in pairs):
            return
        if digest_tensor(there) == digest:
            raise CheckpointError(
                f"{shown(file)} and {stream.location} differ under one digest: one of them is forged, remove it."
            )
    write_streams(file, {_STREAM: stream})


def garbage(library: str | Path) -> list[Removal]:
    """What no package in a library refers to: shared streams, and leftovers of writing that was cut short.

    Raises CheckpointError if a package cannot be read, because what it needs is then unknown.
    """
    library = expanded(library)
    needed = set()
    for folder in packages_of(library):
        needed |= {shared_file(library / SHARED, d) for d in absent_streams(folder).values()}
    shared = library / SHARED
    files = sorted(shared.iterdir()) if shared.is_dir() and not shared.is_symlink() else []
    unneeded = [
        file for file in files if file not in needed and file.name != _LOCK and _is_own(file)
    ]
    for folder in packages_of(library):
        unneeded += [half for half in sorted(folder.iterdir()) if staged_name(half) == STREAMS]
    unneeded += sorted(e for e in library.glob(f"*{SUFFIX}") if _is_unfinished_package(e))
    return [Removal(path, _size(path)) for path in unneeded]


def gc(library: str | Path, *, dry_run: bool = False) -> list[Removal]:
    """Remove `garbage`, or with `dry_run` only say what it is.

    Raises what `garbage` raises, and OutputError while another `dedupe` or `gc` works there.
    """
    library = expanded(library)
    folders_of(library)
    with _locked(library):
        found = garbage(library)
        if not dry_run:
            for removal in found:
                _remove(removal.path)
            for folder in {removal.path.parent for removal in found}:
                sync_folder(folder)
        return found


def _is_own(file: Path) -> bool:
    """Whether a file among the shared ones can only be weightsmith's, by its name."""
    stem = (staged_name(file) or file.name).removesuffix(".safetensors")
    return len(stem) == 32 and set(stem) <= set("0123456789abcdef") and not file.is_dir()


def _is_unfinished_package(folder: Path) -> bool:
    """Whether a staging folder is of a package that nobody is writing any more."""
    journal = folder / "journal.jsonl"
    if folder.is_symlink() or not folder.is_dir() or not journal.is_file():
        return False
    # Before the journal is opened, which mends a torn line: a run that is under way mends its own.
    if _is_locked(folder / _LOCK):
        return False
    with suppress(OutputError, OSError):
        read = Journal(journal)
        read.close()
        return read.plan == PLAN
    return False


def _is_locked(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _remove(path: Path) -> None:
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    with suppress(OutputError), Staging(path.with_name(path.name.removesuffix(SUFFIX))) as staging:
        staging.discard()


def _size(path: Path) -> int:
    if path.is_dir() and not path.is_symlink():
        return sum(_size(entry) for entry in path.iterdir())
    return path.lstat().st_size


@contextmanager
def _locked(library: Path) -> Iterator[None]:
    """Keep another `dedupe` or `gc` away; without shared streams there is nothing to keep it away from."""
    shared = library / SHARED
    if not shared.is_dir():
        yield
        return
    descriptor = os.open(
        shared / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666
    )
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"Another run works on the library {str(library)!r} at this moment; wait for it."
            ) from None
        except OSError:
            # Some network file systems have no locks.
            pass
        yield
    finally:
        os.close(descriptor)
