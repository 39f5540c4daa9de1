"""Is this output still what its manifest says, and would the same merge give it again?"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.checkpoints import open_output
from weightsmith.deltas import PackedBits, Repeated
from weightsmith.engine import manifest as manifests
from weightsmith.engine.copy_job import copy_tensor
from weightsmith.engine.manifest import Manifest
from weightsmith.engine.plan import Plan, make_plan
from weightsmith.engine.planned_tensors import Action, PlannedTensor
from weightsmith.engine.progress import Progress, Silence
from weightsmith.engine.recorded import recorded_opener
from weightsmith.engine.run import model_results, run, tensor_job
from weightsmith.engine.scheduler import Job, Rounds, Scheduler
from weightsmith.engine.scratch import Scratch
from weightsmith.engine.tensor_job import Finished, Settings
from weightsmith.engine.tiles import digest_rounds
from weightsmith.engine.trace import Tracer
from weightsmith.errors import UsageError, WeightsmithError
from weightsmith.publishing.records import header_digest
from weightsmith.recipes import Recipe
from weightsmith.recipes.formula import Form, OutputTensor, distinct_leaves
from weightsmith.tensors.digests import checkpoint_digest
from weightsmith.tensors.open_files import OPEN_FILES
from weightsmith.wording import literal

_TILE = 1 << 20


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found: problems as sentences (none: the folder is as recorded) and what was checked."""

    problems: tuple[str, ...]
    tensors: int
    files: int
    recomputed: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True if nothing is wrong."""
        return not self.problems

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "ok": self.ok,
            "problems": list(self.problems),
            "tensors": self.tensors,
            "files": self.files,
            "recomputed": list(self.recomputed),
        }


def verify(
    folder: Path, *, recompute: int = 0, inputs: Mapping[str, Path] | None = None
) -> Verification:
    """Compare every file and tensor of an output with its manifest.

    With `recompute` = K, K tensors, evenly spread, are computed again from the inputs (found where
    the manifest says they lay, or where `inputs` maps their references) and compared bit for bit.
    Raises VerificationError where nothing can be compared.
    """
    if not isinstance(recompute, int) or recompute < 0:
        raise UsageError(f"recompute is a number of tensors, not {literal(recompute)}.")
    manifest = manifests.read(folder)
    recomputed: tuple[str, ...] = ()
    try:
        problems = [*_file_problems(folder, manifest), *_tensor_problems(folder, manifest)]
        if recompute > 0:
            recomputed, found = _recompute(folder, manifest, recompute, inputs or {})
            problems += found
    finally:
        OPEN_FILES.close()
    return Verification(tuple(problems), len(manifest.outputs), len(manifest.files), recomputed)


def replay(
    folder: Path,
    new: Path,
    *,
    inputs: Mapping[str, Path] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Manifest:
    """Run the merge on record again into `new` and require the same bits.

    Raises VerificationError, and seals nothing, if the result differs.
    """
    manifest = manifests.read(folder)
    plan = _plan_again(folder, manifest, inputs or {}, **options)
    return run(plan, new, progress=progress, expected=manifest.outputs, reads=(folder,))


def _file_problems(folder: Path, manifest: Manifest) -> list[str]:
    problems = []
    present = manifests.small_file_digests(folder)
    for name, digest in manifest.files.items():
        if name not in present:
            problems.append(f"file {name!r} is missing")
        elif present[name] != digest:
            problems.append(f"file {name!r} was changed")
    problems += [f"file {name!r} was added" for name in manifest.recorded.foreign(folder)]
    return problems + [
        p
        for name, digest in manifest.shards.items()
        if (p := _header_problem(folder / name, digest))
    ]


def _header_problem(path: Path, digest: str) -> str:
    """What is wrong with the header of a weight file, which no tensor's digest covers."""
    try:
        found = header_digest(path)
    except OSError as error:
        return f"file {path.name!r} cannot be read ({error.strerror or error})"
    return "" if found == digest else f"the header of {path.name!r} was changed"


def _tensor_problems(folder: Path, manifest: Manifest) -> list[str]:
    try:
        checkpoint = open_output(folder)
    except WeightsmithError as error:
        return [f"the weights cannot be read: {error}"]
    problems = [
        f"tensor {name!r} is missing" for name in manifest.outputs if name not in checkpoint.tensors
    ]
    problems += [
        f"tensor {name!r} was added" for name in checkpoint.tensors if name not in manifest.outputs
    ]

    def check(name: str) -> Job:
        digest = yield from digest_rounds(checkpoint.tensors[name], _TILE)
        if digest != manifest.outputs[name]:
            problems.append(
                f"tensor {name!r} was changed: its digest is {digest}, the manifest has {manifest.outputs[name]}"
            )

    Scheduler(os.cpu_count() or 1).run(
        check(name) for name in checkpoint.tensors if name in manifest.outputs
    )
    if not problems and checkpoint_digest(manifest.outputs) != manifest.digest:
        problems.append("the manifest itself was changed: its digests do not add up")
    if hashlib.sha256(manifest.recipe.encode()).hexdigest() != manifest.files.get(
        "weightsmith-recipe.yaml"
    ):
        problems.append("the recipe in the manifest is not the one in weightsmith-recipe.yaml")
    return sorted(problems)


