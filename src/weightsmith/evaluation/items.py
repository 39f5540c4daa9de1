"""The items of a task: arrays of an npz file, or lines of a jsonl file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import UsageError
from weightsmith.evaluation.arrays import read_arrays
from weightsmith.evaluation.suite import Task
from weightsmith.recipes import is_encodable
from weightsmith.tensors import NotJson, loads_json
from weightsmith.wording import literal

_LONGEST_LINE = 1 << 26


@dataclass(frozen=True, slots=True, eq=False)
class LabelledInputs:
    """`inputs` of shape [N, ...] as float32, `labels` [N] as class numbers or class names, and `slices`."""

    inputs: NDArray[np.float32]
    labels: NDArray[Any]
    slices: tuple[str, ...] | None
    classes: tuple[str, ...] | None


def read_labelled(task: Task) -> LabelledInputs:
    """The arrays `inputs` and `labels` of a task's npz file, and the one that `slice` names.

    `inputs` are floating-point numbers as the model takes them, after all preprocessing. An array `classes`, if there,
    names the classes that the labels count. Raises UsageError for a file without them, or without items.
    """
    path = _path(task)
    wanted = ["inputs", "labels", *([task.slice] if task.slice else [])]
    arrays = read_arrays(path, _named(path, task), wanted, ["classes"], task.limit)
    inputs, labels = arrays["inputs"], arrays["labels"]
    lengths = {name: len(np.atleast_1d(arrays[name])) for name in wanted}
    if len(set(lengths.values())) > 1 or inputs.ndim < 2 or labels.ndim != 1:
        raise UsageError(
            f"{_named(path, task)} has inputs of shape {inputs.shape} and labels of shape {labels.shape}; "
            "give one label, and one slice if any, for each input."
        )
    if not np.issubdtype(inputs.dtype, np.floating):
        raise UsageError(
            f"{_named(path, task)} has inputs of {inputs.dtype}; give floating-point numbers as the model takes them."
        )
    count = _count(len(inputs), path, task)
    with np.errstate(over="ignore"):
        numbers = np.ascontiguousarray(inputs[:count], np.float32)
    finite = np.isfinite(numbers.reshape(count, -1)).all(axis=1)
    if not finite.all():
        raise UsageError(
            f"{_named(path, task)} has a NaN or an infinity in item {int(finite.argmin())}; leave it out or correct it."
        )
    return LabelledInputs(
        numbers,
        labels[:count],
        tuple(str(s) for s in arrays[task.slice][:count]) if task.slice else None,
        tuple(map(str, arrays["classes"])) if "classes" in arrays else None,
    )


def read_lines(task: Task, fields: Mapping[str, type | tuple[type, ...]]) -> list[dict[str, Any]]:
    """The lines of a task's jsonl file, each an object with the fields, and the one that `slice` names.

    Raises UsageError, with the line's number, for a line that is none, and for a file without lines.
    """
    path = _path(task)
    wanted = {**fields, **({task.slice: object} if task.slice else {})}
    lines: list[dict[str, Any]] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), start=1):
                where = f"{_named(path, task)}, line {number},"
                if len(line) == _LONGEST_LINE:
                    raise UsageError(
                        f"{where} has more than {_LONGEST_LINE} bytes; write an item a line."
                    )
                if line.strip():
                    lines.append(_line(line, where, wanted))
                if task.limit is not None and len(lines) == task.limit:
                    break
    except OSError as error:
        raise UsageError(f"{_named(path, task)} cannot be read ({error.strerror}).") from error
    _count(len(lines), path, task)
    return lines


def slices_of(task: Task, lines: Sequence[Mapping[str, Any]]) -> tuple[str, ...] | None:
    """The slice of each line, if the task has slices."""
    return tuple(str(line[task.slice]) for line in lines) if task.slice else None


def numbered(count: int) -> tuple[str, ...]:
    """Ids of items that are told apart by their place in the data."""
    return tuple(str(i) for i in range(count))


def _line(line: bytes, where: str, fields: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    try:
        content = loads_json(line)
    except NotJson as error:
        raise UsageError(
            f"{where} {str(error).removeprefix('it ')}; write one JSON object a line."
        ) from None
    if not isinstance(content, dict):
        raise UsageError(f"{where} is no JSON object.")
    for name, kind in fields.items():
        if name not in content:
            raise UsageError(
                f"{where} has no field {name!r}; it has {', '.join(map(repr, content))}."
            )
        if not isinstance(content[name], kind) or isinstance(content[name], bool):
            raise UsageError(
                f"{where} has {literal(content[name])} in field {name!r}, which has another type."
            )
        if not _is_text(content[name]):
            raise UsageError(f"{where} has half a character in field {name!r}; correct the text.")
    return content


def _is_text(value: Any) -> bool:
    """Whether all texts in a value can be written; JSON can escape halves of a character alone."""
    return all(is_encodable(str(text)) for text in (value if isinstance(value, list) else [value]))


def _path(task: Task) -> Path:
    assert task.data is not None
    return task.data


def _count(found: int, path: Path, task: Task) -> int:
    if not found:
        raise UsageError(f"{_named(path, task)} has no items; a score needs at least one.")
    return min(found, task.limit or found)


def _named(path: Path, task: Task) -> str:
    return f"The data {str(path)!r} of task {task.name!r}"
