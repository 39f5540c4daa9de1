"""The places of a network that hold its stored tensors: parameters, and buffers of its state dict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """A place: an entry of a module, under its name in the network."""

    name: str
    module: Any
    key: str
    is_buffer: bool

    @property
    def tensor(self) -> Tensor:
        """What is there."""
        held = self.module._buffers if self.is_buffer else self.module._parameters
        found: Tensor = held[self.key]
        return found

    def put(self, tensor: Tensor) -> None:
        """Have another tensor there."""
        (self.module._buffers if self.is_buffer else self.module._parameters)[self.key] = tensor


def slots_of(module: Any) -> list[Slot]:
    """Every place under its first name, in the order of the state dict."""
    found = {(id(slot.module), slot.key): slot for slot in reversed(list(_named_slots(module)))}
    return list(found.values())[::-1]


def aliases_of(module: Any) -> dict[str, str]:
    """Every name of the state dict and the first name of its place: modules may be used under several."""
    first: dict[tuple[int, str], str] = {}
    return {
        slot.name: first.setdefault((id(slot.module), slot.key), slot.name)
        for slot in _named_slots(module)
    }


def tied_names(module: Any) -> tuple[tuple[str, ...], ...]:
    """Places that hold one tensor, those that others are tied to first; taken of a network without weights."""
    declared = set((getattr(module, "all_tied_weights_keys", None) or {}).values())
    groups: dict[int, list[str]] = {}
    for slot in slots_of(module):
        groups.setdefault(id(slot.tensor), []).append(slot.name)
    return tuple(
        tuple(sorted(group, key=lambda name: name not in declared))
        for group in groups.values()
        if len(group) > 1
    )


def _named_slots(module: Any) -> Iterator[Slot]:
    for path, part in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for key, held in part._parameters.items():
            if held is not None:
                yield Slot(f"{prefix}{key}", part, key, is_buffer=False)
        for key, held in part._buffers.items():
            if held is not None and key not in part._non_persistent_buffers_set:
                yield Slot(f"{prefix}{key}", part, key, is_buffer=True)
