"""The state that a continual method leaves beside its result, and whether what a merge goes on with is what it left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsmith.checkpoints import MergeState, TensorState, merge_state
from weightsmith.engine.planning.planned_tensors import Action, PlannedTensor
from weightsmith.engine.planning.trace import StatisticMember
from weightsmith.engine.records.journal import Journal, TensorRecord
from weightsmith.errors import CompatibilityError
from weightsmith.methods import registry
from weightsmith.publishing import write_file
from weightsmith.recipes import Cast, Formula, Leaf, Merge, distinct_leaves, merges_in

if TYPE_CHECKING:
    from weightsmith.engine.planning.plan import Plan


def note_state(plan: Plan, results: Mapping[StatisticMember, Any], journal: Journal) -> None:
    """Put the numbers of the plan's continual merge, if it is one, on record."""
    for merge, _ in _continual(plan):
        statistics = {
            member.statistic: float(number)
            for member, number in results.items()
            if member.statistic.merge == merge.scope_id
        }
        if statistics:
            numbers = _built(merge).state(statistics)
            journal.append({"state": numbers, "method": merge.method})
            return


def write_state(
    plan: Plan, records: Mapping[str, TensorRecord], journal: Journal, folder: Path
) -> None:
    """Write the state, if any is on record, beside the weights, with the digests of what it is about."""
    found = [entry for entry in journal.entries if "state" in entry]
    if not found:
        return
    tensors = {}
    for merge, name in _continual(plan):
        record = records[name]
        digests = _digests_of(merge, record.source_digests)
        base = tuple(digests[leaf] for leaf in _base_leaves(merge))
        tensors[name] = TensorState(base, record.digest, _built(merge).rules())
    state = MergeState(found[-1]["method"], found[-1]["state"], tensors)
    write_file(folder / merge_state.FILE_NAME, state.to_json())


def check_continued(plan: Plan, tensor: PlannedTensor, record: TensorRecord) -> None:
    """Raise CompatibilityError where an earlier merge is continued that is not what its state says, or on another base.

    A merge whose numbers were given as parameters has no state to be compared with.
    """
    formula = tensor.output.formula
    for merge in merges_in(formula):
        stated = _stated(plan, merge)
        if stated is None:
            continue
        leaf, state = stated
        digests = _digests_of(formula, record.source_digests)
        known = state.tensors.get(leaf.tensor)
        if known is None or digests[leaf] != known.result:
            raise CompatibilityError(
                f"{plan.leaf(leaf).location} is not what {merge.method} wrote there, so it cannot be continued; merge "
                "its experts again, or give previous_count, previous_lambda and previous_norm to take it as it is."
            )
        base = _base_leaves(merge)
        if tuple(digests[one] for one in base) != known.base:
            raise CompatibilityError(
                f"{plan.leaf(base[0]).location} is not the base that {merge.method} measured {leaf.tensor!r} of "
                f"{leaf.checkpoint!r} from, so that merge cannot be continued on it; give the base that it had."
            )


def may_continue(plan: Plan) -> bool:
    """Whether something may be merged that `check_continued` compares with what was read."""
    merges = (merge for tensor in plan.tensors for merge in merges_in(tensor.output.formula))
    return any(
        hasattr(registry.get(method).implementation, "state")
        for method in {m.method for m in merges}
    )


def _stated(plan: Plan, merge: Merge) -> tuple[Leaf, MergeState] | None:
    """The tensor that a merge goes on with, and its state, where that is where the merge's numbers are from."""
    shared = dict(merge.shared)
    if not hasattr(registry.get(merge.method).implementation, "state") or not shared.get(
        "previous"
    ):
        return None
    first = merge.experts[0]
    first = first.inner if isinstance(first, Cast) else first
    if not isinstance(first, Leaf):
        return None
    folder = plan.resolved.checkpoints[first.checkpoint].path
    if not (folder / merge_state.FILE_NAME).exists():
        return None
    state = merge_state.read_state(folder, merge.method)
    is_its = all(shared.get(key) == number for key, number in state.numbers.items())
    return (first, state) if is_its else None


def _continual(plan: Plan) -> Iterator[tuple[Merge, str]]:
    """Merges whose result is the output itself, by methods that have a state."""
    for tensor in plan.tensors:
        formula = tensor.output.formula
        if tensor.work.action is not Action.COMPUTE or not isinstance(formula, Merge):
            continue
        if hasattr(registry.get(formula.method).implementation, "state"):
            yield formula, tensor.output.name


def _built(merge: Merge) -> Any:
    return registry.get(merge.method).build(
        dict(merge.shared), [dict(p) for p in merge.per_expert], preset=merge.preset
    )


def _base_leaves(merge: Merge) -> tuple[Leaf, ...]:
    return () if merge.base is None else tuple(distinct_leaves(merge.base))


def _digests_of(formula: Formula, digests: tuple[str, ...]) -> dict[Leaf, str]:
    return dict(zip(distinct_leaves(formula), digests, strict=True))
