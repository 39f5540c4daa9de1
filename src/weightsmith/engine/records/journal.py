"""The journal of a run: one line of JSON for each thing that is finished, appended as it happens.

Every line carries a checksum of itself. A killed run leaves a journal whose last line may be torn;
that line is dropped. A damaged line anywhere else means that something other than a crash has
touched the file, and the journal is refused.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.errors import OutputError
from weightsmith.tensors import NotJson, loads_json, pwrite_all, sync_file

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A finished output tensor: its digest, and those of the tensors it was made from in the order of its leaves."""

    name: str
    digest: str
    source_digests: tuple[str, ...]


class Journal:
    """An open journal; `append` may be called from any thread.

    Raises OutputError if the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(path, flags, 0o666)
        try:
            self.entries = self._read()
            os.ftruncate(self._descriptor, self._end)
        except BaseException:
            self.close()
            raise

    @property
    def plan(self) -> str | None:
        """The digest of the plan that the journal belongs to; None if it is empty or of another version."""
        first = self.entries[0] if self.entries else {}
        return first.get("plan") if first.get("schema") == SCHEMA else None

    @property
    def sealed(self) -> str | None:
        """The digest of the manifest of the whole output, once every file of it was durable."""
        seals = [entry["sealed"] for entry in self.entries if "sealed" in entry]
        return seals[-1] if seals else None

    def restart(self, plan_digest: str) -> None:
        """Forget everything and begin the journal of a plan."""
        os.ftruncate(self._descriptor, 0)
        self._end = 0
        self.entries.clear()
        self.append({"schema": SCHEMA, "plan": plan_digest})

    def append(self, entry: dict[str, Any]) -> None:
        """Add one entry."""
        line = _encoded(entry)
        with self._lock:
            pwrite_all(self._descriptor, line, self._end, self._path)
            self._end += len(line)
            self.entries.append(entry)

    def record(self, record: TensorRecord) -> None:
        """Add a finished tensor."""
        sources = list(record.source_digests)
        self.append({"tensor": record.name, "digest": record.digest, "sources": sources})

    def seal(self, manifest_digest: str) -> None:
        """Note, durably, that the output is whole and only has to be moved to its place."""
        self.append({"sealed": manifest_digest})
        sync_file(self._descriptor, self._path)

    def finished(self) -> dict[str, TensorRecord]:
        """Finished tensors by name."""
        return {
            e["tensor"]: TensorRecord(e["tensor"], e["digest"], tuple(e["sources"]))
            for e in self.entries
            if "tensor" in e
        }

    def close(self) -> None:
        """Close the file; harmless when closed already."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _read(self) -> list[dict[str, Any]]:
        with open(self._descriptor, "rb", closefd=False) as file:
            data = file.read()
        self._end = data.rfind(b"\n") + 1
        entries: list[dict[str, Any]] = []
        for number, line in enumerate(data[: self._end].split(b"\n")[:-1], start=1):
            entry = _decoded(line)
            if entry is None:
                raise OutputError(
                    f"Line {number} of {str(self._path)!r} is damaged; run again with --fresh to start over."
                )
            entries.append(entry)
        return entries


class Forgotten(Journal):
    """The journal of a run that cannot be continued."""

    def __init__(self) -> None:
        self.entries = []

    def append(self, entry: dict[str, Any]) -> None:
        """Keep no record."""


def _encoded(entry: dict[str, Any]) -> bytes:
    return _text({**entry, "check": _checksum(entry)}) + b"\n"


def _decoded(line: bytes) -> dict[str, Any] | None:
    """The entry of a line, or None if the line is not one that `_encoded` wrote."""
    try:
        entry = loads_json(line)
    except NotJson:
        return None
    if not isinstance(entry, dict):
        return None
    check = entry.pop("check", None)
    return entry if check == _checksum(entry) and _encoded(entry) == line + b"\n" else None


def _checksum(entry: dict[str, Any]) -> str:
    return f"{zlib.crc32(_text(entry)):08x}"


def _text(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode()
