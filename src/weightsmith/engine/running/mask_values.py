"""The numbers of free masks that a merge is evaluated for: those they start from, until others are given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from weightsmith.checkpoints import read_statistics
from weightsmith.errors import UsageError
from weightsmith.recipes import MaskNumbers, OpenRecipe, file_of_values, require_within
from weightsmith.tensors import Broadcast, DType, LazyTensor, MemoryTensor
from weightsmith.wording import shown

if TYPE_CHECKING:
    from torch import Tensor

# Numbers of some tensors of a mask.
MaskTensors: TypeAlias = "Mapping[str, LazyTensor | Tensor | np.ndarray[Any, Any]]"


class MaskValues:
    """What the tensors of masks hold, by mask and tensor. `versions` counts how often each mask was given."""

    def __init__(self, masks: Mapping[str, MaskNumbers]) -> None:
        self.versions = dict.fromkeys(masks, 0)
        self._masks = masks
        self._given: dict[str, dict[str, LazyTensor]] = {
            name: {one: tensor.holds for one, tensor in mask.tensors.items()}
            for name, mask in masks.items()
        }

    def give(self, name: str, tensors: MaskTensors | str | Path) -> None:
        """The numbers of a mask from now on: a file of kind mask, or tensors; those that are left out stay as they are.

        Raises RecipeError for numbers outside of the bounds, and UsageError for masks, tensors or shapes that there
        are not.
        """
        mask = self._masks.get(name)
        if mask is None:
            known = ", ".join(self._masks) or "none"
            raise UsageError(f"The recipe has no free mask {shown(name)}; it has {known}.")
        if isinstance(tensors, (str, Path)):
            read = read_statistics(file_of_values(mask, tensors)).checkpoint.tensors
            tensors = {one: tensor for one, tensor in read.items() if one in mask.shapes}
        found = {one: self._checked(mask, one, given) for one, given in tensors.items()}
        self._given[name] |= found
        self.versions[name] += 1

    @contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """Let masks that are given meanwhile be what they were before, should something be raised."""
        before = {name: dict(tensors) for name, tensors in self._given.items()}
        versions = dict(self.versions)
        try:
            yield
        except BaseException:
            for name in self.versions:
                if self.versions[name] != versions[name]:
                    self._given[name] = before[name]
                    self.versions[name] += 1
            raise

    def hold(self, opened: OpenRecipe) -> None:
        """Let the formulas of a recipe read them."""
        for name, mask in opened.masks.items():
            for one, tensor in self._given[name].items():
                if one in mask.tensors:
                    mask.tensors[one].holds = tensor

    def _checked(self, mask: MaskNumbers, name: str, given: Any) -> LazyTensor:
        if name not in mask.shapes:
            raise UsageError(
                f"The free mask {mask.name!r} has no tensor {shown(name)}; it has {', '.join(list(mask.shapes)[:4])}."
            )
        tensor = _lazy(name, given)
        if tensor.shape != mask.shapes[name] or tensor.dtype is not DType.FLOAT32:
            raise UsageError(
                f"The mask {mask.name!r} of {shown(name)} is {tensor.dtype} of shape {list(tensor.shape)}; give "
                f"float32 of shape {list(mask.shapes[name])}."
            )
        require_within(mask, tensor)
        weight = mask.tensors[name].shape
        return tensor if tensor.shape == weight else Broadcast(name, weight, tensor)


def _lazy(name: str, given: Any) -> LazyTensor:
    """A tensor as engines read it; what is given may change afterwards."""
    if hasattr(given, "detach"):
        given = given.detach().cpu().numpy()
    if isinstance(given, np.ndarray):
        if given.dtype not in (np.float32, np.float64):
            raise UsageError(f"The mask of {shown(name)} holds {given.dtype}; give float32.")
        return MemoryTensor.of(name, DType.FLOAT32, given.astype(np.float32))
    tensor: LazyTensor = given
    return tensor
