"""Giving a finished file or folder its name: where nothing is, or in exchange for what is there.

Linux does both in one system call (renameat2). Where the system or the file system does not know it, as NFS and some
FUSE file systems,

    a folder into a free place   rename(2), which refuses a place where a file or a folder with something in it lies
    a file into a free place     link(2), which refuses a place where anything lies, then unlink(2)
    in exchange                  is not done here: `exchange` says so

A file system without hard links either (FAT) is looked at before the file is renamed; what appears in that moment, some
microseconds, is lost.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

_AT_FDCWD = -100
_NO_REPLACE = 1
_EXCHANGE = 2
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})
_NO_LINKS = frozenset({errno.EPERM, errno.EMLINK, *_UNSUPPORTED})
_TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR})


def rename_into_free(source: Path, target: Path) -> None:
    """Rename a file or folder to a name of the same file system at which nothing lies.

    Raises FileExistsError, with nothing done, where something does, but an empty folder may be taken for nothing; other
    OSErrors as the system has them.
    """
    if _renamed(source, target, _NO_REPLACE):
        return
    if source.is_dir():
        try:
            os.rename(source, target)
        except OSError as error:
            if error.errno in _TAKEN:
                raise _taken(target) from None
            raise
        return
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            raise _taken(target) from None
        os.rename(source, target)
        return
    os.unlink(source)


def exchange(first: Path, second: Path) -> bool:
    """Swap two names of one file system in one step; False, with nothing done, where that is not possible.

    Raises OSError if the system can but refuses.
    """
    return _renamed(first, second, _EXCHANGE)


def _taken(target: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))


def _renamed(source: Path, target: Path, flags: int) -> bool:
    """Whether the system call did it; False where there is none."""
    rename = _renameat2()
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))


@functools.cache
def _renameat2() -> Callable[..., Any] | None:
    """The C library's function; None where it has none."""
    found: Callable[..., Any] | None = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return found
