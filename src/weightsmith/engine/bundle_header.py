"""The header of a task bundle, from what the recipe asked for and the record of the run."""

from __future__ import annotations

from weightsmith.checkpoints.bundles import BundleHeader, CodedTensor, Task, part_names
from weightsmith.engine.manifest import Manifest
from weightsmith.recipes.formula import TaskBundle


def bundle_header(bundle: TaskBundle, made: Manifest) -> BundleHeader:
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


def _task(label: str, made: Manifest) -> Task:
    expert = made.inputs.get(label)
    return Task(label, expert.reference if expert else label, expert.digest if expert else "")


def _tensor(name: str, bundle: TaskBundle, made: Manifest) -> CodedTensor:
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
