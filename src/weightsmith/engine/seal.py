"""Turning finished shards into a checkpoint: config, tokenizer, card, recipe, manifest, and a last look."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from weightsmith.adapters.opening import form_of
from weightsmith.checkpoints import bundles, open_output
from weightsmith.checkpoints.card import MethodUse, Parent, model_card
from weightsmith.checkpoints.json_files import json_bytes
from weightsmith.engine import manifest as manifests
from weightsmith.engine.bundle_header import bundle_header
from weightsmith.engine.journal import Journal, TensorRecord
from weightsmith.engine.manifest import Manifest
from weightsmith.engine.plan import Plan
from weightsmith.engine.staging import Staging
from weightsmith.engine.state import write_state
from weightsmith.errors import OutputError
from weightsmith.methods import modifiers, registry
from weightsmith.publishing.files import write_file
from weightsmith.recipes.formula import merges_in
from weightsmith.tensors.writer import sync_folder
from weightsmith.vocabularies.papers import Papers

INDEX = "model.safetensors.index.json"
RECIPE = "weightsmith-recipe.yaml"


def seal(
    plan: Plan, records: Mapping[str, TensorRecord], staging: Staging, journal: Journal
) -> Manifest:
    """Write everything beside the weights into the staging folder, durably, and check that it opens as a checkpoint."""
    folder = staging.checkpoint
    _remove_strays(plan, folder)
    assert plan.papers is not None
    config = plan.papers.config
    _write_papers(plan.papers, folder)
    if config is not None:
        write_file(folder / "config.json", json_bytes(config))
    if plan.layout.index is not None:
        write_file(folder / INDEX, plan.layout.index)
    recipe = plan.recipe.dump()
    write_file(folder / RECIPE, recipe.encode())
    write_state(plan, records, journal, folder)
    made = manifests.build(plan, records, folder, staging.out)
    if plan.resolved.bundle is not None:
        header = bundle_header(plan.resolved.bundle, made).to_json()
        text = json.dumps(header, indent=1, ensure_ascii=True) + "\n"
        write_file(folder / bundles.FILE_NAME, text.encode())
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


def _write_papers(made: Papers, folder: Path) -> None:
    """The donor's tokenizer and other configurations, as far as the plan did not change them byte for byte."""
    for name, data in made.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(folder / name, data)


def adapter_card(plan: Plan, made: Manifest, title: str, recipe: str) -> str:
    """The README of a result that is an adapter."""
    return _card(plan, made, None, title, recipe, library="peft")


def _card(
    plan: Plan,
    made: Manifest,
    config: dict[str, object] | None,
    title: str,
    recipe: str,
    *,
    library: str | None = None,
) -> str:
    parents = []
    for label, checkpoint in plan.resolved.checkpoints.items():
        if label not in made.inputs:
            continue
        part = "base" if label == plan.resolved.base else "expert"
        part = "statistics" if label in plan.resolved.statistics else part
        given = made.inputs[label]
        name = checkpoint.hub_id or checkpoint.path.name
        is_hub = checkpoint.hub_id is not None
        form = form_of(checkpoint)
        parents.append(Parent(name, part, given.digest, is_hub, checkpoint.revision, form))
        parents += [
            Parent(
                own.name, f"adapter of {name}", found.digest, own.hub_id is not None, own.revision
            )
            for own, found in zip(checkpoint.attached, given.adapters, strict=True)
        ]
        parents += [
            Parent(
                one.hub_id or Path(one.reference).name,
                f"base of {name}",
                one.digest,
                one.hub_id is not None,
                one.revision,
            )
            for one in given.behind
        ]
    return model_card(
        title,
        parents,
        _methods(plan),
        recipe=recipe,
        config=config,
        version=made.version,
        library=library,
    )


def _methods(plan: Plan) -> list[MethodUse]:
    uses: dict[str, MethodUse] = {}
    for tensor in plan.tensors:
        for merge in merges_in(tensor.output.formula):
            if merge.method not in uses:
                paper = registry.get(merge.method).paper
                uses[merge.method] = MethodUse(merge.method, dict(merge.shared), paper)
            for modification in merge.modifiers:
                name, given = modification.modifier, dict(modification.parameters)
                uses.setdefault(name, MethodUse(name, given, modifiers.get(name).paper))
    return list(uses.values())


def _check_opens(plan: Plan, folder: Path) -> None:
    """Read the finished folder's headers back and compare them with the plan."""
    found = {name: (t.dtype, t.shape) for name, t in open_output(folder).tensors.items()}
    wanted = {p.name: (p.dtype, p.shape) for shard in plan.layout.shards for p in shard.placements}
    if found != wanted:
        raise OutputError(
            f"The finished files in {str(folder)!r} do not read back as planned; the disk may be faulty, run again."
        )
