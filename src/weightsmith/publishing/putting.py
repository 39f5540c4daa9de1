"""The last step of every output: the finished file or folder gets its name, if the place is still as it was found."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from weightsmith.errors import OutputError
from weightsmith.publishing.atomic_renames import exchange, rename_into_free
from weightsmith.publishing.earlier import Earlier, appeared, changed, look
from weightsmith.tensors import shown, sync_file, sync_folder

# How often something is put back at a place where others put and remove things at the same moment.
_ATTEMPTS = 10


def put(staged: Path, place: Path, earlier: Earlier, aside: Path | None = None) -> None:
    """Give what is staged its name; what lay there as `earlier` says is at `staged` or `aside` afterwards, or gone.

    Where folders cannot be exchanged, the earlier one is moved to `aside` first and comes back if the second rename
    fails. Raises OutputError, with the place as it was, where something has appeared or was changed there, and where
    the system refuses.
    """
    try:
        if earlier.is_nothing:
            rename_into_free(staged, place)
        else:
            _replace(staged, place, earlier, aside)
    except FileExistsError:
        raise appeared(place) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"The finished output could not be moved to {shown(place)} ({reason}); mend that and give the same command "
            "again."
        ) from error


def _replace(staged: Path, place: Path, earlier: Earlier, aside: Path | None) -> None:
    now = look(place)
    if now.is_nothing:
        rename_into_free(staged, place)
        return
    if now != earlier:
        raise changed(place)
    if exchange(staged, place):
        if look(staged) != earlier:
            _put_back(staged, place)
            raise changed(place)
    elif aside is None:
        # A file: one step, so that a crash leaves the one or the other; what changes between the look above and this
        # step is lost.
        os.replace(staged, place)
    else:
        try:
            os.rename(place, aside)
            if look(aside) != earlier:
                raise changed(place)
            rename_into_free(staged, place)
        except BaseException:
            with suppress(FileExistsError, FileNotFoundError):
                rename_into_free(aside, place)
            raise


def _put_back(staged: Path, place: Path) -> None:
    """Exchange once more, so that what somebody changed is at its place again and nobody removes it as staged."""
    for _ in range(_ATTEMPTS):
        with suppress(FileExistsError):
            try:
                exchange(staged, place)
            except FileNotFoundError:
                # What was put there is gone.
                rename_into_free(staged, place)
            return
    os.rename(staged, place.with_name(f"{place.name}.kept-{secrets.token_hex(6)}"))


def sync_tree(folder: Path) -> None:
    """Make every file and name in a folder durable. Raises OutputError on failure."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            sync_folder(path)
            continue
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            sync_file(descriptor, path)
        finally:
            os.close(descriptor)
    sync_folder(folder)
