"""Turning finished shards into a checkpoint: config, tokenizer, card, recipe, manifest, and a last look."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from weightsmith.adapters import form_of
from weightsmith.checkpoints import MethodUse, Parent, licence_of, model_card
from weightsmith.engine.planning.plan import Plan
from weightsmith.engine.records import manifest as manifests
from weightsmith.engine.records.journal import Journal, TensorRecord
from weightsmith.engine.records.manifest import Manifest, Merged
from weightsmith.engine.records.merge_staging import Staging
from weightsmith.engine.records.recording import build
from weightsmith.methods import modifiers, registry
from weightsmith.publishing import write_file
from weightsmith.recipes import merges_in
from weightsmith.tensors import sync_folder

RECIPE = "weightsmith-recipe.yaml"


def seal(
    plan: Plan,
    merged: Merged,
    records: Mapping[str, TensorRecord],
    staging: Staging,
    journal: Journal,
) -> Manifest:
    """Write everything beside the weights into the staging folder, durably, and check that it opens again."""
    folder = staging.checkpoint
    plan.output.write_beside(plan, merged, records, journal, folder)
    recipe = plan.recipe.dump()
    write_file(folder / RECIPE, recipe.encode())
    card = _card(plan, merged, staging.out.name, recipe)
    write_file(folder / "README.md", card.encode(errors="replace"))
    made = build(plan, merged, folder)
    content = made.to_json()
    write_file(folder / manifests.FILE_NAME, content)
    sync_folder(folder)
    plan.output.check_opens(plan, merged, folder)
    journal.seal(hashlib.sha256(content).hexdigest())
    return made


def _card(plan: Plan, merged: Merged, title: str, recipe: str) -> str:
    from weightsmith import __version__

    parents = []
    for label, checkpoint in plan.resolved.checkpoints.items():
        if label not in merged.inputs:
            continue
        part = "base" if label == plan.resolved.base else "expert"
        part = "statistics" if label in plan.resolved.statistics else part
        given = merged.inputs[label]
        name = checkpoint.hub_id or checkpoint.path.name
        is_hub = checkpoint.hub_id is not None
        form = form_of(checkpoint)
        licence = licence_of(checkpoint.path)
        behind = {b.reference: licence_of(b.checkpoint.path) for b in checkpoint.all_behind}
        parents.append(Parent(name, part, given.digest, is_hub, checkpoint.revision, form, licence))
        parents += [
            Parent(
                own.name,
                f"adapter of {name}",
                found.digest,
                own.hub_id is not None,
                own.revision,
                licence=licence_of(own.path),
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
                licence=behind.get(one.reference),
            )
            for one in given.behind
        ]
    return model_card(
        title,
        parents,
        _methods(plan),
        recipe=recipe,
        config=None if plan.companions is None else plan.companions.config,
        version=__version__,
        library=plan.output.library,
        relation=plan.output.relation,
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
