"""What a finished run puts on record: the manifest, from the plan and from what was read and written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from weightsmith.engine.planning.plan import Plan
from weightsmith.engine.records.journal import TensorRecord
from weightsmith.engine.records.manifest import (
    Input,
    Manifest,
    Merged,
    adapter_input,
    behind_inputs,
    place_on_record,
    small_file_digests,
)
from weightsmith.publishing import header_digest
from weightsmith.recipes import distinct_leaves
from weightsmith.tensors import checkpoint_digest
from weightsmith.version import __version__

_WEIGHTS = ".safetensors"


def build(plan: Plan, merged: Merged, folder: Path | None) -> Manifest:
    """The manifest of a finished run all whose other files lie in `folder`; of one that writes one file without it."""
    shards = {} if folder is None else _header_digests(plan, folder)
    return Manifest(
        version=__version__,
        backend=plan.backend.kind,
        recipe=plan.recipe.dump(),
        recipe_digest=plan.recipe.digest(),
        seed=plan.resolved.seed,
        config_source=plan.resolved.config_source,
        inputs=merged.inputs,
        outputs=merged.outputs,
        shards=shards,
        files={} if folder is None else small_file_digests(folder, shards),
        digest=checkpoint_digest(merged.outputs),
        lost=merged.lost,
    )


def _header_digests(plan: Plan, folder: Path) -> dict[str, str]:
    """Those of the main set, whose tensors have digests by the names that they have there."""
    beside = {shard.file_name for shard in plan.layout.shards if shard.is_beside}
    files = [file for file in sorted(folder.glob(f"*{_WEIGHTS}")) if file.name not in beside]
    return {file.name: header_digest(file) for file in files}


def inputs_read(plan: Plan, records: Mapping[str, TensorRecord], out: Path) -> dict[str, Input]:
    """The checkpoints of a plan's formulas as they are on record in an output that will appear at `out`."""
    read: dict[str, dict[str, str]] = {label: {} for label in plan.resolved.checkpoints}
    for tensor in plan.tensors:
        digests = records[tensor.output.name].source_digests
        for leaf, digest in zip(distinct_leaves(tensor.output.formula), digests, strict=True):
            read[leaf.checkpoint][leaf.tensor] = digest
    vocabulary = plan.resolved.vocabulary
    tokenizers = {} if vocabulary is None else vocabulary.inputs
    return {
        label: Input(
            reference=checkpoint.source,
            path=place_on_record(checkpoint, out),
            hub_id=checkpoint.hub_id,
            revision=checkpoint.revision,
            digest=checkpoint_digest(read[label]),
            tensors=read[label],
            tokenizer=tokenizers.get(label, {}),
            model=checkpoint.base_source,
            adapters=tuple(adapter_input(adapter, out) for adapter in checkpoint.attached),
            behind=behind_inputs(checkpoint, (checkpoint.tensors[n] for n in read[label]), out),
        )
        for label, checkpoint in plan.resolved.checkpoints.items()
    }
