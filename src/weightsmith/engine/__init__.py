"""Merging: a recipe is planned from headers, run tile by tile, sealed with a record, verified and made again from it.

Memory is bounded by a budget, what was finished survives a kill, and the bytes do not depend on threads or tiles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.engine.adapter_api import Combined as Combined
    from weightsmith.engine.adapter_api import combine_adapters as combine_adapters
    from weightsmith.engine.adapter_api import convert_adapter as convert_adapter
    from weightsmith.engine.adapter_api import extract_adapter as extract_adapter
    from weightsmith.engine.adapter_api import inputs_of as inputs_of
    from weightsmith.engine.adapter_api import inspect_adapter as inspect_adapter
    from weightsmith.engine.adapter_api import resize_adapter as resize_adapter
    from weightsmith.engine.api import merge as merge
    from weightsmith.engine.api import merge_state_dicts as merge_state_dicts
    from weightsmith.engine.api import open as open  # noqa: A004 - its name in `weightsmith`
    from weightsmith.engine.api import plan as plan
    from weightsmith.engine.api import replay as replay
    from weightsmith.engine.api import rollback as rollback
    from weightsmith.engine.api import verify as verify
    from weightsmith.engine.cache_folder import cache_root as cache_root
    from weightsmith.engine.outputs.memory_stores import MemoryStore as MemoryStore
    from weightsmith.engine.outputs.storage import Sink as Sink
    from weightsmith.engine.planning.cost import PredictedTime as PredictedTime
    from weightsmith.engine.planning.cost import predict as predict
    from weightsmith.engine.planning.plan import Plan as Plan
    from weightsmith.engine.planning.plan import refuse_free as refuse_free
    from weightsmith.engine.planning.plan_making import make_plan as make_plan
    from weightsmith.engine.planning.planned_tensors import Action as Action
    from weightsmith.engine.planning.planned_tensors import PlannedTensor as PlannedTensor
    from weightsmith.engine.records import manifest as manifest
    from weightsmith.engine.records.journal import Journal as Journal
    from weightsmith.engine.records.manifest import BehindInput as BehindInput
    from weightsmith.engine.records.manifest import Input as Input
    from weightsmith.engine.records.manifest import Manifest as Manifest
    from weightsmith.engine.records.merge_staging import Staging as Staging
    from weightsmith.engine.records.rollback import RolledBack as RolledBack
    from weightsmith.engine.records.rollback import Way as Way
    from weightsmith.engine.records.rollback import roll_back as roll_back
    from weightsmith.engine.records.verify import Verification as Verification
    from weightsmith.engine.records.verify import replay_output as replay_output
    from weightsmith.engine.records.verify import verify_output as verify_output
    from weightsmith.engine.running.evaluating import FreeMerge as FreeMerge
    from weightsmith.engine.running.in_memory import merge_in_memory as merge_in_memory
    from weightsmith.engine.running.job_facts import JobSettings as JobSettings
    from weightsmith.engine.running.lazy_merge import LazyMerge as LazyMerge
    from weightsmith.engine.running.mask_values import MaskTensors as MaskTensors
    from weightsmith.engine.running.measuring import count_differing as count_differing
    from weightsmith.engine.running.measuring import measure_each as measure_each
    from weightsmith.engine.running.measuring import measure_group as measure_group
    from weightsmith.engine.running.ray_cluster import run_on_ray as run_on_ray
    from weightsmith.engine.running.run import described as described
    from weightsmith.engine.running.run import run as run
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "Action": "weightsmith.engine.planning.planned_tensors",
            "BehindInput": "weightsmith.engine.records.manifest",
            "Combined": "weightsmith.engine.adapter_api",
            "FreeMerge": "weightsmith.engine.running.evaluating",
            "Input": "weightsmith.engine.records.manifest",
            "JobSettings": "weightsmith.engine.running.job_facts",
            "Journal": "weightsmith.engine.records.journal",
            "LazyMerge": "weightsmith.engine.running.lazy_merge",
            "Manifest": "weightsmith.engine.records.manifest",
            "MaskTensors": "weightsmith.engine.running.mask_values",
            "MemoryStore": "weightsmith.engine.outputs.memory_stores",
            "Sink": "weightsmith.engine.outputs.storage",
            "Plan": "weightsmith.engine.planning.plan",
            "PlannedTensor": "weightsmith.engine.planning.planned_tensors",
            "PredictedTime": "weightsmith.engine.planning.cost",
            "RolledBack": "weightsmith.engine.records.rollback",
            "Staging": "weightsmith.engine.records.merge_staging",
            "Verification": "weightsmith.engine.records.verify",
            "Way": "weightsmith.engine.records.rollback",
            "cache_root": "weightsmith.engine.cache_folder",
            "combine_adapters": "weightsmith.engine.adapter_api",
            "count_differing": "weightsmith.engine.running.measuring",
            "measure_each": "weightsmith.engine.running.measuring",
            "measure_group": "weightsmith.engine.running.measuring",
            "convert_adapter": "weightsmith.engine.adapter_api",
            "described": "weightsmith.engine.running.run",
            "extract_adapter": "weightsmith.engine.adapter_api",
            "inputs_of": "weightsmith.engine.adapter_api",
            "inspect_adapter": "weightsmith.engine.adapter_api",
            "make_plan": "weightsmith.engine.planning.plan_making",
            "manifest": "weightsmith.engine.records.manifest:*",
            "merge": "weightsmith.engine.api",
            "merge_in_memory": "weightsmith.engine.running.in_memory",
            "merge_state_dicts": "weightsmith.engine.api",
            "open": "weightsmith.engine.api",
            "plan": "weightsmith.engine.api",
            "predict": "weightsmith.engine.planning.cost",
            "refuse_free": "weightsmith.engine.planning.plan",
            "replay": "weightsmith.engine.api",
            "replay_output": "weightsmith.engine.records.verify",
            "resize_adapter": "weightsmith.engine.adapter_api",
            "roll_back": "weightsmith.engine.records.rollback",
            "rollback": "weightsmith.engine.api",
            "run": "weightsmith.engine.running.run",
            "run_on_ray": "weightsmith.engine.running.ray_cluster",
            "verify": "weightsmith.engine.api",
            "verify_output": "weightsmith.engine.records.verify",
        },
    )
