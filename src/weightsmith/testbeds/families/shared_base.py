"""The data and the base of the family `language`, for the families that begin with them.

They are copied from where that family is built, if it is, and made otherwise: the same files either way.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from weightsmith.testbeds.build import RECORD, libraries
from weightsmith.testbeds.data.language_tasks import LanguageTask
from weightsmith.testbeds.data.sources import file_digest
from weightsmith.testbeds.families.languages import Languages, write_suites
from weightsmith.testbeds.family_places import family_folder
from weightsmith.testbeds.family_registry import BuildStep
from weightsmith.testbeds.workshop import Workshop

Make = Callable[[Workshop], Mapping[str, Any]]


def tasks_among(family: Languages, own: Collection[str]) -> tuple[LanguageTask, ...]:
    """The tasks of a family that tunes the base on some of them: those, the general and the unseen ones."""
    return tuple(task for task in family.tasks if task.group != "own" or task.name in own)


def shared_steps(
    name: str, family: Languages, own: Collection[str], base: str = "base"
) -> tuple[BuildStep, BuildStep]:
    """The steps `data` and `base` of the family `name`, which tunes the base of `family` on the tasks `own`.

    `base` is the folder that the base is written to.
    """
    data_cost, base_cost, *_ = family.costs
    make_base = partial(family.make_base, folder=base)

    def make_data(workshop: Workshop) -> Mapping[str, Any]:
        figures = _copy_or_make(family, "data", family.make_data, workshop)
        write_suites(workshop, name, tasks_among(family, own))
        return figures

    return (
        BuildStep("data", data_cost, make_data),
        BuildStep(base, base_cost, partial(_copy_or_make, family, base, make_base)),
    )


def _copy_or_make(
    family: Languages, folder: str, make: Make, workshop: Workshop
) -> Mapping[str, Any]:
    built = family_folder(family.name)
    record = _record(built, family)
    if record is None:
        return make(workshop)
    inside = "data/" if folder == "data" else "base/"
    files = {path: sha for path, sha in record["files"].items() if path.startswith(inside)}
    for path, digest in files.items():
        if not (built / path).is_file() or file_digest(built / path) != digest:
            return make(workshop)
    for path in files:
        target = f"{folder}/{path.removeprefix(inside)}"
        shutil.copyfile(built / path, workshop.place(target))
    return {} if folder == "data" else {folder: record["figures"]["base"]}


def _record(built: Path, family: Languages) -> dict[str, Any] | None:
    """The record of the built family, if it was made with the same settings, sources and libraries."""
    try:
        record: dict[str, Any] = json.loads((built / RECORD).read_bytes())
    except (OSError, ValueError):
        return None
    settings = json.loads(json.dumps(family.settings()))
    same = all(record["settings"].get(name) == value for name, value in settings.items())
    sources = [source.describe() for source in family.sources]
    same = same and record["sources"] == sources and record["libraries"] == libraries()
    return record if same else None
