"""A task bundle: parts of tensors that several models are put together from, and the header that says how."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weightsmith.checkpoints import BUNDLE_HEADER, BundleHeader, BundleTask, CodedTensor, part_names
from weightsmith.engine.outputs.bundle_parts import TaskBundle, bundled
from weightsmith.engine.outputs.dense_output import DenseFolder
from weightsmith.engine.records.journal import Journal, TensorRecord
from weightsmith.engine.records.manifest import Merged
from weightsmith.publishing import write_file
from weightsmith.recipes import Resolved
from weightsmith.tensors import ShardLayout, plan_layout

if TYPE_CHECKING:
    from weightsmith.engine.planning.plan import Plan

_NO_MODEL = (
    "The recipe makes a task bundle, which is several models: merge it into a folder and give one of them as "
    "FOLDER#TASK."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleFolder(DenseFolder):
    """Shards of parts, those of one tensor being computed in one reading, and `weightsmith-bundle.json`."""

    bundle: TaskBundle
    no_model: str = _NO_MODEL

    @classmethod
    def of_models(cls, resolved: Resolved) -> BundleFolder:
        """The bundle that a recipe with `bundle:` asks for; raises RecipeError as `bundled` does."""
        readings, bundle = bundled(resolved.recipe.document, resolved.outputs, resolved.checkpoints)
        return cls(readings, bundle=bundle)

    def layout(self, shard_bytes: int) -> ShardLayout:
        """Shards alone: a bundle has parts of all tensors, wherever these lie in a model."""
        return plan_layout([made.stored for made in self._tensors()], shard_bytes)

    def write_beside(
        self,
        plan: Plan,
        merged: Merged,
        records: Mapping[str, TensorRecord],
        journal: Journal,
        folder: Path,
    ) -> None:
        """What lies beside any shards, and the bundle's header."""
        DenseFolder.write_beside(self, plan, merged, records, journal, folder)
        header = bundle_header(self.bundle, merged).to_json()
        text = json.dumps(header, indent=1, ensure_ascii=True) + "\n"
        write_file(folder / BUNDLE_HEADER, text.encode())


def bundle_header(bundle: TaskBundle, made: Merged) -> BundleHeader:
    """What members are decoded by: method, tasks, base and digests of all parts."""
    base = made.inputs.get(bundle.base)
    places: list[str] = []
    if not bundle.stores_base and base is not None:
        places = [place for place in (base.path, base.hub_id, base.reference) if place]
    tasks = tuple(_task(label, made) for label in bundle.tasks)
    return BundleHeader(
        method=bundle.method,
        parameters={key: value for key, value in bundle.parameters.items() if key != "task"},
        tasks=tasks,
        base_reference=base.reference if base is not None else "",
        base_digest=base.digest if base is not None else "",
        base_places=tuple(places),
        tensors={name: _tensor(name, bundle, made) for name in bundle.tensors},
    )


def _task(label: str, made: Merged) -> BundleTask:
    expert = made.inputs.get(label)
    return BundleTask(label, expert.reference if expert else label, expert.digest if expert else "")


def _tensor(name: str, bundle: TaskBundle, made: Merged) -> CodedTensor:
    tensor = bundle.tensors[name]
    digests = {}
    if tensor.base is not None:
        digests["base"] = made.inputs[tensor.base.checkpoint].tensors[tensor.base.tensor]
    elif name in made.outputs:
        digests["base"] = made.outputs[name]
    if tensor.coded:
        names = part_names(name, len(bundle.tasks), scaled=tensor.scaled)
        digests |= {
            part: made.outputs[full] for part, full in names.items() if full in made.outputs
        }
    return CodedTensor(
        tensor.dtype,
        None if tensor.base is None else tensor.base.tensor,
        tensor.coded,
        tensor.scaled,
        digests,
    )
