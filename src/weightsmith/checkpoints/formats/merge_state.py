"""What a continual method has to remember of its merge, kept beside the weights in a small typed file.

    format   2
    method   the method that can go on with it
    state    its numbers, by the names of the parameters that take them
    rules    parameters that must stay the same, once for each set of them that tensors were merged by
    tensors  for each: digests of the base's tensors that it was measured from and of the result, and its rules

Digests are those of the manifest, so what is continued can be told from anything else.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.errors import CheckpointError, Malformed
from weightsmith.tensors import loads_json, read_small
from weightsmith.wording import fault

FILE_NAME = "weightsmith-state.json"
_FORMAT = 2
_LARGEST_BYTES = 200_000_000


@dataclass(frozen=True, slots=True)
class TensorState:
    """Digests of the base's tensors and of the result, and the parameters that must stay the same."""

    base: tuple[str, ...]
    result: str
    rules: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class MergeState:
    """What a merge by `method` left: its numbers by the names of parameters, and its tensors by name."""

    method: str
    numbers: Mapping[str, float]
    tensors: Mapping[str, TensorState]

    def to_json(self) -> bytes:
        """The content of the file."""
        rules: list[Mapping[str, Any]] = []
        tensors: dict[str, dict[str, Any]] = {}
        for name, tensor in sorted(self.tensors.items()):
            if tensor.rules not in rules:
                rules.append(tensor.rules)
            number = rules.index(tensor.rules)
            tensors[name] = {"base": tensor.base, "result": tensor.result, "rules": number}
        content = {
            "format": _FORMAT,
            "method": self.method,
            "state": dict(sorted(self.numbers.items())),
            "rules": rules,
            "tensors": tensors,
        }
        return (json.dumps(content, indent=1) + "\n").encode()


def read_state(folder: Path, method: str) -> MergeState:
    """What a merge by `method` left in a folder.

    Raises CheckpointError if there is no state, it is another method's, or the file is damaged.
    """
    path = folder / FILE_NAME
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        raise CheckpointError(
            f"{str(folder)!r} has no {FILE_NAME}, so it is no merge by {method} that can be continued; "
            "give the merge's state as parameters, or merge its experts again."
        ) from None
    return _read(path, method, changed)


@functools.lru_cache(maxsize=16)
def _read(path: Path, method: str, _changed: int) -> MergeState:
    try:
        content = loads_json(read_small(path, _LARGEST_BYTES))
        if not isinstance(content, dict):
            raise Malformed("it holds no JSON object")
        if content["format"] == 1:
            raise CheckpointError(
                f"{str(path)!r} was written by an earlier version, which did not note what it continued from; "
                "merge its experts again, or give "
                + ", ".join(sorted(map(str, content["state"])))
                + "."
            )
        if content["format"] != _FORMAT:
            raise Malformed(f"format {content['format']!r} is not {_FORMAT}")
        numbers = {str(key): float(number) for key, number in content["state"].items()}
        if not all(map(math.isfinite, numbers.values())):
            raise Malformed("a number is not finite")
        found = str(content["method"])
        rules = [dict(each) for each in content["rules"]]
        tensors = {
            str(name): TensorState(
                tuple(map(str, facts["base"])), str(facts["result"]), rules[facts["rules"]]
            )
            for name, facts in content["tensors"].items()
        }
    except OSError as error:
        raise CheckpointError(f"{str(path)!r} cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{str(path)!r} is damaged ({fault(error)}); merge again.") from error
    if found != method:
        raise CheckpointError(
            f"{str(path)!r} is the state of a merge by {found!r}, which {method} cannot continue."
        )
    return MergeState(found, numbers, tensors)
