"""The state that a continual method leaves beside its result, from the model-wide statistics it labelled."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

from weightsmith.checkpoints import merge_state
from weightsmith.engine.journal import Journal
from weightsmith.engine.plan import Action, Plan
from weightsmith.methods import registry
from weightsmith.recipes.formula import Merge
from weightsmith.tensors.writer import write_file


def note_state(plan: Plan, results: Mapping[str, Mapping[Hashable, Any]], journal: Journal) -> None:
    """Put the state of the plan's continual merge, if it is one, on record."""
    for merge, tensor in _continual(plan):
        spec = registry.get(merge.method)
        statistics = {
            key[1]: float(value)
            for key, value in results.get(tensor, {}).items()
            if isinstance(key, tuple) and key[0] == merge.scope_id
        }
        if statistics:
            built: Any = spec.build(
                dict(merge.shared), [dict(p) for p in merge.per_expert], preset=merge.preset
            )
            journal.append({"state": built.state(statistics), "method": merge.method})
            return


def write_state(journal: Journal, folder: Path) -> None:
    """Write the state on record, if any, beside the weights."""
    found = [entry for entry in journal.entries if "state" in entry]
    if found:
        text = merge_state.to_json(found[-1]["method"], found[-1]["state"])
        write_file(folder / merge_state.FILE_NAME, text)


def _continual(plan: Plan) -> Iterator[tuple[Merge, str]]:
    """Merges whose result is the output itself, by methods that have a state."""
    for tensor in plan.tensors:
        formula = tensor.output.formula
        if tensor.action is not Action.COMPUTE or not isinstance(formula, Merge):
            continue
        if hasattr(registry.get(formula.method).implementation, "state"):
            yield formula, tensor.output.name
