"""Configuration files of a checkpoint: read as data from a stranger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightsmith.errors import CheckpointError
from weightsmith.tensors import NotJson, loads_json, read_small, shown

_LARGEST_BYTES = 20_000_000


def json_bytes(document: Mapping[str, Any], *, indent: int | None = 2) -> bytes:
    """JSON as transformers writes it; where a text holds half a character, which UTF-8 has not, with escapes."""
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    try:
        return (text + "\n" * (indent is not None)).encode()
    except UnicodeEncodeError:
        return (json.dumps(document, indent=indent) + "\n" * (indent is not None)).encode()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; `Infinity`, which state-space models have, is read.

    Raises CheckpointError where the file cannot be read, is above 20 MB or holds anything else.
    """
    try:
        document = loads_json(read_small(path, _LARGEST_BYTES))
    except OSError as problem:
        raise CheckpointError(
            f"{shown(path)} cannot be read ({problem.strerror}): check that it is a readable file."
        ) from None
    except NotJson as problem:
        raise CheckpointError(
            f"{shown(path)} {str(problem).removeprefix('it ')}: fetch it again."
        ) from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{shown(path)} does not hold a JSON object: fetch it again.")
    return document
