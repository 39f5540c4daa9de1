"""Tensors that an output computes, each with its form in the files, and those that come from one reading."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from weightsmith.engine.outputs.storage import PLAIN, StorageForm
from weightsmith.recipes import OutputTensor
from weightsmith.tensors import DType, record


@record
@dataclass(frozen=True, slots=True)
class MadeTensor:
    """One tensor to compute, and how it is stored."""

    tensor: OutputTensor
    storage: StorageForm = PLAIN

    @property
    def stored(self) -> tuple[str, DType, tuple[int, ...]]:
        """Name, dtype and shape in the file."""
        tensor, storage = self.tensor, self.storage
        return tensor.name, storage.dtype(tensor.dtype), storage.shape(tensor.shape)

    @property
    def likeness(self) -> Hashable:
        """Equal for tensors that differ in names alone."""
        tensor = self.tensor
        return self.storage, tensor.dtype, tensor.shape, tensor.formula.likeness


# Tensors that are computed in one reading of what they are made of.
Reading = Sequence[MadeTensor]
