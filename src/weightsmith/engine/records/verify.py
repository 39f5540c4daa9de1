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
from weightsmith.engine.planning.plan import Plan, Store
from weightsmith.engine.planning.plan_making import make_plan
from weightsmith.engine.planning.tiles import digest_rounds
from weightsmith.engine.records import manifest as manifests
from weightsmith.engine.records.journal import TensorRecord
from weightsmith.engine.records.manifest import Manifest
from weightsmith.engine.records.recorded_inputs import recorded_opener
from weightsmith.engine.running.job_facts import JobSettings
from weightsmith.engine.running.run import model_results, run, write_tensors
from weightsmith.engine.running.scheduler import Job, Scheduler
from weightsmith.engine.running.scratch import Scratch
from weightsmith.errors import CheckpointError, UsageError, WeightsmithError
from weightsmith.progress import Progress, Silence
from weightsmith.publishing import header_digest, is_sealed_as
from weightsmith.recipes import Recipe, distinct_leaves
from weightsmith.tensors import OPEN_FILES, checkpoint_digest
from weightsmith.wording import literal

_TILE = 1 << 20


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify_output` found: problems as sentences (none: the folder is as recorded) and what was checked."""

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


def verify_output(
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
    files = 1 if folder.is_file() else len(manifest.files)
    return Verification(tuple(problems), len(manifest.outputs), files, recomputed)


def replay_output(
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
    if folder.is_file():
        # The seal covers the header, where the manifest itself is.
        return [] if is_sealed_as(folder, "adapter") else ["the file was changed"]
    problems = []
    present = manifests.small_file_digests(folder, manifest.shards)
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

    try:
        Scheduler(os.cpu_count() or 1).run(
            check(name) for name in checkpoint.tensors if name in manifest.outputs
        )
    except CheckpointError as error:
        # An archive whose checksums do not hold is not read at all.
        problems.append(f"the weights cannot be read: {error}")
    if not problems and checkpoint_digest(manifest.outputs) != manifest.digest:
        problems.append("the manifest itself was changed: its digests do not add up")
    if folder.is_dir() and hashlib.sha256(
        manifest.recipe.encode()
    ).hexdigest() != manifest.files.get("weightsmith-recipe.yaml"):
        problems.append("the recipe in the manifest is not the one in weightsmith-recipe.yaml")
    return sorted(problems)


def _recompute(
    folder: Path, manifest: Manifest, wanted: int, inputs: Mapping[str, Path]
) -> tuple[tuple[str, ...], list[str]]:
    """Compute `wanted` tensors again, evenly spread over the output, and compare digests."""
    plan = _plan_again(folder, manifest, inputs)
    if plan.errors:
        return (), [f"nothing can be computed again: {found.sentence}" for found in plan.errors]
    names = plan.output.names_to_compare(list(manifest.outputs))
    count = min(wanted, len(names))
    chosen = [names[i * len(names) // count] for i in range(count)]
    with plan.output.store_to_compare(plan) as store:
        records = _computed_again(plan, store, plan.output.needed_for(chosen))
        store.finish()
        found = store.digests(records)
    problems = [
        f"tensor {name!r} comes out differently when it is computed again{_why(plan, records.get(name), manifest)}"
        for name in chosen
        if found.get(name) != manifest.outputs.get(name)
    ]
    return tuple(chosen), sorted(problems)


def _computed_again(plan: Plan, store: Store, needed: set[str] | None) -> dict[str, TensorRecord]:
    """The records of tensors that are computed into `store`, whatever numbers come out."""
    scheduler = Scheduler(plan.threads, plan.window)
    skip = set() if needed is None else {t.output.name for t in plan.tensors} - needed
    skip |= store.make_without_reading(Silence())
    settings = JobSettings(plan.backend.load(), plan.tile_elements, Scratch())
    results = model_results(plan, settings, scheduler, skip, Silence())
    records: dict[str, TensorRecord] = {}

    def done(record: TensorRecord) -> None:
        records[record.name] = record

    tensors = [t for t in plan.tensors if t.output.name not in skip]
    write_tensors(plan, tensors, store, settings, scheduler, results, done, Silence(), checks=False)
    return records


def _why(plan: Plan, record: TensorRecord | None, manifest: Manifest) -> str:
    if record is None:
        return ""
    tensor = next(t for t in plan.tensors if t.output.name == record.name)
    on_record = {recorded.reference: recorded.tensors for recorded in manifest.inputs.values()}
    leaves = distinct_leaves(tensor.output.formula)
    for leaf, digest in zip(leaves, record.source_digests, strict=True):
        source = plan.resolved.checkpoints[leaf.checkpoint].source
        if on_record.get(source, {}).get(leaf.tensor) != digest:
            return f" (its input {plan.leaf(leaf).location} is not the one on record)"
    if tensor.work.model_scope:
        return (
            " (it depends on statistics of the whole model: an input of another tensor, the output or the manifest "
            "was changed)"
        )
    return " (from the same inputs: the output or the manifest was changed, or another backend or version computed it)"


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
