"""Suites: YAML files that list tasks, read strictly.

    suite: NAME
    tasks:
      - {name: greek, kind: classification, data: data/greek.npz, head: heads/greek.safetensors, metric: accuracy}
      - {name: de, kind: language_modeling, data: data/de.jsonl, metric: bits_per_byte, context: 128}

Paths are relative to the folder of the suite file. What a key means is said in docs/evaluation.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightsmith.errors import RecipeError, UsageError
from weightsmith.evaluation.metrics import METRICS_OF, find_metric
from weightsmith.naming import nearest
from weightsmith.recipes import (
    MOST_BYTES,
    DocumentKind,
    Place,
    YamlDocument,
    parse_documents,
    refuse_other_kinds,
)
from weightsmith.tensors import expanded, read_small
from weightsmith.wording import literal, shown

HARNESS = "harness"
GROUPS = ("own", "general", "unseen")
_EVERY = ("name", "kind", "metric", "limit", "batch_size", "group")
_OWN_DATA = ("data", "slice")
_KEYS: Mapping[str, tuple[str, ...]] = {
    "classification": (*_OWN_DATA, "head"),
    "language_modeling": (*_OWN_DATA, "field", "context", "stride"),
    "choice": (*_OWN_DATA, "context"),
    "generation": (*_OWN_DATA, "max_new_tokens", "until", "context"),
    "retrieval": _OWN_DATA,
    HARNESS: ("task", "include", "few_shot"),
}
_NUMBERS = frozenset({"limit", "batch_size", "context", "stride", "max_new_tokens", "few_shot"})
_PATHS = frozenset({"data", "head", "include"})
# What is done so many times whatever the data.
_MOST = {"few_shot": 1000, "max_new_tokens": 100_000}
_LARGEST = 10**9
_FROM_ZERO = frozenset({"few_shot"})
_CHUNK = 1 << 20
_SUITE = DocumentKind("suite", "suite and tasks")


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a suite; a key that its kind does not have is None.

    `limit` takes the first items only. `slice` names the field (or array) with the slice of each item. `group` says
    what the task is to the models that are compared: their own skill, a general one, or one that none was trained for.
    """

    name: str
    kind: str
    metric: str | None = None
    data: Path | None = None
    head: Path | None = None
    field: str = "text"
    slice: str | None = None
    group: str | None = None
    limit: int | None = None
    batch_size: int | None = None
    context: int | None = None
    stride: int | None = None
    max_new_tokens: int = 32
    until: tuple[str, ...] = ()
    task: str | None = None
    include: Path | None = None
    few_shot: int | None = None

    def digest(self) -> str:
        """SHA-256 over everything that decides the scores, the bytes of its files included, but for a harness's own.

        Raises UsageError for a file that cannot be read.
        """
        content = {name: getattr(self, name) for name in self.__slots__}
        for name in ("batch_size", "group", "include"):
            del content[name]
        for name in ("data", "head"):
            if content[name] is not None:
                content[name] = _file_digest(content[name], self.name)
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite and where it was read from."""

    name: str
    tasks: tuple[Task, ...]
    source: str

    @property
    def files(self) -> tuple[Path, ...]:
        """The suite itself, and all files and folders that its tasks name."""
        named = [path for task in self.tasks for path in (task.data, task.head, task.include)]
        return (Path(self.source), *(path for path in named if path is not None))

    def digest(self) -> str:
        """SHA-256 over the tasks in their order."""
        content = [self.name, *(task.digest() for task in self.tasks)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def only(self, names: Sequence[str]) -> Suite:
        """The suite with some of its tasks, in the order of the suite; raises UsageError for an unknown name."""
        known = [task.name for task in self.tasks]
        for name in names:
            if name not in known:
                raise UsageError(
                    f"{self.source} has no task {name!r}; {_hint(name, known, 'it has')}"
                )
        return replace(self, tasks=tuple(task for task in self.tasks if task.name in names))

    def limited(self, limit: int) -> Suite:
        """The suite with at most `limit` items of every task."""
        least = [min(limit, task.limit or limit) for task in self.tasks]
        tasks = (replace(task, limit=most) for task, most in zip(self.tasks, least, strict=True))
        return replace(self, tasks=tuple(tasks))


def load_suite(path: str | Path) -> Suite:
    """Read a suite file.

    Raises RecipeError, with line and column, for text that is no suite, an unknown key, kind or metric, two tasks of
    one name, or a missing file; UsageError if there is no suite file.
    """
    path = expanded(path)
    try:
        text = read_small(path, MOST_BYTES, pipes=True).decode()
    except FileNotFoundError:
        raise UsageError(f"There is no suite file {shown(path)}; give the path of one.") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"The suite {shown(path)} is not UTF-8 text (byte {error.start}); save it as UTF-8."
        ) from None
    except OSError as error:
        raise UsageError(
            f"The suite {shown(path)} cannot be read ({error.strerror}); give a YAML file."
        ) from error
    return _Reader(_only_document(text, str(path)), path.absolute().parent).suite()


def _only_document(text: str, source: str) -> YamlDocument:
    documents = parse_documents(text, source, _SUITE)
    if len(documents) > 1:
        raise RecipeError(f"{source} holds {len(documents)} documents; a suite is one.")
    return documents[0]


@dataclass(frozen=True, slots=True)
class _Reader:
    document: YamlDocument
    folder: Path

    def suite(self) -> Suite:
        data = self.document.data
        refuse_other_kinds(self.document, "suite")
        self._known_keys(data, ("suite", "tasks"), (), "A suite")
        name = data.get("suite", Path(self.document.source).stem)
        if not isinstance(name, str) or not name:
            raise self._wrong(("suite",), f"suite is the suite's name, not {literal(name)}")
        entries = data.get("tasks")
        if not isinstance(entries, list) or not entries:
            raise self._wrong(("tasks",), "a suite needs `tasks`, a list of at least one task")
        tasks = [self._task(entry, ("tasks", i)) for i, entry in enumerate(entries)]
        seen: set[str] = set()
        for i, task in enumerate(tasks):
            if task.name in seen:
                raise self._wrong(
                    ("tasks", i), f"two tasks have the name {task.name!r}; rename one"
                )
            seen.add(task.name)
        return Suite(name, tuple(tasks), self.document.source)

    def _task(self, entry: Any, place: Place) -> Task:
        if not isinstance(entry, dict):
            raise self._wrong(
                place, f"a task is a mapping with name and kind, not {literal(entry)}"
            )
        kind = str(entry.get("kind"))
        if kind not in _KEYS:
            what = (
                "a task needs a kind"
                if "kind" not in entry
                else f"there is no kind of task {kind!r}"
            )
            raise self._wrong(place, f"{what}; {_hint(kind, tuple(_KEYS), 'there are')}")
        self._known_keys(entry, (*_EVERY, *_KEYS[kind]), place, f"A {kind} task")
        for key in ("name", "task" if kind == HARNESS else "data"):
            if key not in entry:
                raise self._wrong(place, f"a {kind} task needs the key {key!r}")
        values = {key: self._value(key, value, (*place, key)) for key, value in entry.items()}
        if kind != HARNESS:
            values["metric"] = self._metric(entry.get("metric"), kind, place)
        return self._consistent(Task(**values), place)

    def _metric(self, name: Any, kind: str, place: Place) -> str:
        if name is None:
            return METRICS_OF[kind][0]
        try:
            return find_metric(str(name), kind).name
        except UsageError as problem:
            raise self._wrong((*place, "metric"), str(problem)) from None

    def _value(self, key: str, value: Any, place: Place) -> Any:
        if key in _NUMBERS:
            least, most = 0 if key in _FROM_ZERO else 1, _MOST.get(key, _LARGEST)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise self._wrong(
                    place, f"{key} is a whole number from {least}, not {literal(value)}"
                )
            if value > most:
                raise self._wrong(place, f"{key} is at most {most}, not {literal(value)}")
            return value
        if key == "until":
            texts = [value] if isinstance(value, str) else value
            if not isinstance(texts, list) or not all(isinstance(t, str) and t for t in texts):
                raise self._wrong(
                    place, f"until is a text or a list of texts, not {literal(value)}"
                )
            return tuple(texts)
        if not isinstance(value, str) or not value:
            raise self._wrong(place, f"{key} is a text, not {literal(value)}")
        if key == "group" and value not in GROUPS:
            raise self._wrong(
                place, f"there is no group {value!r}; {_hint(value, GROUPS, 'there are')}"
            )
        return self._path(value, place) if key in _PATHS else value

    def _path(self, value: str, place: Place) -> Path:
        path = self.folder / expanded(value)
        try:
            is_there, is_file = path.exists(), path.is_file()
        except OSError as error:
            raise self._wrong(
                place, f"{shown(path)} cannot be looked at ({error.strerror})"
            ) from None
        if not is_there:
            raise self._wrong(
                place, f"there is no file {shown(path)}; paths are relative to the suite"
            )
        # A device or a pipe could be read for ever.
        if not is_file and place[-1] != "include":
            raise self._wrong(place, f"{shown(path)} is no regular file")
        return path

    def _consistent(self, task: Task, place: Place) -> Task:
        if task.stride is not None and task.stride > (task.context or task.stride):
            raise self._wrong(
                (*place, "stride"),
                f"the stride {task.stride} is larger than the context {task.context}",
            )
        return task

    def _known_keys(
        self, given: Mapping[str, Any], known: Sequence[str], place: Place, what: str
    ) -> None:
        for key in given:
            if key not in known:
                hint = _hint(key, known, "it has")
                raise self._wrong((*place, key), f"{what} has no key {key!r}; {hint}")

    def _wrong(self, place: Place, sentence: str) -> RecipeError:
        end = "" if sentence.endswith((".", "?")) else "."
        return RecipeError(f"{self.document.where(place)}: {sentence}{end}")


def _hint(given: str, known: Sequence[str], intro: str) -> str:
    near = nearest(given, known)
    return f"did you mean {near!r}?" if near else f"{intro} {', '.join(known)}."


def _file_digest(path: Path, task: str) -> str:
    try:
        with path.open("rb") as file:
            state = hashlib.sha256()
            while chunk := file.read(_CHUNK):
                state.update(chunk)
            return state.hexdigest()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"The file {str(path)!r} of task {task!r} cannot be read ({reason})."
        ) from error
