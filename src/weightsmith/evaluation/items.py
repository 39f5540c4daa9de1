"""The items of a task: arrays of an npz file, or lines of a jsonl file."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import UsageError
from weightsmith.evaluation.suite import Task


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
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise UsageError(
            f"{_named(path, task)} is no npz file of plain arrays ({error}); write one with numpy.savez."
        ) from error
    wanted = ["inputs", "labels", *([task.slice] if task.slice else [])]
    for name in wanted:
        if name not in arrays:
            raise UsageError(
                f"{_named(path, task)} has no array {name!r}; it has {', '.join(arrays) or 'none'}."
            )
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
    return LabelledInputs(
        np.ascontiguousarray(inputs[:count], np.float32),
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
            for number, line in enumerate(file, start=1):
                if line.strip():
                    lines.append(_line(line, f"{_named(path, task)}, line {number},", wanted))
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
        content = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where} is no JSON ({error}).") from None
    if not isinstance(content, dict):
        raise UsageError(f"{where} is no JSON object.")
    for name, kind in fields.items():
        if name not in content:
            raise UsageError(
                f"{where} has no field {name!r}; it has {', '.join(map(repr, content))}."
            )
        if not isinstance(content[name], kind) or isinstance(content[name], bool):
            raise UsageError(
                f"{where} has {content[name]!r} in field {name!r}, which has another type."
            )
    return content


def _path(task: Task) -> Path:
    assert task.data is not None
    return task.data


def _count(found: int, path: Path, task: Task) -> int:
    if not found:
        raise UsageError(f"{_named(path, task)} has no items; a score needs at least one.")
    return min(found, task.limit or found)


def _named(path: Path, task: Task) -> str:
    return f"The data {str(path)!r} of task {task.name!r}"
