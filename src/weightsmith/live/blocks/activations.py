"""Activations that wait for the next block: in memory up to a budget, in files beyond it, the same bits either way."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsmith.errors import ResourceError
from weightsmith.wording import shown

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Spilled:
    """A tensor in a file: its bytes in the order in which they lay in memory."""

    file: Path
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Any
    device: Any


class ActivationStore:
    """Tensors by key; of those that are kept at a time, `memory_bytes` are in memory and the others in `folder`.

    Raises ResourceError where files cannot be written.
    """

    def __init__(self, memory_bytes: int, folder: Path | None = None) -> None:
        self._left, self._parent = memory_bytes, folder
        self._held: dict[Hashable, Tensor] = {}
        self._spilled: dict[Hashable, _Spilled] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._made = 0
        self.spilled_bytes = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held or key in self._spilled

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keep a tensor, in the place of an earlier one of its key."""
        self.drop(key)
        own = _without_graph(tensor)
        if own.nbytes <= self._left:
            self._left -= own.nbytes
            self._held[key] = own
        else:
            self._spilled[key] = self._spill(own)

    def get(self, key: Hashable) -> Tensor:
        """A tensor that is kept; it must not be written to."""
        return self._held[key] if key in self._held else _read(self._spilled[key])

    def pop(self, key: Hashable) -> Tensor | None:
        """A tensor that is kept no longer, or None."""
        found = self.get(key) if key in self else None
        self.drop(key)
        return found

    def drop(self, key: Hashable) -> None:
        """Keep a tensor no longer."""
        held = self._held.pop(key, None)
        if held is not None:
            self._left += held.nbytes
        spilled = self._spilled.pop(key, None)
        if spilled is not None:
            spilled.file.unlink()

    def close(self) -> None:
        """Keep nothing, and remove the files."""
        self._held.clear()
        self._spilled.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def _spill(self, tensor: Tensor) -> _Spilled:
        self._made += 1
        try:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="weightsmith-", dir=self._parent)
            file = Path(self._folder.name) / str(self._made)
            file.write_bytes(_bytes_of(tensor.cpu()))
        except OSError as error:
            place = self._parent or Path(tempfile.gettempdir())
            raise ResourceError(
                f"Activations cannot be kept in {shown(place)} ({error.strerror}); give more memory, fewer items or "
                "another folder."
            ) from error
        self.spilled_bytes += tensor.nbytes
        return _Spilled(file, tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


def _without_graph(tensor: Tensor) -> Tensor:
    """A tensor by itself: a part of a larger one, or one that repeats its elements, is copied."""
    import torch

    own = tensor.detach()
    if own.untyped_storage().nbytes() == own.nbytes:
        return own
    return own.clone(memory_format=torch.preserve_format)


def _bytes_of(tensor: Tensor) -> memoryview:
    import torch

    flat = tensor.as_strided((tensor.numel(),), (1,))
    return flat.view(torch.uint8).numpy().data


def _read(spilled: _Spilled) -> Tensor:
    import torch

    data = bytearray(spilled.file.stat().st_size)
    if not data:
        return torch.empty(spilled.shape, dtype=spilled.dtype, device=spilled.device)
    with spilled.file.open("rb") as file:
        file.readinto(data)
    flat = torch.frombuffer(data, dtype=spilled.dtype)
    return flat.as_strided(spilled.shape, spilled.strides).to(spilled.device)
