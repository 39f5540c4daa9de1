"""The staging folder: where an output grows until it is whole, beside the place where it will appear.

    OUT.partial/
      lock            held while a run works here
      journal.jsonl   what is finished
      checkpoint/     the output so far; renamed to OUT at the very end
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from weightsmith.engine.journal import Journal
from weightsmith.errors import OutputError, ResourceError
from weightsmith.tensors.writer import free_bytes, sync_folder

SUFFIX = ".partial"


def check_output(out: Path, inputs: Iterable[Path], force: bool) -> Path:
    """The absolute output path, once it is clear that writing there can harm nothing.

    Raises OutputError if it exists (unless `force` and it is a folder that weightsmith wrote), is an input, or lies inside one
    or around one.
    """
    out = Path(os.path.abspath(out.expanduser()))
    real = Path(os.path.realpath(out))
    for path in inputs:
        source = Path(os.path.realpath(path))
        if real == source:
            raise OutputError(f"The output {str(out)!r} is also an input; choose another place, inputs are never changed.")
        if source in real.parents and source.is_dir():
            raise OutputError(f"The output {str(out)!r} lies inside the input {str(path)!r}; choose a place outside of it.")
        if real in source.parents:
            raise OutputError(f"The output {str(out)!r} contains the input {str(path)!r}; choose another place.")
    if out.is_symlink():
        raise OutputError(f"The output {str(out)!r} is a symbolic link; name the real folder.")
    if out.exists():
        _check_replaceable(out, force)
    if not out.parent.is_dir():
        raise OutputError(f"The folder {str(out.parent)!r} for the output does not exist; create it first.")
    if not os.access(out.parent, os.W_OK):
        raise OutputError(f"The folder {str(out.parent)!r} cannot be written to; choose another place for the output.")
    return out


def _check_replaceable(out: Path, force: bool) -> None:
    from weightsmith.engine.manifest import FILE_NAME

    if not force:
        raise OutputError(f"The output {str(out)!r} exists; choose another name, or give --force to replace it.")
    if not out.is_dir() or (any(out.iterdir()) and not (out / FILE_NAME).is_file()):
        raise OutputError(
            f"The output {str(out)!r} exists and was not written by weightsmith, so --force does not replace it; remove it yourself."
        )


class Staging:
    """An open staging folder, locked for this process."""

    def __init__(self, out: Path, plan_digest: str, fresh: bool) -> None:
        self.out = out
        self.folder = out.with_name(out.name + SUFFIX)
        self.checkpoint = self.folder / "checkpoint"
        self._make_folder()
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        self._take_lock()
        if fresh:
            self._empty()
        self.checkpoint.mkdir(exist_ok=True)
        self.journal = Journal(self.folder / "journal.jsonl")
        if not self.journal.begin(plan_digest):
            self.close()
            raise OutputError(
                f"{str(self.folder)!r} holds an unfinished run of another recipe, other inputs or another version; give "
                "--fresh to discard it and start over, or choose another output."
            )

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(exist_ok=True)
        except FileExistsError:
            raise OutputError(f"{str(self.folder)!r} is in the way and is not a folder; move it elsewhere.") from None
        if any(entry.name not in ("lock", "journal.jsonl", "checkpoint") for entry in self.folder.iterdir()):
            raise OutputError(f"{str(self.folder)!r} holds files that are not weightsmith's; move them elsewhere.")

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise OutputError(
                f"Another run is writing to {str(self.out)!r} at this moment; wait for it or choose another output."
            ) from None
        except OSError:
            # Some network file systems have no locks; two runs then meet at the exclusive rename at the latest.
            return

    def _empty(self) -> None:
        (self.folder / "journal.jsonl").unlink(missing_ok=True)
        if self.checkpoint.exists():
            shutil.rmtree(self.checkpoint)

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
        replaced = self.out.with_name(f"{self.out.name}.replaced-{os.getpid()}-{time.monotonic_ns()}")
        if self.out.exists():
            os.rename(self.out, replaced)
        try:
            os.rename(self.checkpoint, self.out)
        except OSError as error:
            if replaced.exists() and not self.out.exists():
                os.rename(replaced, self.out)
            reason = error.strerror or str(error)
            raise OutputError(f"The finished output could not be moved to {str(self.out)!r} ({reason}).") from error
        sync_folder(self.out.parent)
        if replaced.exists():
            shutil.rmtree(replaced)
        self.discard()

    def discard(self) -> None:
        """Remove the staging folder."""
        self.close()
        shutil.rmtree(self.folder)

    def close(self) -> None:
        """Release the lock; what was finished stays for the next run."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
