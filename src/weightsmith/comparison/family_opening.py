"""Opening a family: one that `testbed build` made, one that somebody describes in a file, or models named one by one.

A file of one's own is JSON (docs/comparison.md, "Your own models"):

    {"family": "letters", "base": "base", "models": ["greek", "cyrillic"], "suite": "suite.yaml"}

Paths are meant from the working directory, else from the folder of the file. Digests are taken of what is there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from weightsmith.adapters import locate, located, parse_reference
from weightsmith.comparison.family import TEST, VALIDATION, Family, Model
from weightsmith.comparison.skill import GENERAL, UNSEEN
from weightsmith.errors import Malformed, UsageError
from weightsmith.evaluation import Suite, load_suite, open_subject
from weightsmith.naming import nearest
from weightsmith.tensors import expanded, loads_json, read_small
from weightsmith.testbeds import family_folder
from weightsmith.wording import counted, fault, literal, shown

_LARGEST_BYTES = 10_000_000
RECORD = "family.json"
_KEYS = ("family", "base", "models", "experts", "suite", "suites")
_WHERE = 'docs/comparison.md, "Your own models", has its form'


def open_family(given: str | Path) -> Family:
    """The family in a folder, of a family file, or of a name that `weightsmith testbed build` put into the cache.

    Raises UsageError if there is none, or if it has no models to merge, and what opening models and suites raises.
    """
    path = expanded(given)
    record = path if path.suffix == ".json" and path.is_file() else path / RECORD
    if not record.is_file():
        record = family_folder(str(given)) / RECORD
    if not record.is_file():
        raise UsageError(
            f"There is no family {str(given)!r}; give a folder with {RECORD}, or build it with "
            f"`weightsmith testbed build {given}`; for models of your own give --models and --suite."
        )
    record = record.absolute()
    content = _read(record)
    if "digest" in content and "models" not in content:
        return _built(record, content)
    return _described(record, content)


def family_of_models(
    models: Sequence[str],
    base: str | None,
    suite: str | Path,
    validation: str | Path | None = None,
) -> Family:
    """A family of models that are named one by one, called by their folders.

    The expert of a task is the model with the task's name, else the one that scores best on it. Without a suite for
    `validation`, half of the items of `suite` are for it. Raises UsageError for too few models, or suites that do not
    have the same tasks, and what opening models and suites raises.
    """
    named = _labelled(models if base is None else (base, *models))
    suites = {TEST: Path(suite)} if validation is None else _both(validation, suite)
    return _Own("your models", named[0] if base is not None else None, named, suites).family()


def _both(validation: str | Path, test: str | Path) -> dict[str, Path]:
    return {VALIDATION: expanded(validation), TEST: expanded(test)}


@dataclass(frozen=True, slots=True)
class _Own:
    """Models of somebody's own: pairs of label and reference, the base's first if there is one."""

    name: str
    base: tuple[str, str] | None
    members: Sequence[tuple[str, str]]
    suites: Mapping[str, Path]
    experts: Mapping[str, str] | None = None

    def family(self) -> Family:
        least = 1 if self.base is not None else 2
        number = len(self.members) - (self.base is not None)
        if number < least:
            more = "" if self.base is not None else ", or one and the base that it was made from"
            raise UsageError(
                f"A league merges at least {counted(least, 'model')}{more}; {number} was given."
            )
        suites = {split: load_suite(path) for split, path in self.suites.items()}
        tasks = _own_tasks(suites)
        opened = [Model(label, at, open_subject(at).digest) for label, at in self.members]
        models = tuple(opened if self.base is None else opened[1:])
        owners, unassigned = self._owners(tasks, [model.label for model in models])
        digests = {split: one.digest() for split, one in suites.items()}
        content = [self.base is not None, [model.digest for model in opened], digests]
        return Family(
            name=self.name,
            digest=f"sha256:{hashlib.sha256(json.dumps(content).encode()).hexdigest()}",
            base=None if self.base is None else opened[0],
            models=models,
            owners=owners,
            suites={VALIDATION: self.suites[TEST], **self.suites},
            unassigned=unassigned,
            is_halved=VALIDATION not in self.suites,
            suite_digests={VALIDATION: digests[TEST], **digests},
        )

    def _owners(
        self, tasks: Sequence[str], labels: Sequence[str]
    ) -> tuple[dict[str, str], tuple[str, ...]]:
        if self.experts is not None:
            return {task: self.experts[task] for task in tasks if task in self.experts}, ()
        return {task: task for task in tasks if task in labels}, tuple(
            task for task in tasks if task not in labels
        )


def _own_tasks(suites: Mapping[str, Suite]) -> list[str]:
    """The tasks that models may be experts of: those of the report that are of no other group."""
    own = [t.name for t in suites[TEST].tasks if t.group not in {GENERAL, UNSEEN}]
    if not own:
        raise UsageError(
            f"All tasks of {shown(suites[TEST].source)} are of the groups {GENERAL} and {UNSEEN}, so no model is the "
            "expert of any; a league needs a task of the models' own."
        )
    for suite in suites.values():
        known = {task.name for task in suite.tasks}
        lacking = next((task for task in own if task not in known), None)
        if lacking is not None:
            raise UsageError(
                f"{suite.source} has no task {lacking!r}, which {suites[TEST].source} has; scales are tuned on the "
                "tasks that are reported, so give both suites the same."
            )
    return own


def _labelled(references: Sequence[str]) -> list[tuple[str, str]]:
    """References with the names of their last parts; with the whole reference where two would be called alike."""
    short = [PurePath(reference).name or reference for reference in references]
    repeated = next((r for r in references if references.count(r) > 1), None)
    if repeated is not None:
        raise UsageError(f"The model {shown(repeated)} is given twice; name each once.")
    return [
        (reference if short.count(name) > 1 else name, reference)
        for name, reference in zip(short, references, strict=True)
    ]


def _built(record: Path, content: Mapping[str, Any]) -> Family:
    """A family that was built: checkpoints in base/ and experts/TASK, and suite.SPLIT.yaml for each split."""
    folder = record.parent
    tasks = content.get("tasks")
    if not isinstance(tasks, (list, dict)):
        raise _wrong(record, "tasks", "has to be a list of names", "build the family again")
    digest, name = str(content["digest"]), str(content.get("family", folder.name))
    experts = [task for task in map(str, tasks) if (folder / "experts" / task).is_dir()]
    if not experts or not (folder / "base").is_dir():
        raise UsageError(
            f"The family {str(folder)!r} has no base with experts for its tasks, so there is nothing to merge."
        )
    splits = (VALIDATION, TEST)
    return Family(
        name=name,
        digest=digest,
        base=Model("base", str(folder / "base"), digest),
        models=tuple(Model(task, str(folder / "experts" / task), digest) for task in experts),
        owners={task: task for task in experts},
        suites={
            split: path for split in splits if (path := folder / f"suite.{split}.yaml").is_file()
        },
        folder=folder,
    )


def _described(record: Path, content: Mapping[str, Any]) -> Family:
    """A family that somebody describes; raises UsageError that names the key."""
    for key in content:
        if key not in _KEYS:
            near = nearest(key, _KEYS)
            hint = f"did you mean {near!r}?" if near else f"it has {', '.join(_KEYS)}."
            raise UsageError(f"{str(record)!r} has no key {key!r}; {hint}")
    if not isinstance(content.get("models"), (list, dict)) or not content["models"]:
        raise _wrong(record, "models", "has to be a list of models to merge, or names with models")
    name = content.get("family", record.parent.name)
    if not isinstance(name, str) or not name:
        raise _wrong(record, "family", "has to be the family's name")
    members = _members(record, content.get("base"), content["models"])
    base = None if content.get("base") is None else members[0]
    experts = _experts(record, content.get("experts"), dict(members[base is not None :]))
    return _Own(name, base, members, _suites(record, content), experts).family()


def _members(record: Path, base: Any, models: Any) -> list[tuple[str, str]]:
    """The base, if there is one, then the models, each with its label."""
    first = [] if base is None else [_reference(record, "base", base)]
    if isinstance(models, list):
        return _labelled([*first, *(_reference(record, "models", at) for at in models)])
    named = [(str(label), _reference(record, "models", at)) for label, at in models.items()]
    of_base = [(at if PurePath(at).name in models else PurePath(at).name, at) for at in first]
    return [*of_base, *named]


def _experts(record: Path, given: Any, models: Mapping[str, str]) -> dict[str, str] | None:
    if given is None:
        return None
    if not isinstance(given, dict) or not given:
        raise _wrong(record, "experts", "has to name a model for each task")
    for task, label in given.items():
        if not isinstance(label, str) or label not in models:
            named = ", ".join(models)
            raise _wrong(
                record,
                "experts",
                f"gives task {task!r} the model {literal(label)}, which is not among `models`",
                f"name one of {named}",
            )
    return {str(task): str(label) for task, label in given.items()}


def _suites(record: Path, content: Mapping[str, Any]) -> dict[str, Path]:
    one, both = content.get("suite"), content.get("suites")
    if (one is None) == (both is None):
        raise _wrong(
            record,
            "suite",
            "has to name the suite to report on",
            "or give `suites` with validation and test, one of the two keys",
        )
    if both is None:
        return {TEST: _path(record, "suite", one)}
    if not isinstance(both, dict) or set(both) != {VALIDATION, TEST}:
        raise _wrong(record, "suites", "has to name two suites, validation and test")
    return {split: _path(record, "suites", both[split]) for split in (VALIDATION, TEST)}


def _path(record: Path, key: str, given: Any) -> Path:
    if not isinstance(given, str) or not given:
        raise _wrong(record, key, f"names {literal(given)}, which is no path")
    return expanded(locate(given, record.parent))


def _reference(record: Path, key: str, given: Any) -> str:
    """A model as it is opened, its local paths meant from the folder of the record too."""
    if not isinstance(given, str) or not given:
        raise _wrong(record, key, f"names {literal(given)}, which is no path or Hub id")
    try:
        return str(located(parse_reference(given, record.parent), record.parent))
    except ValueError as problem:
        raise _wrong(
            record, key, f"names {shown(given)}: {str(problem).rstrip('.')}", "correct it"
        ) from None


def _wrong(record: Path, key: str, what: str, advice: str = _WHERE) -> UsageError:
    return UsageError(f"{str(record)!r}: `{key}` {what}; {advice}.")


def _read(path: Path) -> dict[str, Any]:
    try:
        record = loads_json(read_small(path, _LARGEST_BYTES))
        if not isinstance(record, dict):
            raise Malformed("it holds no JSON object")
    except OSError as problem:
        raise UsageError(f"{str(path)!r} cannot be read ({problem.strerror}).") from None
    except Malformed as problem:
        raise UsageError(
            f"{str(path)!r} is no record of a family ({fault(problem)}); {_WHERE}."
        ) from None
    return record
