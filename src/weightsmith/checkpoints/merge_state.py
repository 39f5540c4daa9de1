"""What a continual method has to remember of its merge, kept beside the weights in a small typed file."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path

from weightsmith.errors import CheckpointError

FILE_NAME = "weightsmith-state.json"
_FORMAT = 1


def to_json(method: str, state: Mapping[str, float]) -> bytes:
    """The content of the file: the method and its numbers by the names of the parameters that take them."""
    content = {"format": _FORMAT, "method": method, "state": dict(sorted(state.items()))}
    return (json.dumps(content, indent=1) + "\n").encode()


def read_state(folder: Path, method: str) -> dict[str, float]:
    """The numbers that a merge by `method` left in a folder.

    Raises CheckpointError if there are none, they are another method's, or the file is damaged.
    """
    path = folder / FILE_NAME
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        raise CheckpointError(
            f"{str(folder)!r} has no {FILE_NAME}, so it is no merge by {method} that can be continued; "
            "give the merge's state as parameters, or merge its experts again."
        ) from None
    return dict(_read(path, method, changed))


@functools.lru_cache(maxsize=16)
def _read(path: Path, method: str, _changed: int) -> tuple[tuple[str, float], ...]:
    try:
        content = json.loads(path.read_bytes())
        found, state = content["method"], content["state"]
        numbers = {str(key): float(number) for key, number in state.items()}
        if content["format"] != _FORMAT or not all(map(math.isfinite, numbers.values())):
            raise ValueError("its numbers are not those of this version")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{str(path)!r} is damaged ({error}); merge again.") from error
    if found != method:
        raise CheckpointError(
            f"{str(path)!r} is the state of a merge by {found!r}, which {method} cannot continue."
        )
    return tuple(numbers.items())
