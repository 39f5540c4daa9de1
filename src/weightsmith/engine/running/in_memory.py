"""A plan's tensors computed into memory, for those who use a result without keeping it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from weightsmith.engine.outputs.memory_stores import MemoryStore
from weightsmith.engine.planning.plan import Plan, require_runnable
from weightsmith.engine.records.journal import Forgotten
from weightsmith.engine.running.assertions import check_assertions
from weightsmith.engine.running.run import compute_tensors
from weightsmith.engine.running.scheduler import Scheduler
from weightsmith.errors import RecipeError, ResourceError
from weightsmith.progress import BYTES, Progress, Silence
from weightsmith.tensors import OPEN_FILES, MemoryTensor, checkpoint_digest
from weightsmith.vocabularies import CompanionFiles


@dataclass(frozen=True, slots=True, eq=False)
class InMemoryMerge:
    """What a merge would have written: tensors, the companion files beside them, and the digest of the weights."""

    tensors: Mapping[str, MemoryTensor]
    companions: CompanionFiles
    digest: str


def merge_in_memory(plan: Plan, progress: Progress | None = None) -> InMemoryMerge:
    """Compute a plan as `run` does, with the same bytes, checks and assertions, but write no file.

    Memory holds the whole result. Raises RecipeError for a plan with errors and for a result that is no model,
    NonFiniteError, AssertionFailed, and ResourceError where memory runs out.
    """
    require_runnable(plan)
    if plan.output.no_model:
        raise RecipeError(plan.output.no_model)
    assert plan.companions is not None
    telling = progress or Silence()
    try:
        shards = MemoryStore(plan.layout)
        merging = telling.begin("merging", plan.layout.total_size, BYTES)
        scheduler = Scheduler(plan.threads, plan.window)
        records = compute_tensors(plan, shards, Forgotten(), scheduler, set(), merging)
        check_assertions(plan, shards, scheduler, merging)
        merging.end()
    except MemoryError as error:
        raise ResourceError(
            f"The merged tensors ({plan.layout.total_size} bytes) do not fit into memory; merge into a folder and "
            "give that."
        ) from error
    finally:
        OPEN_FILES.close()
    digest = checkpoint_digest({name: record.digest for name, record in records.items()})
    return InMemoryMerge(shards.tensors, plan.companions, digest)
