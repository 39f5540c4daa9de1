"""Files written whole or not at all: those of weightsmith's own folders, and outputs that a user named."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from weightsmith.errors import OutputError
from weightsmith.publishing.earlier import Earlier, look
from weightsmith.publishing.putting import put
from weightsmith.publishing.safe_places import SUFFIX, check_place
from weightsmith.publishing.seals import is_sealed_as
from weightsmith.tensors import expanded, failure, pwrite_all, shown, sync_file, sync_folder

# The process's umask takes away what the user does not want to grant.
_MODE = 0o666
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_LONGEST_NAME = 200
_STAGED = re.compile(rf"\.(?P<name>.+?)(\.[0-9a-f]{{12}})?{re.escape(SUFFIX)}")


@dataclass(slots=True)
class StagedFile:
    """A file that is being written beside its place: `path` until it is put there, `descriptor` to write to."""

    place: Path
    path: Path
    descriptor: int

    def replace(self) -> None:
        """Put it in place of whatever lies there, in a folder that is weightsmith's own."""
        sync_file(self.descriptor, self.place)
        os.replace(self.path, self.place)
        sync_folder(self.place.parent)

    def publish(self, earlier: Earlier) -> None:
        """Put it in its place if that is still as it was found; raises OutputError otherwise."""
        sync_file(self.descriptor, self.place)
        put(self.path, self.place, earlier)
        sync_folder(self.place.parent)


@contextmanager
def staged_file(place: Path) -> Iterator[StagedFile]:
    """A new file beside `place`, which is removed unless it is put there.

    Raises ResourceError or OutputError where the system refuses something.
    """
    path = place.with_name(f".{place.name[:_LONGEST_NAME]}.{secrets.token_hex(6)}{SUFFIX}")
    try:
        descriptor = os.open(path, _FLAGS, _MODE)
    except OSError as error:
        raise failure(error, place, "created", 0) from error
    try:
        yield StagedFile(place, path, descriptor)
    except OSError as error:
        raise failure(error, place, "put in place", 0) from error
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)


def staged_name(path: Path) -> str | None:
    """The name of the file that one was being written for, None where it is no staged file."""
    found = _STAGED.fullmatch(path.name)
    return found["name"] if found and path.is_file() and not path.is_symlink() else None


def write_file(path: Path, data: bytes) -> None:
    """Create or replace a small file of weightsmith's own so that a crash leaves the old or the new one, whole.

    For outputs that a user names there is `publish_file`. The new file gets the permissions that the umask leaves.
    Raises ResourceError or OutputError.
    """
    with staged_file(path) as staged:
        pwrite_all(staged.descriptor, data, 0, path)
        staged.replace()


def check_file(place: Path, kind: str, reads: Iterable[Path] = ()) -> Earlier:
    """What lies at the place of an output file of a kind, before the work for it.

    A file there is replaced only if it is empty, or weightsmith's own of this kind and as it was written; that needs no
    --force, and none changes it. Raises OutputError for anything else and as `check_place` does. A pipe or device is
    written to and never replaced.
    """
    place = expanded(place)
    if _is_stream(place):
        return Earlier(None)
    if place.is_dir() and not place.is_symlink():
        raise OutputError(f"{shown(place)} is a folder; name a file.")
    place = check_place(place, reads)
    found = look(place)
    if not (found.is_nothing or found.is_empty or is_sealed_as(place, kind)):
        raise OutputError(
            f"{shown(place)} exists and is no {kind} of weightsmith's, or was changed since it was written; choose "
            "another name, or move it elsewhere."
        )
    return found


def publish_file(place: Path, data: bytes, kind: str, reads: Iterable[Path] = ()) -> None:
    """Write an output file of a kind, which has its seal already (see `seals`), whole or not at all.

    Raises what `check_file` does, and OutputError or ResourceError where it cannot be written.
    """
    place = expanded(place)
    if _is_stream(place):
        try:
            with place.open("wb") as stream:
                stream.write(data)
        except OSError as error:
            raise failure(error, place, "written", len(data)) from error
        return
    earlier = check_file(place, kind, reads)
    place = Path(os.path.abspath(place))
    with staged_file(place) as staged:
        pwrite_all(staged.descriptor, data, 0, place)
        staged.publish(earlier)


def _is_stream(place: Path) -> bool:
    """Whether a pipe, a terminal or another device lies at a place, such as /dev/stdout or /dev/null."""
    try:
        mode = place.stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)
