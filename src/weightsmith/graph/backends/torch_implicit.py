"""Gradients of what an iteration solves, from the equations that it solves and not from its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd.function import Function, once_differentiable


class Implicit(Function):
    """A solution that moves with other tensors: `adjoint` makes their gradients from that of the solution."""

    @staticmethod
    def forward(
        ctx: Any,
        solution: Tensor,
        adjoint: Callable[[Tensor], tuple[Tensor, ...]],
        *_moving: Tensor,
    ) -> Tensor:
        """The solution as it is."""
        ctx.adjoint = adjoint
        return solution.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, for_solution: Tensor) -> tuple[Tensor | None, ...]:
        """Nothing for the solution itself, which is a number here."""
        return None, None, *ctx.adjoint(for_solution)


def implicit(
    solution: Tensor, adjoint: Callable[[Tensor], tuple[Tensor, ...]], *moving: Tensor
) -> Any:
    """The solution as it is, whose gradient goes to `moving` by `adjoint`."""
    return Implicit.apply(solution, adjoint, *moving)  # type: ignore[no-untyped-call]
