"""Merged tensors on their way into a network: written into its memory tile by tile, or made when they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from weightsmith.engine import MemoryStore
from weightsmith.live.tensor_reading import bytes_of
from weightsmith.tensors import MemorySink, MemoryTensor, Placement, Shaped, ShardLayout

if TYPE_CHECKING:
    from torch import Tensor
    from torch import dtype as TorchDtype  # noqa: N812 - torch's name is that of a parameter

    from weightsmith.engine import Sink


class MergedTensor(Shaped):
    """A tensor of a merge as a `LazyTensor`: `held` where it is in memory, else made anew to be read."""

    __slots__ = ("_make", "dtype", "held", "location", "name", "shape")

    def __init__(self, placement: Placement, make: Callable[[str], MemoryTensor]) -> None:
        self.name, self.dtype, self.shape = placement.name, placement.dtype, placement.shape
        self.location = f"merged tensor {self.name!r}"
        self.held: MemoryTensor | None = None
        self._make = make

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Copy elements [start, stop)."""
        (self.held or self._make(self.name)).read_into(start, stop, buffer)


class NetworkStore(MemoryStore):
    """A `Store` that writes tensors into `rooms`, the memory of a network, and holds those without one.

    `overwritten` names the former.
    """

    def __init__(self, layout: ShardLayout, rooms: Mapping[str, Tensor]) -> None:
        super().__init__(layout, lazy=True)
        self._rooms = rooms
        self.overwritten: set[str] = set()

    def sink(self, name: str, advance: Callable[[int], None]) -> Sink:
        """What fills a tensor of the network, in its dtype."""
        from weightsmith.graph import torch_dtype

        room = self._rooms.get(name)
        if room is None:
            return super().sink(name, advance)
        self.overwritten.add(name)
        placement = self._layout.placement(name)
        flat = room.detach().view(-1)
        if flat.device.type == "cpu" and flat.dtype == torch_dtype(placement.dtype):
            tensor = MemoryTensor(name, placement.dtype, placement.shape, bytes_of(flat))
            return MemorySink(tensor, advance)
        return _RoundingSink(flat, torch_dtype(placement.dtype), advance)


class _RoundingSink:
    """Fills memory of another dtype or device."""

    def __init__(self, flat: Tensor, stored: TorchDtype, advance: Callable[[int], None]) -> None:
        self._flat, self._stored, self._advance = flat, stored, advance

    def write(self, start: int, data: memoryview) -> None:
        """Take the bytes that begin at element `start`."""
        import torch

        given = torch.frombuffer(data, dtype=self._stored)
        self._flat[start : start + len(given)].copy_(given)
        self._advance(data.nbytes)
