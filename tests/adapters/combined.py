"""Adapters in memory combined as the command does it: written, put into a recipe, planned and computed.

Factors are stored in float64, so that methods compute in it and what is lost on the way is rounding of the last bits.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from weightsmith.adapters.adapter_reading import open_adapter
from weightsmith.engine.adapter_recipes import combination
from weightsmith.engine.outputs.adapter_output import FactorStore
from weightsmith.engine.planning.plan import Plan, require_runnable
from weightsmith.engine.planning.plan_making import make_plan
from weightsmith.engine.records.journal import Forgotten
from weightsmith.engine.running.run import compute_tensors
from weightsmith.engine.running.scheduler import Scheduler
from weightsmith.findings import Finding
from weightsmith.lora.adapter_writing import write_adapter
from weightsmith.lora.bounds import RankBound
from weightsmith.lora.low_rank_adapters import LowRankAdapter, low_rank_adapter
from weightsmith.progress import Silence
from weightsmith.recipes import Recipe

PREFIX = "base_model.model."


@dataclass
class Report:
    """What each tensor lost, and what the plan says."""

    lost: dict[str, float]
    findings: tuple[Finding, ...]


def save(found: LowRankAdapter, folder: Path) -> None:
    """Write plain factors, changes of biases and whole modules as PEFT does, in float64."""
    tensors, ranks = {}, {}
    for name, factors in found.factors.items():
        module, change = name.removesuffix(".weight"), factors.change
        tensors[f"{PREFIX}{module}.lora_A.weight"] = np.asarray(change.right, np.float64)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = np.asarray(change.scale * change.left)
        ranks[module] = change.rank
    for name, bias in found.added.items():
        module = name.removesuffix(".bias")
        tensors[f"{PREFIX}{module}.lora_B.bias"] = np.asarray(bias, np.float64)
    for name, whole in found.replaced.items():
        tensors[f"{PREFIX}{name}"] = whole
    config = {
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": 1,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "lora_bias": bool(found.added),
        "modules_to_save": [name.rpartition(".")[0] for name in found.replaced] or None,
        "base_model_name_or_path": found.base_reference,
        "target_modules": sorted(ranks),
    }
    folder.mkdir()
    save_file(
        {k: np.ascontiguousarray(t) for k, t in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps(config))


def computed(plan: Plan) -> tuple[LowRankAdapter, dict[str, float]]:
    """The adapter that a plan makes, and by key the share of the norm that was cut from a change."""
    with plan.output.store_to_compare(plan) as store:
        assert isinstance(store, FactorStore)
        skip, scheduler = (
            store.make_without_reading(Silence()),
            Scheduler(plan.threads, plan.window),
        )
        compute_tensors(plan, store, Forgotten(), scheduler, skip, Silence())
        return store.adapter(), store.ordered(store.losses)


def is_plain(found: LowRankAdapter) -> bool:
    return all(f.part is None and not f.input_first for f in found.factors.values())


def combined(
    adapters, method="linear", weights=None, *, labels=None, base=None, parameters=None, **asked
):
    """One adapter of several, in memory, and what is told of it.

    `asked` are those of `RankBound` and of `combination`; labels are the names of the adapters' folders, by default a,
    b...
    """
    bound = RankBound(
        **{key: asked.pop(key) for key in ("rank", "energy", "error") if key in asked}
    )
    names = labels or [chr(ord("a") + i) for i in range(len(adapters))]
    with tempfile.TemporaryDirectory() as root:
        places = [Path(root) / name for name in names]
        for one, place in zip(adapters, places, strict=True):
            if is_plain(one):
                save(one, place)
            else:
                write_adapter(one, place)
        paths = list(map(str, places))
        document = combination(
            paths, method, weights, parameters or {}, bound=bound, base=base, **asked
        )
        plan = make_plan(Recipe.load(document), threads=1)
        require_runnable(plan)
        made, lost = computed(plan)
    # Files have tensors in the order of their names.
    order = list(dict.fromkeys(key for one in adapters for key in one.factors))
    ordered = {key: made.factors[key] for key in sorted(made.factors, key=order.index)}
    return replace(made, factors=ordered), Report(lost, plan.findings)


def read(folder: Path) -> LowRankAdapter:
    return low_rank_adapter(open_adapter(folder))
