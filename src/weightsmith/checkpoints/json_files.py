"""Configuration files of a checkpoint: read as data from a stranger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from weightsmith.errors import CheckpointError
from weightsmith.tensors.messages import shown

_LARGEST_BYTES = 100_000_000


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; `Infinity`, which state-space models have, is read.

    Raises CheckpointError where the file cannot be read, is above 100 MB or holds anything else.
    """
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise CheckpointError(
                f"{shown(path)} is larger than {_LARGEST_BYTES} bytes, so it is no configuration: "
                "remove it."
            )
        document = json.loads(path.read_bytes())
    except OSError as problem:
        raise CheckpointError(
            f"{shown(path)} cannot be read ({problem.strerror}): check that it is a readable file."
        ) from None
    except (ValueError, RecursionError) as problem:
        raise CheckpointError(
            f"{shown(path)} is not valid JSON ({problem}): fetch it again."
        ) from None
    if not isinstance(document, dict):
        raise CheckpointError(f"{shown(path)} does not hold a JSON object: fetch it again.")
    return document
