"""What an adapter does to a tensor whose shape, and the way that it is stored, must be known to say it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from weightsmith.deltas import Change, Rewriting
from weightsmith.errors import CompatibilityError
from weightsmith.tensors import LazyTensor


@dataclass(frozen=True, slots=True)
class Effect:
    """A change that is added to a tensor (`load`), or a rewriting of its rows (`rewrite`); one of the two is there.

    `turned`: both are for a matrix that is stored as inputs x outputs.
    """

    load: Callable[[], Change] | None = None
    rewrite: Callable[[], Rewriting] | None = None
    turned: bool = False


@dataclass(frozen=True, slots=True)
class OrientedShape:
    """A tensor of a base as a matrix or kernel: outputs x inputs, where the base stores inputs x outputs if `turned`.

    `columns` is the length of a stored row.
    """

    outputs: int
    inputs: int
    turned: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns as they are stored."""
        return (self.inputs, self.outputs) if self.turned else (self.outputs, self.inputs)


@dataclass(frozen=True, slots=True)
class TargetTensor:
    """A tensor of a base that an adapter changes.

    `input_first` is what the base says of the way that it stores it, None where nothing in it tells. `beside` are the
    shapes of all tensors that the adapter changes, by the targets of its updates.
    """

    tensor: LazyTensor
    input_first: bool | None = None
    beside: Mapping[str, tuple[int, ...]] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """As it is stored."""
        return self.tensor.shape

    def matrix(
        self,
        source: LazyTensor,
        outputs: int | None = None,
        inputs: int | None = None,
        *,
        turned: bool | None = False,
    ) -> OrientedShape:
        """The tensor as a matrix with these numbers of outputs and inputs, None for a number that no factor tells.

        `turned` is what the adapter says where shapes and base leave it open, None where it is never inputs first.
        Raises CompatibilityError, naming `source`, where it has no such shape.
        """
        shape = self.shape
        first, others = (shape[0] if shape else 1), math.prod(shape[1:])
        fits = outputs in (None, first) and inputs in (None, others)
        fits_turned = (
            turned is not None
            and len(shape) == 2
            and outputs in (None, others)
            and inputs in (None, first)
        )
        if len(shape) < 2 or not (fits or fits_turned):
            wanted = " x ".join("any" if n is None else str(n) for n in (outputs, inputs))
            raise CompatibilityError(
                f"{self.tensor.location} has the shape {list(shape)}, but {source.location} and its partners change "
                f"one of {wanted} (outputs x inputs): give the base that the adapter was trained on."
            )
        is_turned = fits_turned
        if fits and fits_turned:
            is_turned = bool(turned) if self.input_first is None else self.input_first
        return (
            OrientedShape(others, first, True) if is_turned else OrientedShape(first, others, False)
        )
