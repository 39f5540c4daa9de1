"""Merges that go on with an earlier one: its state becomes parameters like any others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weightsmith.checkpoints.merge_state import read_state
from weightsmith.methods.registry import MethodSpec
from weightsmith.recipes.formula import Assignments


def with_previous_state(spec: MethodSpec, shared: Assignments, folder: Path) -> Assignments:
    """The parameters of a merge, with those that its first model's folder knows where `previous` asks for them.

    Parameters that are given stay as they are. Raises CheckpointError if the folder has no such state.
    """
    given: dict[str, Any] = dict(shared)
    if not hasattr(spec.implementation, "state") or not given.get("previous"):
        return shared
    lacking = [k for k in spec.parameters if k.startswith("previous_") and given.get(k) is None]
    if not lacking:
        return shared
    state = read_state(folder, spec.name)
    found = {key: state[key] for key in lacking if key in state}
    return (*((k, v) for k, v in shared if k not in found), *found.items())
