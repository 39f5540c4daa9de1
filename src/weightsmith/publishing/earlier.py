"""What lies at the place of an output before it is made: nothing, or an earlier one that may or may not be replaced."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from weightsmith.errors import OutputError
from weightsmith.tensors import shown

# What must be equal for a file to be the one that was seen: mode, size, times of the last change of content and inode.
Identity = tuple[int, int, int, int]

# What at a place was not written by weightsmith, or was changed since, as the end of a sentence that begins with the
# place; empty where nothing is. The second argument asks for a look at every byte.
Problem = Callable[[Path, bool], str]


@dataclass(frozen=True, slots=True)
class Earlier:
    """What lay at a place at one moment: the identities of its files by relative name, of a file alone under ``.

    None where nothing lay there.
    """

    entries: Mapping[str, Identity] | None

    @property
    def is_nothing(self) -> bool:
        """Whether the place was free."""
        return self.entries is None

    @property
    def is_empty(self) -> bool:
        """Whether a folder or a file without content lay there, which nobody would miss."""
        if self.entries is None:
            return False
        return not self.entries or (list(self.entries) == [""] and _is_empty_file(self.entries[""]))


def _is_empty_file(identity: Identity) -> bool:
    mode, size, *_ = identity
    return stat.S_ISREG(mode) and size == 0


def look(place: Path) -> Earlier:
    """What lies at a place now; links are not followed."""
    try:
        status = os.lstat(place)
    except FileNotFoundError:
        return Earlier(None)
    if stat.S_ISDIR(status.st_mode):
        return Earlier(dict(_within(place, "")))
    # Renaming a file changes the time of its inode.
    return Earlier({"": (status.st_mode, status.st_size, status.st_mtime_ns, 0)})


def _within(folder: Path, prefix: str) -> Iterator[tuple[str, Identity]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            name = prefix + entry.name
            yield (
                name,
                (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns),
            )
            if stat.S_ISDIR(status.st_mode):
                yield from _within(Path(entry.path), f"{name}/")


def check_free(place: Path, problem: Problem, *, force: bool) -> Earlier:
    """What lies at the place of an output, once it is clear that it may be replaced.

    That is nothing, an empty file or folder, and with `force` what `problem` finds nothing wrong with. Raises
    OutputError for anything else, with the file that stands against it.
    """
    if not os.path.lexists(place) or _is_bare(place):
        return look(place)
    reason = problem(place, False)
    if not force:
        advice = "or give --force to replace it" if not reason else f"for it {reason}"
        raise OutputError(f"The output {shown(place)} exists; choose another name, {advice}.")
    found = Earlier(None)
    if not reason:
        found = look(place)
        reason = problem(place, True)
    if reason:
        raise OutputError(
            f"The output {shown(place)} {reason}, so --force does not replace it; move that elsewhere, or choose "
            "another name."
        )
    if look(place) != found:
        raise changed(place)
    return found


def _is_bare(place: Path) -> bool:
    """Whether a file or folder has nothing in it, without a look at more than its first entry."""
    status = os.lstat(place)
    if not stat.S_ISDIR(status.st_mode):
        return stat.S_ISREG(status.st_mode) and status.st_size == 0
    with os.scandir(place) as entries:
        return next(entries, None) is None


def changed(place: Path) -> OutputError:
    """The error for an earlier output that somebody changes at this moment."""
    return OutputError(
        f"The output {shown(place)} was changed while this run went on, so it is not replaced; move it elsewhere, then "
        "give the same command again."
    )


def appeared(place: Path) -> OutputError:
    """The error for something that was not at a place when the run began."""
    return OutputError(
        f"Something has appeared at {shown(place)} while this run went on, and is left as it is; move it elsewhere, "
        "then give the same command again."
    )
