"""What a league has measured: a JSON file for each method, parameters and split, so nothing is measured twice."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightsmith.comparison.family import Family
from weightsmith.errors import ResourceError, UsageError
from weightsmith.evaluation import Evaluation
from weightsmith.methods import registry
from weightsmith.publishing import write_file

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class MeasuredCost:
    """What a merge took in a process of its own, on one thread, Python's start and imports included."""

    cpu_seconds: float
    peak_bytes: int

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"cpu_seconds": self.cpu_seconds, "peak_bytes": self.peak_bytes}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing to measure: a member of the family (`method` None) or a merge of its models, on a split.

    `tasks` are those of the suite to score, in its order; empty for all. With `measured` the experts come with their
    statistics.
    """

    split: str
    method: str | None
    member: str = ""
    parameters: Mapping[str, Any] | None = None
    has_base: bool = True
    tasks: tuple[str, ...] = ()
    with_cost: bool = False
    measured: bool = False

    @property
    def title(self) -> str:
        """How progress calls it."""
        if self.method is None:
            return f"{self.member} on {self.split}"
        given = written(self.parameters or {})
        return f"{self.method}{f' ({given})' if given else ''} on {self.split}"

    def digest(self, family: Family) -> str:
        """Equal for measurements that must come out alike."""
        is_merge = self.method is not None
        suite = family.suite_digests.get(self.split)
        content = {
            "schema": SCHEMA,
            # What is measured of a member is the same in every family that it is in.
            "family": family.digest if is_merge else family.member(self.member).digest,
            **({} if is_merge or suite is None else {"suite": suite}),
            "experts": [model.label for model in family.models] if is_merge else [],
            "split": family.measured_as(self.split),
            "method": self.method,
            "member": self.member,
            "parameters": dict(self.parameters or {}),
            "tasks": list(self.tasks),
            "with_cost": self.with_cost,
            "defaults": {} if self.method is None else dict(registry.get(self.method).defaults()),
            **({"statistics": family.statistics_digest} if self.measured else {}),
        }
        text = json.dumps(content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A measurement: the evaluation, and the cost of the merge where it was asked for."""

    evaluation: Evaluation
    cost: MeasuredCost | None


def written(parameters: Mapping[str, Any]) -> str:
    """Parameters in a line, numbers without needless digits."""
    shown = {key: f"{v:g}" if isinstance(v, float) else v for key, v in parameters.items()}
    return ", ".join(f"{key}={value}" for key, value in shown.items())


class Entries:
    """The measurements in a folder. Each is written whole or not at all; a damaged one counts as absent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "entries"
        self._folder.mkdir(parents=True, exist_ok=True)

    def find(self, digest: str) -> Entry | None:
        """The measurement of a digest, or None."""
        try:
            content = json.loads((self._folder / f"{digest}.json").read_bytes())
            cost = content["cost"]
            return Entry(
                Evaluation.from_mapping(content["evaluation"]),
                None
                if cost is None
                else MeasuredCost(float(cost["cpu_seconds"]), int(cost["peak_bytes"])),
            )
        except (OSError, ValueError, KeyError, TypeError, UsageError):
            return None

    def keep(self, digest: str, title: str, entry: Entry) -> None:
        """Write a measurement; answers of items are left out, which ranks do not need."""
        items = {
            name: replace(own, answers=None, expected=None)
            for name, own in entry.evaluation.items.items()
        }
        content = {
            "schema": SCHEMA,
            "title": title,
            "cost": None if entry.cost is None else entry.cost.to_mapping(),
            "evaluation": replace(entry.evaluation, items=items).to_mapping(),
        }
        write_file(self._folder / f"{digest}.json", json.dumps(content).encode())


def recipe_of(candidate: Candidate, family: Family) -> dict[str, Any]:
    """The recipe of a merge of the family's models."""
    recipe: dict[str, Any] = {"weightsmith": 1, "merge_method": candidate.method}
    # Among the statistics at an expert there may be some of the base over its data.
    if (candidate.has_base or candidate.measured) and family.base is not None:
        recipe["base_model"] = family.base.reference
    models: list[dict[str, Any]] = [{"model": model.reference} for model in family.models]
    if candidate.measured:
        for entry, model in zip(models, family.models, strict=True):
            entry["statistics"] = [str(path) for path in family.statistics_of(model.label)]
        spec = registry.get(str(candidate.method))
        if spec.measured_on is registry.MeasuredOn.BASE and family.base is not None:
            files = [str(path) for path in family.statistics_of(family.base.label)]
            models.append({"model": family.base.reference, "statistics": files})
    recipe["models"] = models
    if candidate.parameters:
        recipe["parameters"] = dict(candidate.parameters)
    return recipe


def measure_cost(recipe: Mapping[str, Any]) -> MeasuredCost:
    """Run a merge in a process of its own, on one thread, and take what it says that it took.

    Raises ResourceError if it fails.
    """
    import yaml

    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="weightsmith-league-") as made:
        path = Path(made) / "recipe.yaml"
        path.write_text(yaml.safe_dump(dict(recipe)), "utf-8")
        arguments = ["-m", "weightsmith.comparison.measured_merge", str(path), f"{made}/merged"]
        ended = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            check=False,
            env={**os.environ, **one_thread},
            text=True,
        )
    if ended.returncode != 0:
        # Errors of a plan are a list, of which the last stands for all.
        reason = (ended.stderr.strip().splitlines() or ["no reason was given"])[-1].lstrip(" -")
        raise ResourceError(
            f"The merge with {recipe['merge_method']} could not be measured: {reason}"
        )
    said = json.loads(ended.stdout)
    return MeasuredCost(float(said["cpu_seconds"]), int(said["peak_bytes"]))
