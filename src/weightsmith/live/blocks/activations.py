"""Activations that wait for the next block: in memory up to a budget, in files beyond it, the same bits either way."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsmith.errors import ResourceError
from weightsmith.tensors import piece_digest
from weightsmith.wording import shown

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Spilled:
    """A tensor in a file: its bytes in the order in which they lay in memory, and their digest if it outlives a run."""

    file: Path
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Any
    device: Any
    digest: str = ""

    def to_json(self) -> dict[str, Any]:
        """What is known of it."""
        return {
            "file": self.file.name,
            "shape": self.shape,
            "strides": self.strides,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "digest": self.digest,
        }


class ActivationStore:
    """Tensors by key; of those that are kept at a time, `memory_bytes` are in memory and the others in `folder`.

    One that is `lasting` has all of them in files of the folder, where another process finds them by what `to_json`
    said; a file goes when its tensor is kept no longer and `settle` tells that nobody needs it. Raises ResourceError
    where files cannot be written, or are not what they were.
    """

    def __init__(
        self, memory_bytes: int, folder: Path | None = None, *, lasting: bool = False
    ) -> None:
        self._left, self._parent, self._lasting = memory_bytes, folder, lasting
        self._unneeded: list[Path] = []
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
        if self._lasting or key not in self._held:
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
        if spilled is not None and self._lasting:
            self._unneeded.append(spilled.file)
        elif spilled is not None:
            spilled.file.unlink()

    def to_json(self) -> list[Any]:
        """What is kept in files."""
        return [[key, spilled.to_json()] for key, spilled in self._spilled.items()]

    def settle(self) -> None:
        """Remove the files of what is kept no longer."""
        for file in self._unneeded:
            file.unlink(missing_ok=True)
        self._unneeded.clear()

    def restore(self, entries: list[Any]) -> None:
        """Keep what another store of the same folder said that it kept, and remove all other files."""
        import torch

        folder = self._place()
        for key, known in entries:
            own = dict(known)
            own["file"] = folder / own["file"]
            own["dtype"] = getattr(torch, own["dtype"])
            own |= {name: tuple(own[name]) for name in ("shape", "strides")}
            self._spilled[as_key(key)] = _Spilled(**own)
        kept = {spilled.file for spilled in self._spilled.values()}
        for file in folder.iterdir():
            if file not in kept:
                file.unlink()
        self._made = max((int(file.name) for file in kept), default=0)

    def close(self) -> None:
        """Keep nothing, and remove the files unless they are to last."""
        self._held.clear()
        self._spilled.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def _spill(self, tensor: Tensor) -> _Spilled:
        self._made += 1
        try:
            file = self._place() / str(self._made)
            data = _bytes_of(tensor.cpu())
            file.write_bytes(data)
        except OSError as error:
            place = self._parent or Path(tempfile.gettempdir())
            raise ResourceError(
                f"Activations cannot be kept in {shown(place)} ({error.strerror}); give more memory, fewer items or "
                "another folder."
            ) from error
        self.spilled_bytes += tensor.nbytes
        digest = piece_digest(data).hex() if self._lasting else ""
        shape, strides = tuple(tensor.shape), tensor.stride()
        return _Spilled(file, shape, strides, tensor.dtype, tensor.device, digest)

    def _place(self) -> Path:
        if self._lasting and self._parent is not None:
            return self._parent
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="weightsmith-", dir=self._parent)
        return Path(self._folder.name)


def as_key(written: Any) -> Hashable:
    """A key as JSON gives it back, whose tuples have become lists."""
    return tuple(map(as_key, written)) if isinstance(written, list) else written


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

    try:
        with spilled.file.open("rb") as file:
            flat = torch.empty(spilled.file.stat().st_size, dtype=torch.uint8)
            file.readinto(flat.numpy().data)
    except OSError as error:
        raise _damaged(spilled.file, str(error.strerror)) from error
    if spilled.digest and piece_digest(flat.numpy().data).hex() != spilled.digest:
        raise _damaged(spilled.file, "their bytes are others")
    own = flat.view(spilled.dtype)
    return own.as_strided(spilled.shape, spilled.strides).to(spilled.device)


def _damaged(file: Path, reason: str) -> ResourceError:
    return ResourceError(
        f"Activations in {shown(file.parent)} are not what they were ({reason}); remove what lies there and begin "
        "again."
    )
