"""Scores of items that were computed before, one file for each subject and task.

    FOLDER/ab/abcd....json     {"items": ..., "check": sha256 of the items}

A file that is not whole is taken for missing and written anew, so the folder can be shared, damaged or removed at any
time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from weightsmith.engine import cache_root
from weightsmith.errors import OutputError, ResourceError, WeightsmithError
from weightsmith.evaluation.scores import SCHEMA, ItemScores
from weightsmith.publishing import write_file
from weightsmith.version import __version__
from weightsmith.wording import shown

_LIBRARIES = ("numpy", "tokenizers", "torch", "transformers")


def default_folder() -> Path:
    """Where scores are kept unless another place is given."""
    return cache_root() / "evaluations"


def library_versions() -> dict[str, str]:
    """The versions of the libraries that decide scores, as far as they are installed."""
    found = {name: _version(name) for name in _LIBRARIES}
    return {"weightsmith": __version__} | {name: v for name, v in found.items() if v is not None}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True, slots=True)
class Cache:
    """The scores kept in a folder."""

    folder: Path

    def find(self, key: str) -> ItemScores | None:
        """What was kept under a key, or None if there is nothing whole."""
        try:
            content = json.loads(self._file(key).read_bytes())
            items: Mapping[str, Any] = content["items"]
            if content["check"] != _check(items):
                return None
            return ItemScores.from_mapping(items)
        except (OSError, ValueError, KeyError, TypeError, WeightsmithError):
            return None

    def prepare(self) -> None:
        """Make the folder; raises ResourceError where nothing can be kept there, before scores are computed."""
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "it cannot be written to", str(self.folder))

    def keep(self, key: str, items: ItemScores) -> None:
        """Keep scores; the file appears whole or not at all. Raises ResourceError."""
        file = self._file(key)
        content = items.to_mapping()
        with self._writing():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, json.dumps({"items": content, "check": _check(content)}).encode())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, OutputError, ResourceError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
            raise ResourceError(
                f"Scores cannot be kept in {shown(self.folder)} ({reason}); name another folder in WEIGHTSMITH_CACHE, "
                "or give --no-cache."
            ) from error

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def cache_key(subject: str, task: str, device: str) -> str:
    """The key of a subject's and a task's digests, on a kind of device, with the libraries of this environment."""
    content = [SCHEMA, subject, task, device.partition(":")[0], library_versions()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
