"""Turning finished shards into a checkpoint: config, tokenizer, card, recipe, manifest, and a last look."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from weightsmith.checkpoints import (
    Checkpoint,
    Kind,
    Tying,
    donor_files,
    merged_config,
    open_checkpoint,
)
from weightsmith.checkpoints.card import MethodUse, Parent, model_card
from weightsmith.engine import manifest as manifests
from weightsmith.engine.journal import Journal, TensorRecord
from weightsmith.engine.manifest import Manifest
from weightsmith.engine.plan import Plan
from weightsmith.engine.staging import Staging
from weightsmith.engine.trace import parts
from weightsmith.errors import OutputError
from weightsmith.methods import registry
from weightsmith.recipes.formula import Formula, Merge
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.writer import sync_folder, write_file

INDEX = "model.safetensors.index.json"
RECIPE = "weightsmith-recipe.yaml"


def seal(
    plan: Plan, records: Mapping[str, TensorRecord], staging: Staging, journal: Journal
) -> Manifest:
    """Write everything beside the weights into the staging folder, durably, and check that it opens as a checkpoint."""
    folder = staging.checkpoint
    _remove_strays(plan, folder)
    donor = plan.resolved.checkpoints[plan.resolved.donor]
    config = _config(plan, donor)
    _carry_files(donor, folder)
    if config is not None:
        write_file(
            folder / "config.json",
            (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
        )
    if plan.layout.index is not None:
        write_file(folder / INDEX, plan.layout.index)
    recipe = plan.recipe.dump()
    write_file(folder / RECIPE, recipe.encode())
    made = manifests.build(plan, records, folder, staging.out)
    write_file(
        folder / "README.md",
        _card(plan, made, config, staging.out.name, recipe).encode(errors="replace"),
    )
    made = manifests.build(plan, records, folder, staging.out)
    content = made.to_json()
    write_file(folder / manifests.FILE_NAME, content)
    sync_folder(folder)
    _check_opens(plan, folder)
    journal.seal(hashlib.sha256(content).hexdigest())
    return made


def _remove_strays(plan: Plan, folder: Path) -> None:
    """Whatever a killed run left beside the shards, such as a half-written config: all of it is written again."""
    shards = {shard.file_name for shard in plan.layout.shards}
    for entry in folder.iterdir():
        if entry.name in shards:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _config(plan: Plan, donor: Checkpoint) -> dict[str, object] | None:
    if donor.config is None:
        return None
    elements: Counter[DType] = Counter()
    for placement in (p for shard in plan.layout.shards for p in shard.placements):
        if placement.dtype.is_float:
            elements[placement.dtype] += placement.numel
    dtype = elements.most_common(1)[0][0] if elements else None
    return merged_config(
        donor.config,
        dtype=dtype,
        layer_sources=plan.resolved.layer_sources,
        tied=_tied(plan, donor),
        stack=plan.resolved.stack,
    )


def _tied(plan: Plan, donor: Checkpoint) -> bool | None:
    """False where the result has a head of its own although the donor's is tied; else the donor's word."""
    has_head = any(tensor.output.role == Kind.HEAD.value for tensor in plan.tensors)
    return False if donor.tying is Tying.TIED and has_head else None


def _carry_files(donor: Checkpoint, folder: Path) -> None:
    """The donor's tokenizer and other configurations, byte for byte."""
    if donor.is_folder:
        for name in donor_files(donor.path):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_file(folder / name, (donor.path / name).read_bytes())


def _card(
    plan: Plan, made: Manifest, config: dict[str, object] | None, title: str, recipe: str
) -> str:
    parents = []
    for label, checkpoint in plan.resolved.checkpoints.items():
        part = "base" if label == plan.resolved.base else "expert"
        name = checkpoint.hub_id or checkpoint.path.name
        parents.append(
            Parent(
                name,
                part,
                made.inputs[label].digest,
                checkpoint.hub_id is not None,
                checkpoint.revision,
            )
        )
    return model_card(
        title, parents, _methods(plan), recipe=recipe, config=config, version=made.version
    )


def _methods(plan: Plan) -> list[MethodUse]:
    uses: dict[str, MethodUse] = {}
    for tensor in plan.tensors:
        for merge in _merges(tensor.output.formula):
            if merge.method not in uses:
                paper = registry.get(merge.method).paper
                uses[merge.method] = MethodUse(merge.method, dict(merge.shared), paper)
    return list(uses.values())


def _merges(formula: Formula) -> list[Merge]:
    inner = [merge for part in parts(formula) for merge in _merges(part)]
    return [*inner, formula] if isinstance(formula, Merge) else inner


def _check_opens(plan: Plan, folder: Path) -> None:
    """Read the finished folder's headers back and compare them with the plan."""
    found = {name: (t.dtype, t.shape) for name, t in open_checkpoint(folder).tensors.items()}
    wanted = {p.name: (p.dtype, p.shape) for shard in plan.layout.shards for p in shard.placements}
    if found != wanted:
        raise OutputError(
            f"The finished files in {str(folder)!r} do not read back as planned; the disk may be faulty, run again."
        )
