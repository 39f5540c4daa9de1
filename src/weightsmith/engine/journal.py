"""The journal of a run: one line of JSON for each thing that is finished, appended as it happens.

A killed run leaves a journal whose last line may be torn; that line is dropped. A torn line anywhere else means that something other
than a crash has touched the file, and the journal is refused.
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.errors import OutputError
from weightsmith.tensors.writer import pwrite_all

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A finished output tensor: its digest and those of the stored tensors it was made from, in the order of its leaves."""

    name: str
    digest: str
    source_digests: tuple[str, ...]


class Journal:
    """An open journal; `append` may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        self.entries = self._read()

    def begin(self, plan_digest: str) -> bool:
        """Start or continue the journal of a plan; False if it belongs to another plan."""
        if not self.entries:
            self.append({"schema": SCHEMA, "plan": plan_digest})
            return True
        first = self.entries[0]
        return first.get("schema") == SCHEMA and first.get("plan") == plan_digest

    def append(self, entry: dict[str, Any]) -> None:
        """Add one entry."""
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            pwrite_all(self._descriptor, line, self._end, self._path)
            self._end += len(line)
            self.entries.append(entry)

    def record(self, record: TensorRecord) -> None:
        """Add a finished tensor."""
        self.append({"tensor": record.name, "digest": record.digest, "sources": list(record.source_digests)})

    def finished(self) -> dict[str, TensorRecord]:
        """Finished tensors by name."""
        return {
            e["tensor"]: TensorRecord(e["tensor"], e["digest"], tuple(e["sources"])) for e in self.entries if "tensor" in e
        }

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _read(self) -> list[dict[str, Any]]:
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1
        self._end = whole
        entries: list[dict[str, Any]] = []
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            if not isinstance(entry, dict):
                raise OutputError(f"Line {number} of {str(self._path)!r} is damaged; run again with --fresh to start over.")
            entries.append(entry)
        return entries
