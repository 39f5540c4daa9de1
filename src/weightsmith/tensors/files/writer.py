"""Writing that ends in one of two ways: the bytes are safely on the disk, or there is an error that
says why not.

A shard file gets its full size and its header first; tiles are then written to their final places,
from any thread and in any order; `finish` makes them durable. Nothing here decides when an output
becomes visible: the caller writes into a staging folder and renames it.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from weightsmith.errors import OutputError, ResourceError, WeightsmithError
from weightsmith.tensors.files.layout import Placement, Shard
from weightsmith.tensors.files.open_files import read_at
from weightsmith.tensors.messages import shown
from weightsmith.wording import advice_on

if TYPE_CHECKING:
    from weightsmith.tensors.stored import Buffer

# The process's umask takes away what the user does not want to grant.
_MODE = 0o666
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_ALLOCATION = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write on the file system of `path`."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def failure(error: OSError, path: Path, doing: str, need: int) -> WeightsmithError:
    """The error for a failed system call: full disks, quotas and limits are resources, the rest is
    output.
    """
    reason = error.strerror or str(error)
    if error.errno not in _FULL:
        return OutputError(f"{shown(path)} could not be {doing} ({reason}): {advice_on(error)}.")
    try:
        free = f"{free_bytes(path.parent)} bytes are free there"
    except OSError:
        free = "the free space there is unknown"
    return ResourceError(
        f"{shown(path)} could not be {doing} ({reason}): {need} bytes are needed and {free}; free some space or "
        "raise the limit, then run the same command again."
    )


def pwrite_all(descriptor: int, buffer: Buffer, offset: int, path: Path) -> None:
    """Write all bytes of `buffer` at byte `offset`; thread-safe; short writes are continued.

    Raises `ResourceError` if the disk, a quota or the file size limit is exhausted, `OutputError`
    for other failures.
    """
    view = memoryview(buffer)
    if view.nbytes == 0:
        return
    view = view.cast("B")
    done = 0
    while done < len(view):
        try:
            written = os.pwrite(descriptor, view[done:], offset + done)
        except OSError as error:
            doing = f"written at byte {offset + done}"
            raise failure(error, path, doing, len(view) - done) from error
        if written == 0:
            raise OutputError(
                f"{shown(path)} takes no bytes at byte {offset + done}: check the disk."
            )
        done += written


def sync_file(descriptor: int, path: Path) -> None:
    """Wait until the file's bytes are on the disk; raises `OutputError` if the disk says they are
    not.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise failure(error, path, "made durable", 0) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; raises `OutputError` on failure."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder; they make names durable by themselves.
        if error.errno not in _NO_ALLOCATION:
            raise failure(error, folder, "made durable", 0) from error


class ShardWriter:
    """One output shard, open for writing; `write` may be called from any thread, in any order of
    tiles.
    """

    def __init__(self, path: Path, shard: Shard, descriptor: int) -> None:
        self.path = path
        self.shard = shard
        self._descriptor = descriptor
        # The kernel lets one thread write to a file at a time, and the others spin until it is done.
        self._lock = threading.Lock()

    @classmethod
    def create(cls, folder: Path, shard: Shard) -> ShardWriter:
        """Create the shard's file in `folder`, with its space allocated and its header written.

        Raises `OutputError` if the file exists already, `ResourceError` if there is no room; then
        no file is left.
        """
        path = folder / shard.file_name
        descriptor = _open(path, os.O_CREAT | os.O_EXCL, shard.size)
        try:
            allocate(descriptor, shard.size, path)
            pwrite_all(descriptor, shard.header, 0, path)
        except BaseException:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        return cls(path, shard, descriptor)

    @classmethod
    def reopen(cls, folder: Path, shard: Shard) -> ShardWriter | None:
        """Continue an interrupted shard; None if its file is missing, or is not this shard's (size
        or header differ).

        Which of its tensors are finished is for the caller's journal to say.
        """
        path = folder / shard.file_name
        if not path.exists() and not path.is_symlink():
            return None
        descriptor = _open(path, 0, shard.size)
        try:
            status = os.fstat(descriptor)
            header = bytearray(len(shard.header))
            matches = stat.S_ISREG(status.st_mode) and status.st_size == shard.size
            matches = matches and read_at(descriptor, memoryview(header), 0) == len(header)
        except OSError as error:
            os.close(descriptor)
            raise failure(error, path, "continued", shard.size) from error
        if matches and header == shard.header:
            return cls(path, shard, descriptor)
        os.close(descriptor)
        return None

    def write(self, placement: Placement, start: int, buffer: Buffer) -> None:
        """Write elements of a tensor from element `start` on; `buffer` holds little-endian bytes of
        its dtype.

        Raises `ResourceError` or `OutputError`, and `ValueError` if the elements are not inside the
        tensor.
        """
        itemsize = placement.dtype.itemsize
        nbytes = memoryview(buffer).nbytes
        if start < 0 or start * itemsize + nbytes > placement.nbytes:
            raise ValueError(
                f"{nbytes} bytes from element {start} do not fit into {placement.name!r}"
            )
        with self._lock:
            pwrite_all(self._descriptor, buffer, placement.offset + start * itemsize, self.path)

    def sync(self) -> None:
        """Make what was written so far durable, so that a journal may count on it."""
        sync_file(self._descriptor, self.path)

    def finish(self) -> None:
        """Make the whole file durable and close it; closes it also if that fails."""
        try:
            self.sync()
        finally:
            self.close()

    def close(self) -> None:
        """Close the file without making it durable; harmless when closed already."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish after success; after an error only close, and leave the file to be continued."""
        if kind is None and self._descriptor >= 0:
            self.finish()
        else:
            self.close()


def _open(path: Path, flags: int, size: int) -> int:
    # Inside a staging folder that is ours a link can only be an attack, or an accident.
    try:
        return os.open(
            path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | flags, _MODE
        )
    except OSError as error:
        raise failure(error, path, "created" if flags else "continued", size) from error


def allocate(descriptor: int, size: int, path: Path) -> None:
    """Give a file its size and reserve the space, so that a full disk is found before the work and not after it.

    Raises what `pwrite_all` raises.
    """
    try:
        os.ftruncate(descriptor, size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
            return
    except OSError as error:
        if error.errno not in _NO_ALLOCATION:
            raise failure(error, path, "given its size", size) from error
    if free_bytes(path.parent) < size:
        raise failure(
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), path, "given its size", size
        )
