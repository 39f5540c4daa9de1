"""Stored tensors into memory that torch has, a piece at a time, so that nothing is held twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.tensors import DType, LazyTensor, Shaped, chunks_of, read_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

# Elements that are held beside the tensor that they go to, where they must be converted or sent to a device.
_PIECE = 1 << 20
_DTYPES = {str(dtype): dtype for dtype in DType}


class HeldTensor(Shaped):
    """A tensor of torch as a `LazyTensor`."""

    __slots__ = ("dtype", "location", "name", "shape", "tensor")

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name, self.tensor = name, tensor
        self.dtype = _DTYPES[str(tensor.dtype).removeprefix("torch.")]
        self.shape = tuple(tensor.shape)
        self.location = f"tensor {name!r} in memory"

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Copy elements [start, stop)."""
        part = self.tensor.detach().reshape(-1)[start:stop].cpu().contiguous()
        memoryview(buffer).cast("B")[:] = bytes_of(part)


def as_lazy(tensors: Mapping[str, LazyTensor | Tensor]) -> dict[str, LazyTensor]:
    """Tensors of torch beside lazy ones, all as lazy ones."""
    import torch

    return {
        name: HeldTensor(name, tensor) if isinstance(tensor, torch.Tensor) else tensor
        for name, tensor in tensors.items()
    }


def as_torch(tensor: LazyTensor) -> Tensor:
    """A stored tensor in memory, in its own dtype."""
    import torch

    from weightsmith.graph import torch_dtype

    found = torch.empty(tensor.shape, dtype=torch_dtype(tensor.dtype))
    fill(found, tensor)
    return found


def fill(place: Tensor, tensor: LazyTensor) -> None:
    """Write a stored tensor into one of as many elements, rounded to its dtype; the place is contiguous.

    At most a piece of the stored tensor is in memory beside it, none where dtype and device are those of the file.
    """
    from weightsmith.graph import torch_dtype

    flat = place.detach().view(-1)
    if isinstance(tensor, HeldTensor):
        flat.copy_(tensor.tensor.detach().reshape(-1))
    elif place.device.type == "cpu" and flat.dtype == torch_dtype(tensor.dtype):
        if tensor.numel:
            tensor.read_into(0, tensor.numel, bytes_of(flat))
    else:
        for start in range(0, tensor.numel, _PIECE):
            stop = min(start + _PIECE, tensor.numel)
            flat[start:stop].copy_(_piece(tensor, start, stop))


def are_equal(one: LazyTensor, other: LazyTensor) -> bool:
    """Whether two stored tensors hold the same bytes."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return all(a == b for a, b in zip(chunks_of(one), chunks_of(other), strict=True))


def _piece(tensor: LazyTensor, start: int, stop: int) -> Tensor:
    import torch

    from weightsmith.graph import torch_dtype

    return torch.frombuffer(read_bytes(tensor, start, stop), dtype=torch_dtype(tensor.dtype))


def bytes_of(flat: Tensor) -> memoryview:
    """The bytes of a contiguous tensor [N] on the CPU, to read or to write."""
    import torch

    return flat.view(torch.uint8).numpy().data