def _recompute(
    folder: Path, manifest: Manifest, wanted: int, inputs: Mapping[str, Path]
) -> tuple[tuple[str, ...], list[str]]:
    """Compute `wanted` tensors again, evenly spread over the output, and compare digests."""
    plan = _plan_again(folder, manifest, inputs)
    if plan.errors:
        return (), [f"nothing can be computed again: {found.sentence}" for found in plan.errors]
    if plan.adapter is not None:
        return _recompute_adapter(plan, manifest, wanted)
    names = [t.output.name for t in plan.tensors]
    chosen = {
        names[i * len(names) // min(wanted, len(names))] for i in range(min(wanted, len(names)))
    }
    problems: list[str] = []
    settings = Settings(plan.backend.load(), plan.tile_elements, Scratch())
    tracer = Tracer()
    scheduler = Scheduler(plan.threads)
    skip = set(names) - chosen
    results = model_results(plan, settings, scheduler, skip, Silence())

    def check(tensor: PlannedTensor) -> Job:
        name = tensor.output.name
        if tensor.action is Action.COMPUTE:
            job = tensor_job(plan, tensor, settings, tracer)
            job.adopt(results)
            finished = yield from job.compute(tensor.output.dtype, _Nowhere())
        else:
            stored = [plan.leaf(leaf) for leaf in distinct_leaves(tensor.output.formula)]
            finished = yield from copy_tensor(stored, _Nowhere(), settings.tile_elements)
        if finished.digest != (yield from _recorded(folder, tensor.output, manifest)):
            problems.append(
                f"tensor {name!r} comes out differently when it is computed again "
                f"({_why(plan, tensor, finished, manifest)})"
            )

    scheduler.run(check(t) for t in plan.tensors if t.output.name in chosen)
    return tuple(name for name in names if name in chosen), sorted(problems)


def _recompute_adapter(
    plan: Plan, manifest: Manifest, wanted: int
) -> tuple[tuple[str, ...], list[str]]:
    """Compute an adapter again, and compare `wanted` of its tensors, evenly spread."""
    from weightsmith.engine.adapter_run import computed_digests

    found = computed_digests(plan)
    names = list(manifest.outputs)
    count = min(wanted, len(names))
    chosen = [names[i * len(names) // count] for i in range(count)]
    different = [name for name in chosen if found.get(name) != manifest.outputs[name]]
    return tuple(chosen), [
        f"tensor {name!r} comes out differently when it is computed again" for name in different
    ]


def _recorded(folder: Path, output: OutputTensor, manifest: Manifest) -> Rounds:
    """The digest on record; of a coded part, which is computed dense, that of its decoded form."""
    if output.form is Form.DENSE:
        return manifest.outputs.get(output.name)
    stored = open_output(folder).tensors.get(output.name)
    if stored is None:
        return None
    decoded = (
        PackedBits(output.name, output.shape, stored)
        if output.form is Form.BITS
        else Repeated(stored, output.shape)
    )
    return (yield from digest_rounds(decoded, _TILE))


def _why(plan: Plan, tensor: PlannedTensor, finished: Finished, manifest: Manifest) -> str:
    on_record = {recorded.reference: recorded.tensors for recorded in manifest.inputs.values()}
    for i, leaf in enumerate(distinct_leaves(tensor.output.formula)):
        source = plan.resolved.checkpoints[leaf.checkpoint].source
        if on_record.get(source, {}).get(leaf.tensor) != finished.source_digests[i]:
            return f"its input {plan.leaf(leaf).location} is not the one on record"
    if tensor.model_scope:
        return (
            "it depends on statistics of the whole model: an input of another tensor, the output or the manifest "
            "was changed"
        )
    return "from the same inputs: the output or the manifest was changed, or another backend or version computed it"


class _Nowhere:
    def write(self, start: int, data: memoryview) -> None:
        """Drop the bytes; only their digest is wanted."""


def _plan_again(
    folder: Path, manifest: Manifest, inputs: Mapping[str, Path], **options: Any
) -> Plan:
    """The plan of the recipe on record, its references resolved to where the inputs are now."""
    opener = recorded_opener(folder, manifest, inputs)
    if wants_torch(manifest, options):
        options["backend"] = "torch"
    return make_plan(Recipe.load(manifest.recipe), opener=opener, **options)


def wants_torch(manifest: Manifest, options: Mapping[str, Any]) -> bool:
    """True where torch wrote the record and nothing else was asked for, since its sums may differ in the last bit."""
    is_free = options.get("backend", "auto") == "auto" and options.get("device", "cpu") == "cpu"
    return is_free and manifest.backend == "torch" and importlib.util.find_spec("torch") is not None
