"""Data from files: texts, JSON lines, tables of `datasets`, and the tasks of a suite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from weightsmith.errors import ResourceError, UsageError
from weightsmith.evaluation import Task, context_of, load_suite, read_lines
from weightsmith.live import LiveModel, NetworkKind
from weightsmith.statistics.samples import Samples
from weightsmith.statistics.task_samples import labelled_samples, pair_samples
from weightsmith.statistics.text_samples import text_samples
from weightsmith.tensors import expanded
from weightsmith.wording import shown, with_extra

_SUITES = (".yaml", ".yml")
# No token of a text has more bytes than this on average.
_BYTES_OF_TOKEN = 16


@dataclass(frozen=True, slots=True)
class DataChoice:
    """Which data: a file, a task of it if it is a suite, how many items, and the most tokens of one; or items."""

    source: Path | Samples
    task: str | None = None
    limit: int = 256
    context: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class ReadData:
    """The items that are run to look at what passes, and those whose losses have gradients; mostly the same."""

    forward: Samples
    backward: Samples

    @property
    def is_one(self) -> bool:
        """Whether one run is enough for both."""
        return self.forward is self.backward


def read_data(model: LiveModel, chosen: DataChoice) -> ReadData:
    """The items of some data for a model; raises UsageError where they are none that it could be run on."""
    if isinstance(chosen.source, Samples):
        return _alike(chosen.source)
    path = expanded(chosen.source)
    if is_suite_file(path):
        return _of_task(model, _task_of(path, chosen), chosen)
    if chosen.task is not None:
        raise UsageError(f"{shown(path)} is no suite, so it has no task {chosen.task!r}.")
    rows = _rows_of(path, chosen, model)
    if model.kind is NetworkKind.ENCODER:
        return _of_pairs(model, list(rows), _named(path), chosen)
    return _alike(_texts(model, rows, _named(path), chosen))


def files_of_data(chosen: DataChoice) -> tuple[Path, ...]:
    """The files that are read, which an output must not replace."""
    if isinstance(chosen.source, Samples):
        return ()
    path = expanded(chosen.source)
    return load_suite(path).files if is_suite_file(path) else (path,)


def is_suite_file(path: Path) -> bool:
    """Whether data are a suite, whose tasks have items of their own."""
    return path.suffix in _SUITES and path.is_file()


def _alike(samples: Samples) -> ReadData:
    return ReadData(samples, samples)


def _texts(model: LiveModel, rows: Any, name: str, chosen: DataChoice) -> Samples:
    return text_samples(
        model, rows, name, limit=chosen.limit, context=chosen.context, seed=chosen.seed
    )


def _of_pairs(
    model: LiveModel, rows: Sequence[Mapping[str, Any]], name: str, chosen: DataChoice
) -> ReadData:
    """Texts that are embedded, and if they are queries and documents, the losses of these."""
    rows = rows[: chosen.limit]
    texts = _texts(model, rows, name, chosen)
    if not rows or "query" not in rows[0]:
        return _alike(texts)
    return ReadData(texts, pair_samples(model, rows, name))


# Suites.


def _task_of(path: Path, chosen: DataChoice) -> Task:
    suite = load_suite(path)
    if chosen.task is not None:
        suite = suite.only([chosen.task])
    if len(suite.tasks) > 1:
        names = ", ".join(task.name for task in suite.tasks)
        raise UsageError(
            f"The suite {shown(path)} has several tasks ({names}); say which with --task."
        )
    return suite.limited(chosen.limit).tasks[0]


def _of_task(model: LiveModel, task: Task, chosen: DataChoice) -> ReadData:
    name = f"task {task.name}"
    if task.kind == "classification":
        return _alike(labelled_samples(model, task, name))
    if task.kind == "retrieval":
        return _of_pairs(model, read_lines(task, {"query": str, "document": str}), name, chosen)
    if task.kind == "language_modeling":
        rows: Any = ({"text": line[task.field]} for line in read_lines(task, {task.field: str}))
    elif task.kind == "generation":
        rows = read_lines(task, {"prompt": str, "answer": str})
    elif task.kind == "choice":
        lines = read_lines(task, {"prompt": str, "choices": list, "answer": (int, str)})
        rows = (_answered(line) for line in lines)
    else:
        raise UsageError(
            f"Task {task.name!r} is of kind {task.kind}, whose data are its own; give a task with data."
        )
    if task.context is not None and chosen.context is None:
        context_of(model, task.context)
        chosen = replace(chosen, context=task.context)
    return _alike(_texts(model, rows, name, chosen))


def _answered(line: Mapping[str, Any]) -> dict[str, Any]:
    answer = line["answer"]
    return {
        "prompt": line["prompt"],
        "answer": answer if isinstance(answer, str) else line["choices"][answer],
    }


# Files.


def _rows_of(path: Path, chosen: DataChoice, model: LiveModel) -> Iterator[Mapping[str, Any]]:
    if path.suffix in (".jsonl", ".json"):
        task = Task(path.name, "language_modeling", data=path, limit=chosen.limit)
        return iter(read_lines(task, {}))
    if path.suffix == ".arrow" or path.is_dir():
        return _arrow_rows(path, chosen.limit)
    return iter([{"text": _text_of(path, chosen, context_of(model, chosen.context))}])


def _text_of(path: Path, chosen: DataChoice, context: int) -> str:
    """As much of a text file as the items can have tokens."""
    most = chosen.limit * context * _BYTES_OF_TOKEN
    try:
        with path.open("rb") as file:
            data = file.read(most + 4)
        return data[:most].decode(errors="strict" if len(data) < most else "ignore")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"The data {shown(path)} is no text in UTF-8 (byte {error.start}); give a text file, JSON lines, an arrow "
            "file or a suite."
        ) from None
    except OSError as error:
        raise UsageError(f"The data {shown(path)} cannot be read ({error.strerror}).") from error


def _arrow_rows(path: Path, limit: int) -> Iterator[Mapping[str, Any]]:
    """Rows of the arrow files that `datasets` keeps: a file, or a folder of them."""
    if find_spec("pyarrow") is None:
        raise ResourceError(f"Arrow files need pyarrow; {with_extra('arrow')}.")
    files = sorted(path.glob("*.arrow")) if path.is_dir() else [path]
    if not files:
        raise UsageError(f"The folder {shown(path)} has no arrow files.")
    left = limit
    for file in files:
        for batch in _arrow_batches(file):
            rows = batch.slice(0, left).to_pylist()
            yield from rows
            left -= len(rows)
            if left <= 0:
                return


def _arrow_batches(file: Path) -> Iterator[Any]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(file)) as opened:
            if opened.read(6) == b"ARROW1":
                reader = pa.ipc.open_file(opened)
                yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                opened.seek(0)
                yield from pa.ipc.open_stream(opened)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it is damaged"
        raise UsageError(f"{shown(file)} is no arrow file that can be read ({reason}).") from None


def _named(path: Path) -> str:
    return f"the data {shown(path.name)}"
