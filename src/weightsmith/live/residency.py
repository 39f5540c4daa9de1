"""Which weights of a network are in memory: read from their source when they are wanted, let go when they are not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from weightsmith.live.model_source import Source
from weightsmith.live.name_map import NameMap, Origin
from weightsmith.live.slots import Slot, slots_of
from weightsmith.live.tensor_reading import as_torch, fill

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter


class Residency:
    """The places of a network on a device.

    A place is either on the meta device, without memory, or has its tensor; tied places have one tensor among them.
    Weights that are in memory already are overwritten where they are, so whoever holds a parameter keeps it. What the
    network fills by its own rules (`absent`) is no place here.
    """

    def __init__(self, module: Any, device: str, absent: Collection[str]) -> None:
        self._device = device
        self._slots: dict[str, Slot] = {
            slot.name: slot for slot in slots_of(module) if slot.name not in absent
        }
        self._forms = {name: _form(slot.tensor) for name, slot in self._slots.items()}
        for name, slot in self._slots.items():
            slot.put(self._forms[name])
        self._held: dict[str, Tensor] = {}
        self._owner_of: dict[str, str] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Every place of the network, in the order of its state dict."""
        return tuple(self._slots)

    @property
    def placed(self) -> tuple[str, ...]:
        """The places whose weights are in memory."""
        return tuple(self._owner_of)

    def names_of(self, module: Any) -> list[str]:
        """The places that lie in a module."""
        inside = {id(part) for part in module.modules()}
        return [slot.name for slot in self._slots.values() if id(slot.module) in inside]

    def tensor(self, name: str) -> Tensor:
        """What is at a place."""
        return self._slots[name].tensor

    def place(self, names: Iterable[str], source: Source, bound: NameMap) -> None:
        """Read the weights of some places from their files, one stored tensor (or one conversion) at a time."""
        wanted = [name for name in names if name in self._slots]
        for origin in bound.origins_of(wanted):
            self._read(origin, source)
        self.settle(wanted, bound)

    def settle(self, names: Iterable[str], bound: NameMap) -> None:
        """Have the memory that was filled at its places."""
        for name in names:
            owner = bound.owners[name]
            self._slots[name].put(self.room(owner))
            self._owner_of[name] = owner
        self._drop_unused()

    def release(self, names: Iterable[str]) -> None:
        """Let go of the weights of some places."""
        for name in names:
            if self._owner_of.pop(name, None) is not None:
                self._slots[name].put(self._forms[name])
        self._drop_unused()

    def _read(self, origin: Origin, source: Source) -> None:
        import torch

        with torch.no_grad():
            if origin.convert is None:
                fill(self.room(origin.memory[0]), source.tensors[origin.files[0]])
                return
            stored = [as_torch(source.tensors[name]) for name in origin.files]
            for name, made in zip(origin.memory, origin.convert(stored).values(), strict=True):
                self.room(name).copy_(made)

    def room(self, owner: str) -> Tensor:
        """The memory of a tensor, taken now if there is none."""
        import torch

        if owner not in self._held:
            form = self._forms[owner]
            room = torch.empty_like(form, device=self._device)
            is_buffer = self._slots[owner].is_buffer
            self._held[owner] = room if is_buffer else torch.nn.Parameter(room, form.requires_grad)
        return self._held[owner]

    def _drop_unused(self) -> None:
        used = set(self._owner_of.values())
        for owner in [owner for owner in self._held if owner not in used]:
            del self._held[owner]


@contextmanager
def requiring_gradients(parameters: Iterable[Parameter]) -> Iterator[None]:
    """Have weights require gradients while the context lasts."""
    before = [(parameter, parameter.requires_grad) for parameter in parameters]
    for parameter, _ in before:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, had in before:
            parameter.requires_grad_(had)


def _form(tensor: Tensor) -> Any:
    """A tensor's shape and dtype, without memory."""
    import torch

    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(tensor.detach().to("meta"), tensor.requires_grad)
    return tensor.to("meta")
