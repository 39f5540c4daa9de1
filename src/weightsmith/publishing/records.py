"""Whether a folder is still what its record says: every file by its digest, weights tensor by tensor.

Each kind of output has a record of its own; what the kinds have in common is a `Recorded`. The manifest is read here as
far as it speaks of files, since rooms that know nothing of merges replace folders that merges wrote.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightsmith.errors import CheckpointError
from weightsmith.publishing.sealing import unsealed
from weightsmith.tensors import (
    StoredTensor,
    digest_tensor,
    in_order,
    parse_file,
    shown,
    thread_count,
)

MANIFEST = "weightsmith-manifest.json"
# The key of the metadata of a single file of weights that has the manifest itself.
MANIFEST_KEY = "weightsmith_manifest"
# The records that name every file of a folder, so that one more is an error.
RECORDS = (MANIFEST, "weightsmith-delta.json")
FOREIGN = "was not written by weightsmith"
_CHUNK = 1 << 20
_HEADER_LENGTH = 8


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is on record about the files of a folder: `record` itself, and the SHA-256 of each of `files` by name.

    `headers` are the weight files, with the SHA-256 of the header where that is on record; `tensors` the digests of
    all tensors in them by name.
    """

    record: str
    files: Mapping[str, str]
    headers: Mapping[str, str | None] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)

    def foreign(self, folder: Path) -> list[str]:
        """The files of a folder that are not on record, by name relative to it."""
        known = {self.record, *self.files, *self.headers}
        return [name for name in file_names(folder) if name not in known]

    def problem(self, folder: Path, thorough: bool) -> str:
        """What in a folder is not on record or not as it is there; see `earlier.Problem`.

        Without `thorough` the tensors are not read. A file that is missing is none: nothing is lost with it.
        """
        foreign = self.foreign(folder)
        if foreign:
            return f"holds {shown(foreign[0])}, which {FOREIGN}"
        different = self._different(folder, thorough)
        return (
            f"holds {shown(different)}, which was changed since weightsmith wrote it"
            if different
            else ""
        )

    def _different(self, folder: Path, thorough: bool) -> str:
        """The first file that is not as it is on record, empty if all are."""
        for name in file_names(folder):
            path = folder / name
            if not stat.S_ISREG(os.lstat(path).st_mode):
                return name
            if name in self.files and file_digest(path) != self.files[name]:
                return name
            wanted = self.headers.get(name)
            if wanted is not None and header_digest(path) != wanted:
                return name
        return self._different_weights(folder, thorough)

    def _different_weights(self, folder: Path, thorough: bool) -> str:
        found: list[tuple[str, StoredTensor]] = []
        for name in self.headers:
            if not (folder / name).exists():
                continue
            try:
                found += [(name, tensor) for tensor in parse_file(folder / name).tensors]
            except CheckpointError:
                return name
        if not all(tensor.name in self.tensors for _, tensor in found):
            return next(name for name, tensor in found if tensor.name not in self.tensors)
        if not thorough:
            return ""
        same = list(in_order(self._is_same, (t for _, t in found), thread_count(None)))
        return next((n for (n, _), is_same in zip(found, same, strict=True) if not is_same), "")

    def _is_same(self, tensor: StoredTensor) -> bool:
        try:
            return digest_tensor(tensor) == self.tensors[tensor.name]
        except CheckpointError:
            return False


def manifest_problem(folder: Path, thorough: bool) -> str:
    """What stands against replacing the output of a merge; see `earlier.Problem`."""
    if not folder.is_dir():
        return FOREIGN
    try:
        content = unsealed((folder / MANIFEST).read_bytes())
        recorded = manifest_record(content)
    except FileNotFoundError:
        return unrecorded_problem(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return (
            f"holds {shown(MANIFEST)}, which is damaged or was changed since weightsmith wrote it"
        )
    return recorded.problem(folder, thorough)


def unrecorded_problem(folder: Path) -> str:
    """What stands against replacing a folder without the record of its kind: it is of another kind, or foreign."""
    other = next((name for name in RECORDS if (folder / name).is_file()), None)
    return FOREIGN if other is None else f"holds {shown(other)} and is of another kind"


def manifest_record(content: Mapping[str, Any]) -> Recorded:
    """What a manifest says of files; raises KeyError, TypeError or ValueError for one that is none."""
    return Recorded(
        MANIFEST, dict(content["files"]), dict(content["shards"]), dict(content["outputs"])
    )


def file_names(folder: Path) -> list[str]:
    """The names of all files below a folder, relative to it, sorted."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def file_digest(path: Path) -> str:
    """SHA-256 of a regular file; what else lies there has the digest of nothing."""
    state = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                state.update(chunk)
    return state.hexdigest()


def header_digest(path: Path) -> str:
    """SHA-256 of the header of a weights file, its length included. Raises OSError."""
    with path.open("rb") as file:
        length = file.read(_HEADER_LENGTH)
        # A file that was changed may announce more than there is.
        header = file.read(min(int.from_bytes(length, "little"), os.fstat(file.fileno()).st_size))
    return hashlib.sha256(length + header).hexdigest()
