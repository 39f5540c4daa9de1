"""The mixtures of a network whose experts are stacks: one module that is given tokens and who they are routed to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weightsmith.live import LiveModel

_ROUTERS = ("gate", "router")


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """Experts as one module, by the stored name of their router's weight."""

    tensor: str
    experts: Any
    count: int


def mixtures(model: LiveModel) -> dict[str, Mixture]:
    """Modules `experts` beside a router with a weight [E, D], E being the length of their stacks, by their paths."""
    found = {}
    for path, module in model.module.named_modules():
        parent, _, key = path.rpartition(".")
        stacks = [p for p in module.parameters(recurse=False) if p.ndim == 3]
        router = next((r for r in _ROUTERS if f"{parent}.{r}.weight" in model.names.owners), None)
        if key != "experts" or not stacks or router is None:
            continue
        files = model.names.files_of(f"{parent}.{router}.weight")
        if len(files) == 1:
            found[path] = Mixture(files[0], module, len(stacks[0]))
    return found
