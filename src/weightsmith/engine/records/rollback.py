"""Roll-back: a merge without one of its contributors, made from the record of the merge."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightsmith.adapters import Reference
from weightsmith.checkpoints import BareAdapter
from weightsmith.engine.planning.plan_making import make_plan
from weightsmith.engine.records import manifest as manifests
from weightsmith.engine.records.manifest import Manifest
from weightsmith.engine.records.recorded_inputs import input_called, recorded_opener
from weightsmith.engine.records.rounding_bounds import RoundingBound
from weightsmith.engine.records.subtraction import Subtraction, merged_opener, subtraction
from weightsmith.engine.records.verify import wants_torch
from weightsmith.engine.running.run import run
from weightsmith.errors import CheckpointError, RecipeError
from weightsmith.progress import Progress
from weightsmith.recipes import Opener, Recipe, merged_references, other_references, without


class Way(enum.Enum):
    """How a contributor is taken out: by merging the others afresh, or by subtracting it from the result."""

    REPLAY = "replay"
    SUBTRACTION = "subtraction"


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What `roll_back` made: the new manifest, which contributor is out, how, and how exact each tensor is.

    A replay has no bounds: its bits are those of a merge that never had the contributor. `gone` are inputs that were
    not found, and `was_config_source` says that config and tokenizer are still those of the contributor.
    """

    manifest: Manifest
    contributor: str
    way: Way
    gone: tuple[str, ...] = ()
    was_config_source: bool = False
    bounds: Mapping[str, RoundingBound] = field(default_factory=dict)

    @property
    def worst(self) -> RoundingBound:
        """A bound that holds for every tensor."""
        found = list(self.bounds.values())
        return RoundingBound(
            max((b.merged for b in found), default=0.0),
            max((b.result for b in found), default=0.0),
            max((b.inputs for b in found), default=0.0),
            max((b.smallest for b in found), default=0.0),
        )

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it: what the manifest does not say. `bound` is null for a replay, which is exact."""
        bound = None
        if self.bounds:
            worst = self.worst
            bound = {"merged": worst.merged, "result": worst.result, "inputs": worst.inputs}
        return {
            "without": self.contributor,
            "by": self.way.value,
            "gone": list(self.gone),
            "config_of_contributor": self.was_config_source,
            "bound": bound,
        }


def roll_back(
    folder: Path,
    new: Path,
    contributor: str,
    *,
    by: Way | None = None,
    inputs: Mapping[str, Path] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> RolledBack:
    """Make in `new` what the merge in `folder` would have been without `contributor`, and require the recorded inputs.

    `contributor` is a reference, a label or the last part of a reference of the manifest. By replay, the recipe on
    record without it is run afresh. By subtraction, it is subtracted from the result, which needs `folder`, the
    contributor, and the base where its coefficient changes; the merge must be linear in its inputs. The default is
    replay where every other input is found, else subtraction. `inputs` and `options` are as for `replay`. Raises
    UsageError, RecipeError, CheckpointError and VerificationError, and leaves no output then.
    """
    manifest = manifests.read(folder)
    out = input_called(manifest, contributor)
    reduced = without(Recipe.load(manifest.recipe), out.reference)
    opener = recorded_opener(folder, manifest, inputs or {})
    references = [*merged_references(reduced.document), *other_references(reduced.document)]
    gone = tuple(str(r) for r in dict.fromkeys(references) if not _is_found(r, opener))
    way = by or (Way.SUBTRACTION if gone else Way.REPLAY)
    digests = {given.reference: given.tensors for given in manifest.inputs.values()}
    if way is Way.REPLAY:
        if gone:
            raise CheckpointError(
                f"The input {gone[0]!r} is needed for a replay and is not where it was; say where it lies now, or roll "
                "back by subtraction."
            )
        if wants_torch(manifest, options):
            options["backend"] = "torch"
        plan = make_plan(reduced, opener=opener, **options)
        made = run(plan, new, progress=progress, sources=digests, reads=(folder,))
        return RolledBack(made, out.reference, way)
    found = _subtraction_or_hint(folder, manifest, out.reference, reduced, opener, gone)
    plan = make_plan(found.recipe, opener=merged_opener(folder, opener), **options)
    own = {**digests, str(folder): manifest.outputs}
    made = run(plan, new, progress=progress, sources=own, reads=(folder,))
    was_config_source = manifest.inputs[manifest.config_source].reference == out.reference
    return RolledBack(made, out.reference, way, gone, was_config_source, found.bounds)


def _subtraction_or_hint(
    folder: Path,
    manifest: Manifest,
    contributor: str,
    reduced: Recipe,
    opener: Opener,
    gone: tuple[str, ...],
) -> Subtraction:
    try:
        return subtraction(folder, manifest, contributor, reduced, opener)
    except BareAdapter as adapter:
        raise RecipeError(
            f"The result {str(folder)!r} is an adapter, out of which nothing can be subtracted; give every other input "
            "and roll back by replay."
        ) from adapter
    except RecipeError as error:
        if not gone:
            raise
        listed = ", ".join(map(repr, gone))
        raise RecipeError(f"{error} Not found: {listed}.") from error


def _is_found(reference: Reference, opener: Opener) -> bool:
    try:
        opener(reference)
    except BareAdapter:
        return True
    except CheckpointError:
        return False
    return True
