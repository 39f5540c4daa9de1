"""Files that are read whole - recipes, configurations, records - within a bound that is known before they are read."""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from pathlib import Path

from weightsmith.tensors.files.open_files import kind_of
from weightsmith.wording import counted

# O_NONBLOCK keeps the opening of a pipe from waiting for a writer; it means nothing for regular files.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_CHUNK = 1 << 16
# How long one that writes into a pipe may take to come, and then to write more.
_PATIENCE_FOR_A_WRITER = 2.0
_PATIENCE_FOR_BYTES = 60.0


def read_small(path: Path, most_bytes: int, *, pipes: bool = False) -> bytes:
    """All bytes of a regular file of at most `most_bytes`; with `pipes` also what is written into a named pipe.

    Raises OSError, with the reason as its `strerror`, for anything else, before more than that was read.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except ValueError as problem:  # a path with a zero byte
        raise OSError(errno.EINVAL, str(problem), str(path)) from None
    try:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            if status.st_size > most_bytes:
                raise _refused(path, most_bytes)
            return _read(descriptor, path, most_bytes)
        if pipes and stat.S_ISFIFO(status.st_mode):
            return _received(descriptor, path, most_bytes)
        raise OSError(errno.EINVAL, f"it is {kind_of(status.st_mode)}", str(path))
    finally:
        os.close(descriptor)


def _refused(path: Path, most_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"it is larger than {counted(most_bytes, 'byte')}", str(path))


def _read(descriptor: int, path: Path, most_bytes: int) -> bytes:
    # Files that the system makes up have no size that could be looked at first.
    data = bytearray()
    while chunk := os.read(descriptor, _CHUNK):
        data += chunk
        if len(data) > most_bytes:
            raise _refused(path, most_bytes)
    return bytes(data)


def _received(descriptor: int, path: Path, most_bytes: int) -> bytes:
    """What is written into a pipe until its writers have left."""
    data = bytearray()
    ready = select.poll()
    ready.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + _PATIENCE_FOR_A_WRITER
    while True:
        try:
            chunk = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            if not ready.poll(1000 * _PATIENCE_FOR_BYTES):
                raise OSError(
                    errno.ETIMEDOUT, "nothing more was written into the pipe", str(path)
                ) from None
            continue
        data += chunk
        if len(data) > most_bytes:
            raise _refused(path, most_bytes)
        if chunk:
            continue
        if data or ready.poll(0) or time.monotonic() > deadline:
            return bytes(data)
        time.sleep(0.01)
