"""Building a family: step by step in a staging folder, each step whole or absent, then one rename.

OUT.partial/
  steps.jsonl    one line per finished step: its files with their digests, its figures, its seconds
  new/           files of the step that is being made
  family/        files of finished steps; renamed to OUT when all are there
  ...            see `publishing.staging`

A second build of the same family goes on after the last finished step.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from weightsmith.errors import OutputError, ResourceError
from weightsmith.publishing import (
    FOREIGN,
    Recorded,
    StagingFolder,
    check_free,
    check_place,
    sealed,
    unsealed,
    write_file,
)
from weightsmith.tensors import expanded
from weightsmith.testbeds.data.sources import file_digest
from weightsmith.testbeds.family_places import family_folder
from weightsmith.testbeds.family_registry import Blueprint, BuildStep, TrainedFamily, find_family
from weightsmith.testbeds.workshop import Workshop
from weightsmith.wording import with_extra

RECORD = "family.json"
_STEPS = "steps.jsonl"
_ALGORITHM = "sha256:"
_LIBRARIES = ("numpy", "torch", "transformers", "scikit-learn", "pillow")


class BuildProgress(Protocol):
    """What hears of a build: costs are expected CPU-seconds."""

    def start(self, total_cost: float, finished_cost: float) -> None:
        """The whole cost, and that of the steps that an earlier build has finished."""

    def step(self, name: str, cost: float) -> None:
        """A step begins."""

    def within(self, done: int, total: int) -> None:
        """The present step has done some of its own units (training steps, images, texts)."""

    def finished(self, name: str, figures: Mapping[str, Any]) -> None:
        """A step is finished and safe."""


class SilentBuild:
    """A progress that nobody hears."""

    def start(self, total_cost: float, finished_cost: float) -> None:
        """Ignore."""

    def step(self, name: str, cost: float) -> None:
        """Ignore."""

    def within(self, done: int, total: int) -> None:
        """Ignore."""

    def finished(self, name: str, figures: Mapping[str, Any]) -> None:
        """Ignore."""


def build(
    name: str,
    out: Path | None = None,
    *,
    force: bool = False,
    fresh: bool = False,
    progress: BuildProgress | None = None,
) -> Path:
    """Build a family and return its folder; one that exists already is returned as it is.

    An interrupted build leaves what it finished and goes on when it is called again, unless `fresh` is given. `force`
    builds a family anew that exists, and then puts it in its place.
    Raises UsageError for an unknown name, ResourceError if a library or a download is missing, OutputError if the
    place is taken by something else or by another build.
    """
    family = find_family(name)
    out = expanded(family_folder(name) if out is None else out).absolute()
    _check_libraries(family)
    if _is_taken(out, name) and not force:
        return out
    blueprint = family.blueprint()
    out.parent.mkdir(parents=True, exist_ok=True)
    out = check_place(out, ())
    with _BuildFolder(out) as staging:
        earlier = check_free(out, family_problem, force=force)
        mark = fingerprint(family, blueprint)
        if not fresh:
            staging.records |= _finished(staging.folder, mark)
        _begin(staging.folder, mark, staging.records)
        _run(blueprint, staging.folder, staging.records, progress or SilentBuild())
        _seal(family, blueprint, staging.folder, staging.records)
        staging.publish(earlier)
    return out


class _BuildFolder(StagingFolder):
    """The staging folder of a build; an interrupted one is kept if a step of it is finished."""

    def __init__(self, out: Path) -> None:
        self.records: dict[str, dict[str, Any]] = {}
        super().__init__(out, family_problem, whole="family", beside=(_STEPS, "new"))

    def is_worthless(self) -> bool:
        return not self.records and not _has_steps(self.folder / _STEPS)


def fingerprint(family: TrainedFamily, blueprint: Blueprint) -> str:
    """What must be equal for one build to go on with another's steps: settings, sources and library versions."""
    content = {
        "family": family.name,
        "settings": blueprint.settings,
        "sources": [source.describe() for source in blueprint.sources],
        "steps": [step.name for step in blueprint.steps],
        "libraries": libraries(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def libraries() -> dict[str, str]:
    """The versions of the libraries that decide a trained model's bits."""
    return {name: version(name) for name in _LIBRARIES if _is_installed(name)}


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _check_libraries(family: TrainedFamily) -> None:
    missing = [name for name in family.needs if find_spec(name) is None]
    if missing:
        raise ResourceError(
            f"The family {family.name!r} needs {', '.join(missing)}, which this environment lacks; "
            f"{with_extra('testbed')}."
        )


def _is_taken(out: Path, name: str) -> bool:
    """Whether the family lies at `out`; raises OutputError if something else does."""
    if not os.path.lexists(out):
        return False
    try:
        there = json.loads((out / RECORD).read_bytes())["family"]
    except (OSError, ValueError, KeyError, TypeError):
        there = None
    if there != name:
        what = f"the family {there!r}" if there else "something that is no family"
        raise OutputError(f"{str(out)!r} holds {what}; choose another place, or remove it.")
    return True


def family_problem(folder: Path, thorough: bool) -> str:
    """What stands against replacing a family; see `publishing.earlier.Problem`.

    The record of a family that was built before records were sealed is taken as it is.
    """
    try:
        text = (folder / RECORD).read_bytes()
        record = json.loads(text)
        if "seal" in record:
            unsealed(text)
        files = {path: str(d).removeprefix(_ALGORITHM) for path, d in record["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"holds no {RECORD}, or one that {FOREIGN} or was changed since"
    return Recorded(RECORD, files).problem(folder, thorough)


def _has_steps(journal: Path) -> bool:
    """Whether a build that was interrupted before has finished a step: there is a line behind the first."""
    return journal.is_file() and journal.read_bytes().count(b"\n") > 1


def _begin(staging: Path, mark: str, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Make the folders, and a journal with nothing in it but the finished steps."""
    if not records:
        shutil.rmtree(staging / "family", ignore_errors=True)
    (staging / "family").mkdir(exist_ok=True)
    lines = [{"fingerprint": mark}, *records.values()]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_file(staging / _STEPS, text.encode())


def _finished(staging: Path, mark: str) -> dict[str, dict[str, Any]]:
    """The records of finished steps by name, as far as their files are what they were; none of another build's."""
    try:
        lines = (staging / _STEPS).read_text().splitlines()
        first, *rest = [json.loads(line) for line in lines if line.endswith("}")]
    except (OSError, ValueError):
        return {}
    if first.get("fingerprint") != mark:
        return {}
    records: dict[str, dict[str, Any]] = {}
    for record in rest:
        whole = all(
            (staging / "family" / path).is_file()
            and file_digest(staging / "family" / path) == digest
            for path, digest in record["files"].items()
        )
        if not whole:
            break
        records[record["step"]] = record
    return records


def _run(
    blueprint: Blueprint, staging: Path, records: dict[str, dict[str, Any]], progress: BuildProgress
) -> None:
    done = sum(step.cost for step in blueprint.steps if step.name in records)
    progress.start(sum(step.cost for step in blueprint.steps), done)
    for step in blueprint.steps:
        if step.name in records:
            continue
        progress.step(step.name, step.cost)
        record = _make(step, staging, progress)
        records[step.name] = record
        progress.finished(step.name, record["figures"])


def _make(step: BuildStep, staging: Path, progress: BuildProgress) -> dict[str, Any]:
    new, family = staging / "new", staging / "family"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    begun = time.perf_counter()
    figures = step.make(Workshop(family, new, progress.within))
    record: dict[str, Any] = {
        "step": step.name,
        "files": file_digests(new),
        "figures": dict(figures),
        "seconds": round(time.perf_counter() - begun, 1),
    }
    for path in record["files"]:
        target = family / path
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / path, target)
    with (staging / _STEPS).open("a") as journal:
        journal.write(json.dumps(record) + "\n")
        journal.flush()
        os.fsync(journal.fileno())
    return record


def file_digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by its path with forward slashes, sorted."""
    return {path: file_digest(folder / path) for path in _files(folder)}


def _files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _seal(
    family: TrainedFamily,
    blueprint: Blueprint,
    staging: Path,
    records: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write family.json."""
    files = dict(sorted(item for record in records.values() for item in record["files"].items()))
    weights = {path.rpartition("/")[0] for path in files if path.endswith(".safetensors")}
    configs = {path.rpartition("/")[0] for path in files if path.endswith("config.json")}
    folders = sorted(weights & configs)
    figures = {
        member: row for record in records.values() for member, row in record["figures"].items()
    }
    state = hashlib.sha256(json.dumps(files).encode())
    content = {
        "family": family.name,
        "title": family.title,
        "tasks": list(blueprint.tasks),
        "members": folders,
        "digest": f"sha256:{state.hexdigest()}",
        "settings": blueprint.settings,
        "sources": [source.describe() for source in blueprint.sources],
        "libraries": libraries(),
        "figures": figures,
        "seconds": {name: record["seconds"] for name, record in records.items()},
        "files": files,
    }
    write_file(staging / "family" / RECORD, sealed(content))
