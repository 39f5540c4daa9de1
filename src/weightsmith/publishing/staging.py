"""The staging folder: where an output folder grows until it is whole, beside the place where it will appear.

OUT.partial/
  lock        held while a run works here
  WHOLE       the output so far; renamed to OUT at the very end
  replaced/   an earlier OUT on its way out (only where folders cannot be exchanged in one step)
  discarded/  an earlier OUT that is replaced, compared and to be removed

and what a kind of run keeps there beside it, such as a journal.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from weightsmith.errors import OutputError
from weightsmith.publishing.atomic_renames import rename_into_free
from weightsmith.publishing.earlier import Earlier, Problem, look
from weightsmith.publishing.putting import put, sync_tree
from weightsmith.publishing.safe_places import staging_folder
from weightsmith.tensors import shown, sync_folder

LOCK = "lock"
_REPLACED = "replaced"
_DISCARDED = "discarded"
# How often a run begins again because the one before has just removed its folder.
_ATTEMPTS = 100

_Opened = TypeVar("_Opened", bound="StagingFolder")


class StagingFolder:
    """An open staging folder for the output folder `out`, locked for this process.

    `whole` names the part of it that becomes OUT, `beside` what else this kind of run keeps there; `problem` says what
    stands against removing an earlier OUT (see `earlier.Problem`). Leaving it after an error removes a folder in which
    nothing is worth keeping, and leaves any other for the next run. Raises OutputError if another run works there, if
    it is not weightsmith's, and where it cannot be made.
    """

    def __init__(
        self,
        out: Path,
        problem: Problem,
        *,
        whole: str = "checkpoint",
        beside: tuple[str, ...] = (),
    ) -> None:
        self.out = out
        self.folder = staging_folder(out)
        self.whole = self.folder / whole
        self._problem = problem
        self._replaced = self.folder / _REPLACED
        self._discarded = self.folder / _DISCARDED
        self._names = {LOCK, _REPLACED, _DISCARDED, whole, *beside}
        self._is_new = not os.path.lexists(self.folder)
        self._lock = self._locked()
        try:
            self._settle()
        except BaseException:
            self.close()
            raise

    def __enter__(self: _Opened) -> _Opened:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lock >= 0 and kind is not None and self.is_worthless():
            with suppress(OSError, OutputError):
                self._settle()
                self.discard()
        self.close()

    def is_worthless(self) -> bool:
        """Whether what lies here need not be kept for the next run."""
        return True

    def publish(self, earlier: Earlier) -> None:
        """Make the output appear under its name in one step, then remove the staging folder.

        `earlier` is what lay there when it was checked. Raises OutputError, and leaves both as they are, where
        something has appeared or was changed there meanwhile.
        """
        sync_tree(self.whole)
        sync_folder(self.folder)
        put(self.whole, self.out, earlier, self._replaced)
        sync_folder(self.out.parent)
        for replaced in (self.whole, self._replaced):
            if replaced.exists():
                # Under this name a later run knows that it was what it was checked to be, whatever is left of it then.
                os.rename(replaced, self._discarded)
        self.discard()

    def tidy(self) -> None:
        """Remove what a run has left that was killed after it had published: an earlier OUT, or nothing.

        Raises OutputError where an earlier OUT was changed before it was replaced.
        """
        for replaced in (self.whole, self._replaced):
            found = look(replaced)
            reason = "" if found.is_nothing or found.is_empty else self._problem(replaced, True)
            if reason:
                raise OutputError(
                    f"{shown(replaced)}, which lay at {shown(self.out)} before, {reason}; move it elsewhere, then give "
                    "the same command again."
                )
        self.empty()

    def discard(self) -> None:
        """Remove the staging folder, the lock last, so that no other run can come in between."""
        self.empty()
        (self.folder / LOCK).unlink(missing_ok=True)
        # A run that waited for this moment may have made a lock of its own; then the folder is its.
        with suppress(OSError):
            self.folder.rmdir()
        self.close()

    def empty(self) -> None:
        """Remove all but the lock."""
        for name in sorted(self._names - {LOCK}):
            path = self.folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock; what was finished stays for the next run."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _locked(self) -> int:
        """A descriptor of the lock file, locked; it is the file that lies in the folder now."""
        for _ in range(_ATTEMPTS):
            self._make_folder()
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            try:
                lock = os.open(self.folder / LOCK, flags, 0o666)
            except FileNotFoundError:
                continue  # the run before has just removed its folder
            try:
                self._take(lock)
                if _is_file(lock, self.folder / LOCK):
                    return lock
                os.close(lock)
            except BaseException:
                os.close(lock)
                raise
        raise OutputError(
            f"{shown(self.folder)} is removed again and again by another run; wait for it or choose another output."
        )

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir()
        except FileExistsError:
            pass
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(
                f"The folder {shown(self.folder)}, where the output is to grow, cannot be made ({reason}); choose "
                "another place for the output."
            ) from error
        if os.path.lexists(self.folder) and (self.folder.is_symlink() or not self.folder.is_dir()):
            raise OutputError(
                f"{shown(self.folder)} is in the way and is not a folder; move it elsewhere."
            )
        try:
            foreign = sorted({entry.name for entry in self.folder.iterdir()} - self._names)
        except FileNotFoundError:
            return  # removed by the run before
        if foreign:
            raise OutputError(
                f"{shown(self.folder)} holds {shown(foreign[0])}, which this kind of run does not keep there; move it "
                "elsewhere."
            )

    def _take(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"Another run is writing to {shown(self.out)} at this moment; wait for it or choose another output."
            ) from None
        except OSError:
            # Some network file systems have no locks; two runs then meet at the exclusive rename at the latest.
            return

    def _settle(self) -> None:
        """Put an earlier output back that a killed run had moved aside and not yet replaced."""
        if self._replaced.exists():
            with suppress(FileExistsError):
                rename_into_free(self._replaced, self.out)


def _is_file(descriptor: int, path: Path) -> bool:
    opened = os.fstat(descriptor)
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (opened.st_dev, opened.st_ino) == (found.st_dev, found.st_ino)
