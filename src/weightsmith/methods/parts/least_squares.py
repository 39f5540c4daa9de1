"""Least-squares solutions of least norm, by conjugate gradients, of linear maps that are given as functions.

Vectors are lists of arrays of numpy or torch; inner products run over all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from weightsmith.methods.parts.spectra import constant

Arrays = list[Any]
# Residual of the normal equations, relative to their right-hand side, at which the steps stop.
_CONVERGED = 1e-10


@dataclass(frozen=True, slots=True)
class LinearOperator:
    """x -> A x and y -> A^T y."""

    forward: Callable[[Arrays], Arrays]
    backward: Callable[[Arrays], Arrays]

    @property
    def transposed(self) -> LinearOperator:
        """y -> A^T y and x -> A x."""
        return LinearOperator(self.backward, self.forward)

    def solution(self, wanted: Arrays, steps: int) -> tuple[Arrays, bool]:
        """A^+ wanted after at most `steps` steps, and whether it is that."""
        rest = self.backward(wanted)
        found = [r * 0.0 for r in rest]
        direction, square = rest, _square(rest)
        goal = square * _CONVERGED**2
        for _ in range(steps):
            if square <= goal:
                break
            images = self.forward(direction)
            bend = _square(images)
            if bend == 0.0:
                break
            step = square / bend
            found = _moved(found, direction, step)
            rest = _moved(rest, self.backward(images), -step)
            new = _square(rest)
            direction, square = _moved(rest, direction, new / square), new
        return found, square <= goal


def _square(arrays: Arrays) -> float:
    return sum(constant((a * a).sum()) for a in arrays)


def _moved(arrays: Arrays, directions: Arrays, factor: float) -> Arrays:
    return [a + d * factor for a, d in zip(arrays, directions, strict=True)]
