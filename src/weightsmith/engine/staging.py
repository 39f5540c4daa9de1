"""The staging folder: where an output grows until it is whole, beside the place where it will appear.

OUT.partial/
  lock            held while a run works here
  journal.jsonl   what is finished
  checkpoint/     the output so far; renamed to OUT at the very end
  replaced/       an earlier OUT on its way out (only where folders cannot be swapped in one step)
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from weightsmith.engine import manifest as manifests
from weightsmith.engine.exchange import exchange
from weightsmith.engine.journal import Journal
from weightsmith.errors import OutputError, ResourceError, VerificationError
from weightsmith.tensors.writer import free_bytes, sync_folder

SUFFIX = ".partial"
_NAMES = ("checkpoint", "replaced", "journal.jsonl", "lock")


def check_place(out: Path, inputs: Iterable[Path]) -> Path:
    """The absolute output path, once it is clear that writing there can harm no input.

    Raises OutputError if it is an input, lies inside one or around one, or cannot be written to.
    """
    out = Path(os.path.abspath(out.expanduser()))
    real = Path(os.path.realpath(out))
    staged = staging_folder(real)
    for path in inputs:
        source = Path(os.path.realpath(path))
        if real == source:
            raise OutputError(
                f"The output {str(out)!r} is also an input; choose another place, inputs are never changed."
            )
        if source in real.parents and source.is_dir():
            raise OutputError(
                f"The output {str(out)!r} lies inside the input {str(path)!r}; choose a place outside of it."
            )
        if real in source.parents or staged in (source, *source.parents):
            raise OutputError(
                f"The output {str(out)!r} contains the input {str(path)!r}; choose another place."
            )
    if out.is_symlink():
        raise OutputError(f"The output {str(out)!r} is a symbolic link; name the real folder.")
    if not out.parent.is_dir():
        raise OutputError(
            f"The folder {str(out.parent)!r} for the output does not exist; create it first."
        )
    if not os.access(out.parent, os.W_OK):
        raise OutputError(
            f"The folder {str(out.parent)!r} cannot be written to; choose another place for the output."
        )
    return out


def check_free(out: Path, force: bool) -> None:
    """Raise OutputError if something is at `out`, unless `force` and it is all weightsmith's own."""
    if not os.path.lexists(out):
        return
    if not force:
        raise OutputError(
            f"The output {str(out)!r} exists; choose another name, or give --force to replace it."
        )
    if out.is_dir() and not any(out.iterdir()):
        return
    try:
        foreign = manifests.foreign_files(out, manifests.read(out))
    except VerificationError as error:
        raise OutputError(
            f"The output {str(out)!r} exists and was not written by weightsmith, so --force does not replace it; "
            "remove it yourself."
        ) from error
    if foreign:
        raise OutputError(
            f"The output {str(out)!r} holds {foreign[0]!r}, which was not written by weightsmith, so --force does not "
            "replace it; move that file elsewhere."
        )


def staging_folder(out: Path) -> Path:
    """Where the output `out` grows."""
    return out.with_name(out.name + SUFFIX)


