"""A family on disk as a league sees it: a base, an expert for each task, and a suite for each split."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightsmith.errors import Malformed, UsageError
from weightsmith.tensors.paths import expanded
from weightsmith.tensors.small_files import read_small
from weightsmith.tensors.strict_json import loads_json
from weightsmith.testbeds.places import family_folder
from weightsmith.testbeds.sources import file_digest
from weightsmith.wording import fault

_LARGEST_BYTES = 10_000_000
RECORD = "family.json"


@dataclass(frozen=True, slots=True)
class Family:
    """Where the members and suites of a family lie; `experts` are its tasks with an expert, in the family's order.

    `digest` is over the bytes of all files. `statistics` is a folder of what was measured on the experts, as files
    TASK.KIND.safetensors, for methods that need it, and `statistics_digest` over the bytes of these.
    """

    name: str
    folder: Path
    digest: str
    experts: tuple[str, ...]
    statistics: Path | None = None
    statistics_digest: str = ""

    @property
    def base(self) -> Path:
        """The folder of the base."""
        return self.folder / "base"

    def expert(self, task: str) -> Path:
        """The folder of a task's expert."""
        return self.folder / "experts" / task

    def suite(self, split: str) -> Path:
        """The suite of a split; raises UsageError if the family has none."""
        path = self.folder / f"suite.{split}.yaml"
        if not path.is_file():
            raise UsageError(
                f"The family {str(self.folder)!r} has no split {split!r}; use validation or test."
            )
        return path

    def statistics_of(self, task: str) -> list[Path]:
        """The statistics files of a task's expert, by name."""
        return (
            [] if self.statistics is None else sorted(self.statistics.glob(f"{task}.*.safetensors"))
        )

    def measured(self, statistics: Path) -> Family:
        """The family with a folder of statistics; raises UsageError for one that lacks an expert's."""
        found = replace(self, statistics=statistics.absolute())
        state = hashlib.sha256()
        for task in self.experts:
            files = found.statistics_of(task)
            for path in files:
                state.update(f"{path.name} {file_digest(path)}\n".encode())
            if not files:
                raise UsageError(
                    f"The folder {str(statistics)!r} has no statistics of the expert {task!r}; it needs files such as "
                    f"{task}.fisher.safetensors."
                )
        return replace(found, statistics_digest=state.hexdigest())

    def first(self, experts: int) -> Family:
        """The family with its first experts only; raises UsageError where it has fewer."""
        if not 1 <= experts <= len(self.experts):
            raise UsageError(
                f"The family {self.name!r} has {len(self.experts)} experts, so {experts} cannot be merged."
            )
        return replace(self, experts=self.experts[:experts])


def open_family(given: str | Path) -> Family:
    """The family in a folder, or the one of a name that `weightsmith testbed build` put into the cache.

    Raises UsageError if there is none, or if it has no base or no experts to merge.
    """
    folder = expanded(given)
    if not (folder / RECORD).is_file():
        folder = family_folder(str(given))
    if not (folder / RECORD).is_file():
        raise UsageError(
            f"There is no family {str(given)!r}; give a folder with {RECORD}, or build it with "
            f"`weightsmith testbed build {given}`."
        )
    folder = folder.absolute()
    record = _read(folder / RECORD)
    experts = tuple(
        task for task in map(str, record["tasks"]) if (folder / "experts" / task).is_dir()
    )
    if not experts or not (folder / "base").is_dir():
        raise UsageError(
            f"The family {str(folder)!r} has no base with experts for its tasks, so there is nothing to merge."
        )
    return Family(str(record["family"]), folder, str(record["digest"]), experts)


def _read(path: Path) -> dict[str, Any]:
    try:
        record = loads_json(read_small(path, _LARGEST_BYTES))
        if not isinstance(record, dict):
            raise Malformed("it holds no JSON object")
        known = {key: record[key] for key in ("family", "digest", "tasks")}
        if not isinstance(known["tasks"], (list, dict)):
            raise Malformed("its tasks are no list of names")
    except OSError as problem:
        raise UsageError(f"{str(path)!r} cannot be read ({problem.strerror}).") from None
    except (Malformed, KeyError) as problem:
        raise UsageError(
            f"{str(path)!r} is no record of a family of test models ({fault(problem)}); a family is made by "
            "`weightsmith testbed build`."
        ) from None
    return known
