"""Input files, opened once and read by position from any thread.

Descriptors are kept in a process-wide cache of at most `LIMIT`, because a checkpoint may have ten
thousand shards. Files are read with positional reads and never mapped: a mapped file that is
truncated under us kills the process (SIGBUS), a read gives an error.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from weightsmith.errors import CheckpointError
from weightsmith.tensors.messages import shown

LIMIT = 64

# O_NONBLOCK keeps the opening of a FIFO from waiting for a writer; it means nothing for regular files.
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class FileIdentity(NamedTuple):
    """What tells whether a file is still the one whose header was read."""

    inode: int
    size: int
    modified_ns: int


@dataclass(slots=True)
class _Entry:
    descriptor: int
    identity: FileIdentity
    readers: int = 0


_Key = tuple[str, FileIdentity]


class OpenFiles:
    """A bounded, thread-safe cache of read-only descriptors; the least recently used idle one is
    closed first.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def opened(self, path: Path, identity: FileIdentity | None = None) -> _Loan:
        """Lend a descriptor of the regular file at `path`, with the identity it had when it was
        opened.

        Raises `CheckpointError` if it cannot be opened, is not a regular file, or is not the file
        of `identity` any more.
        """
        return _Loan(self, path, identity)

    def take(self, path: Path, identity: FileIdentity | None) -> _Entry:
        """A descriptor with one reader more, who gives it back; `opened` does both."""
        if identity is not None:
            key = (str(path), identity)
            with self._lock:
                entry = self._entries.get(key)
                if entry is not None:
                    self._entries.move_to_end(key)
                    entry.readers += 1
                    return entry
        descriptor, found = _open(path)
        if identity is not None and found != identity:
            os.close(descriptor)
            raise CheckpointError(changed(path))
        with self._lock:
            entry = self._entries.setdefault((str(path), found), _Entry(descriptor, found))
            if entry.descriptor != descriptor:
                os.close(descriptor)
            entry.readers += 1
            self._close_idle()
        return entry

    def give_back(self, entry: _Entry) -> None:
        """Let a descriptor be closed when room is needed."""
        with self._lock:
            entry.readers -= 1
            if len(self._entries) > self._limit:
                self._close_idle()

    def _close_idle(self) -> None:
        excess = len(self._entries) - self._limit
        if excess <= 0:
            return
        idle = [key for key, entry in self._entries.items() if entry.readers == 0]
        for key in idle[:excess]:
            os.close(self._entries.pop(key).descriptor)

    def close(self) -> None:
        """Close every descriptor that nobody reads at the moment."""
        with self._lock:
            for key in [key for key, entry in self._entries.items() if entry.readers == 0]:
                os.close(self._entries.pop(key).descriptor)


class _Loan:
    """A descriptor that is lent for the length of a `with`; a class, because a generator costs more than the read."""

    __slots__ = ("_entry", "_files", "_identity", "_path")

    def __init__(self, files: OpenFiles, path: Path, identity: FileIdentity | None) -> None:
        self._files = files
        self._path = path
        self._identity = identity

    def __enter__(self) -> tuple[int, FileIdentity]:
        self._entry = self._files.take(self._path, self._identity)
        return self._entry.descriptor, self._entry.identity

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.give_back(self._entry)


OPEN_FILES = OpenFiles()


def _open(path: Path) -> tuple[int, FileIdentity]:
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"{shown(path)} cannot be opened ({reason}): check the path and its permissions."
        ) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise CheckpointError(
            f"{shown(path)} is not a regular file but {kind_of(status.st_mode)}: name a checkpoint file."
        )
    return descriptor, _identity(status)


def _identity(status: os.stat_result) -> FileIdentity:
    return FileIdentity(status.st_ino, status.st_size, status.st_mtime_ns)


def kind_of(mode: int) -> str:
    """What lies where a regular file should, by its mode: "a folder", "a named pipe"..."""
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a named pipe", stat.S_ISSOCK: "a socket"}
    return next((kind for test, kind in kinds.items() if test(mode)), "a device")


def changed(path: Path) -> str:
    """The message for a file that is not the one whose header was read."""
    return (
        f"{shown(path)} changed after its header was read (size, time or inode differ): leave inputs alone while they "
        "are being read, and start again."
    )


def check_unchanged(descriptor: int, identity: FileIdentity, path: Path) -> None:
    """Raise `CheckpointError` if the open file was written to or truncated since `identity` was
    taken.
    """
    status = os.fstat(descriptor)
    if (status.st_ino, status.st_size, status.st_mtime_ns) != identity:
        raise CheckpointError(changed(path))


def read_at(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` (bytes) from byte `offset`; returns how many bytes there were before the end of
    the file.

    Short reads are continued; interrupted ones are retried by Python itself. Raises `OSError` if
    the disk fails.
    """
    done = 0
    while done < len(buffer):
        count = _read_once(descriptor, buffer[done:], offset + done)
        if count == 0:
            break
        done += count
    return done


if hasattr(os, "preadv"):

    def _read_once(descriptor: int, buffer: memoryview, offset: int) -> int:
        return os.preadv(descriptor, [buffer], offset)

else:  # systems without preadv pay one copy

    def _read_once(descriptor: int, buffer: memoryview, offset: int) -> int:
        data = os.pread(descriptor, len(buffer), offset)
        buffer[: len(data)] = data
        return len(data)


def read_bytes(descriptor: int, path: Path, offset: int, length: int, what: str) -> bytes:
    """Exactly `length` bytes at `offset`; raises `CheckpointError` naming `what` if the file is
    shorter or cannot be read.
    """
    buffer = bytearray(length)
    try:
        count = read_at(descriptor, memoryview(buffer), offset)
    except OSError as error:
        raise CheckpointError(
            f"{shown(path)}: {what} at byte {offset} cannot be read ({error.strerror})."
        ) from error
    if count < length:
        raise CheckpointError(
            f"{shown(path)} ends at byte {offset + count}, inside {what}: the file is truncated, fetch it again."
        )
    return bytes(buffer)