class Staging:
    """An open staging folder, locked for this process.

    Leaving it after an error keeps what is finished for the next run, and removes a folder in which
    nothing is. Raises OutputError if another run works there, or if it is not weightsmith's.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = staging_folder(out)
        self.checkpoint = self.folder / "checkpoint"
        self.journal: Journal | None = None
        self._replaced = self.folder / "replaced"
        self._is_new = not os.path.lexists(self.folder)
        self._lock = self._locked()
        try:
            self._settle()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Staging:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lock >= 0 and kind is not None and self._is_worthless():
            with suppress(OSError):
                self.discard()
        self.close()

    def published_plan(self) -> str | None:
        """The digest of the plan whose result is at `out` already, if all that is left is to tidy up."""
        path = self.folder / "journal.jsonl"
        if not path.exists() or not self.out.is_dir():
            return None
        try:
            journal = Journal(path)
        except OutputError:
            return None
        journal.close()
        is_there = journal.sealed is not None and journal.sealed == manifests.digest_of(self.out)
        return journal.plan if is_there else None

    def begin(self, plan_digest: str, fresh: bool) -> Journal:
        """Open the journal of a plan, continuing where an interrupted run of it ended.

        Raises OutputError if a run of another plan has finished something here, unless `fresh`.
        """
        if fresh or self.published_plan() is not None:
            self._empty()
        self.checkpoint.mkdir(exist_ok=True)
        self.journal = journal = Journal(self.folder / "journal.jsonl")
        if journal.plan == plan_digest:
            return journal
        if journal.finished():
            raise OutputError(
                f"{str(self.folder)!r} holds an unfinished run of another recipe, other inputs, "
                "another backend or version; "
                "give --fresh to discard it and start over, or choose another output."
            )
        journal.restart(plan_digest)
        return journal

    def check_space(self, need: int) -> None:
        """Raise ResourceError if the disk has less than `need` free bytes (what lies in the staging folder counts)."""
        have = sum(f.stat().st_blocks * 512 for f in self.checkpoint.iterdir())
        free = free_bytes(self.folder)
        if need > free + have:
            raise ResourceError(
                f"The output needs {need:,} bytes in {str(self.out.parent)!r}, but only {free:,} are free; "
                "free some space or choose another place."
            )

    def publish(self) -> None:
        """Make the output appear under its name in one step, then remove the staging folder."""
        sync_folder(self.folder)
        is_replacing = self.out.exists()
        try:
            if not (is_replacing and exchange(self.checkpoint, self.out)):
                if is_replacing:
                    os.rename(self.out, self._replaced)
                os.rename(self.checkpoint, self.out)
        except OSError as error:
            self._settle()
            reason = error.strerror or str(error)
            raise OutputError(
                f"The finished output could not be moved to {str(self.out)!r} ({reason}); mend that and give the same "
                "command again."
            ) from error
        sync_folder(self.out.parent)
        self.discard()

    def discard(self) -> None:
        """Remove the staging folder, the lock last, so that no other run can come in between."""
        self._empty()
        (self.folder / "lock").unlink(missing_ok=True)
        # A run that waited for this moment may have made a lock of its own; then the folder is its.
        with suppress(OSError):
            self.folder.rmdir()
        self.close()

    def close(self) -> None:
        """Release the lock; what was finished stays for the next run."""
        if self.journal is not None:
            self.journal.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _locked(self) -> int:
        """A descriptor of the lock file, locked; it is the file that lies in the folder now."""
        while True:
            try:
                self._make_folder()
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                lock = os.open(self.folder / "lock", flags, 0o666)
            except FileNotFoundError:
                continue  # the run before has just removed its folder
            try:
                self._take(lock)
                if _is_file(lock, self.folder / "lock"):
                    return lock
                os.close(lock)
            except BaseException:
                os.close(lock)
                raise

    def _make_folder(self) -> None:
        with suppress(FileExistsError):
            self.folder.mkdir()
        if self.folder.is_symlink() or not self.folder.is_dir():
            if not os.path.lexists(self.folder):
                raise FileNotFoundError(str(self.folder))
            raise OutputError(
                f"{str(self.folder)!r} is in the way and is not a folder; move it elsewhere."
            )
        foreign = [entry.name for entry in self.folder.iterdir() if entry.name not in _NAMES]
        if foreign:
            raise OutputError(
                f"{str(self.folder)!r} holds {foreign[0]!r}, which is not weightsmith's; move it elsewhere."
            )

    def _take(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"Another run is writing to {str(self.out)!r} at this moment; wait for it or choose another output."
            ) from None
        except OSError:
            # Some network file systems have no locks; two runs then meet at the exclusive rename at the latest.
            return

    def _settle(self) -> None:
        """Put an earlier output back that a killed run had moved aside and not yet replaced."""
        if self._replaced.exists() and not os.path.lexists(self.out):
            os.rename(self._replaced, self.out)

    def _is_worthless(self) -> bool:
        if self.journal is not None:
            return not self.journal.finished()
        return self._is_new or {entry.name for entry in self.folder.iterdir()} <= {"lock"}

    def _empty(self) -> None:
        for folder in (self.checkpoint, self._replaced):
            if folder.exists():
                shutil.rmtree(folder)
        (self.folder / "journal.jsonl").unlink(missing_ok=True)


def _is_file(descriptor: int, path: Path) -> bool:
    opened = os.fstat(descriptor)
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (opened.st_dev, opened.st_ino) == (found.st_dev, found.st_ino)
