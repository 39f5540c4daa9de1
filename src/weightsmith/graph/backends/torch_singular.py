"""Gradients of singular directions, for which it does not matter whether singular values are equal.

The k directions that are kept of A = U diag(s) V^T are given as three factors, of which the middle one is diagonal:

    A_k = U C V^T,   dC = U^T dA V,   U^T dU = 0,   V^T dV = 0

How U and V turn within their own spans is left to C. So nothing is divided by a difference of two singular values that
are both kept, and what is made of U, C and V has its gradient wherever it depends on no choice of a basis, however
many values are equal. The spans themselves move, to first order, by

    (s_i^2 - s_j^2) u_j^T du_i = s_i u_j^T dA v_i + u_j^T A dA^T u_i      i being kept and j not

which has no limit for s_i = s_j. That is refused, and so is a single direction among equal values. How many directions
are kept is a constant. There are first derivatives only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from weightsmith.errors import GradientError

# Singular values that differ by less than this share of the largest count as equal: of what is divided by their
# difference some five digits are left there. The same share of a gradient counts as rounding.
_EQUAL = 1e-10
# Directions of a sketch below this share of its strongest are rounding.
_RANK = 1e-13
# Share of the largest eigenvalue from which on a divided difference is more exact than the mean of two slopes.
_APART = 1e-6


class DirectionsFunction(Function):
    """U, C, the diagonal of C, and V^T of some of a matrix's directions.

    The matrix is (m, n), m <= n; `left` (m, p) and `values` (p) are all of its directions, but for such of value 0;
    `right` (k, n) are those whose numbers are `kept`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        matrix: Tensor,
        left: Tensor,
        values: Tensor,
        right: Tensor,
        kept: Tensor,
        tensor: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The factors."""
        ctx.save_for_backward(matrix, left, values, right, kept)
        ctx.tensor = tensor
        own = values[kept]
        return left[:, kept], torch.diag(own), own, right.clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, for_left: Tensor, for_core: Tensor, for_values: Tensor, for_right: Tensor
    ) -> tuple[Tensor | None, ...]:
        """The gradient of the matrix; GradientError where there is none."""
        matrix, left, values, right, kept = ctx.saved_tensors
        rest = torch.ones_like(values, dtype=torch.bool)
        rest[kept] = False
        own, strengths = left[:, kept], values[kept]
        others, weaker = left[:, rest], values[rest][:, None]
        divide = _Division(_EQUAL * float(values.abs().max()), ctx.tensor)
        core = for_core + torch.diag(divide.without_order(for_values, strengths))
        is_tied = ((strengths - weaker).abs() <= divide.limit).any(0)
        divide.refuse(core * is_tied + core * is_tied[:, None])
        turned = for_right - (for_right @ right.T) @ right
        lengths = strengths[:, None]
        turned = divide(turned, lengths, lengths, for_right)
        lifted = for_left + matrix @ turned.T
        reference = lifted
        lifted = lifted - own @ (own.T @ lifted)
        inside = others.T @ lifted
        gaps = strengths - weaker
        moved = others @ divide(inside, gaps * (strengths + weaker), gaps, reference)
        if left.shape[1] < left.shape[0]:
            moved = moved + (lifted - others @ inside) / strengths**2
        gradient = (own @ core + moved * strengths) @ right + own @ (turned + moved.T @ matrix)
        return gradient, None, None, None, None, None


class Separated(Function):
    """Turns that make C diagonal: X, its diagonal and Y^T of C = X diag(s) Y^T, where X and Y are 1."""

    @staticmethod
    def forward(ctx: Any, core: Tensor, values: Tensor, tensor: str) -> tuple[Tensor, ...]:
        """X, s and Y^T."""
        ctx.save_for_backward(values)
        ctx.tensor = tensor
        return identity(core), values.clone(), identity(core)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, for_left: Tensor, for_values: Tensor, for_right: Tensor
    ) -> tuple[Tensor | None, ...]:
        """The gradient of C; GradientError where two directions of one value are told apart.

        Where two values are equal, a gradient of 0 for their turn does not say that C has none: it would be a
        derivative of the values divided by their difference, 0 / 0.
        """
        (values,) = ctx.saved_tensors
        left, right = for_left - for_left.T, for_right.T - for_right
        gaps = values[None, :] - values[:, None]
        divide = _Division(_EQUAL * float(values.abs().max()), ctx.tensor)
        is_equal = (gaps.abs() <= divide.limit).sum(0) > 1
        divide.refuse(for_left * is_equal)
        divide.refuse(for_right.T * is_equal)
        sums = values[None, :] + values[:, None]
        together = divide(left + right, gaps, gaps, left + right) / 2.0
        apart = divide(left - right, sums, sums, left - right) / 2.0
        core = together + apart + torch.diag(divide.without_order(for_values, values))
        return core, None, None


class Unitary(Function):
    """The polar factor of C, which is 1: each direction with the strength 1."""

    @staticmethod
    def forward(ctx: Any, core: Tensor, values: Tensor, tensor: str) -> Tensor:
        """1."""
        ctx.save_for_backward(values)
        ctx.tensor = tensor
        return identity(core)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, for_factor: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of C, from dW_ij = (dC_ij - dC_ji) / (s_i + s_j); none for directions of value 0."""
        (values,) = ctx.saved_tensors
        sums = values[:, None] + values[None, :]
        divide = _Division(_EQUAL * float(values.abs().max()), ctx.tensor)
        is_zero = values <= divide.limit
        divide.refuse(for_factor * is_zero + for_factor * is_zero[:, None])
        return divide(for_factor - for_factor.T, sums, sums, for_factor), None, None


class OfSymmetric(Function):
    """f(C) = diag(f(s)) of a symmetric C with eigenvalues s, from f(s) and the slopes f'(s)."""

    @staticmethod
    def forward(ctx: Any, core: Tensor, values: Tensor, gains: Tensor, slopes: Tensor) -> Tensor:
        """diag(f(s))."""
        ctx.save_for_backward(values, gains, slopes)
        return torch.diag(gains).to(core)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, for_result: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of C by divided differences (Daleckii and Krein), and that of f where C stays as it is."""
        values, gains, slopes = ctx.saved_tensors
        gaps = values[:, None] - values[None, :]
        is_apart = gaps.abs() > _APART * float(values.abs().max())
        rises = (gains[:, None] - gains[None, :]) / torch.where(is_apart, gaps, 1.0)
        tangents = (slopes[:, None] + slopes[None, :]) / 2.0
        core = for_result * torch.where(is_apart, rises, tangents)
        return core, None, torch.diagonal(for_result), None


class Arbitrary(Function):
    """What depends on a choice among equals: it has no gradient."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, tensor: str) -> Tensor:
        """The result as it is."""
        ctx.tensor = tensor
        return result.clone()

    @staticmethod
    def backward(ctx: Any, for_result: Tensor) -> tuple[Tensor | None, ...]:
        """Raises GradientError unless nothing depends on the result."""
        _Division(0.0, ctx.tensor).refuse(for_result)
        return for_result, None


class Orthonormal(Function):
    """An orthonormal basis of a matrix's columns; of its gradient only the part that moves their span."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        """Q of the QR decomposition."""
        basis, factor = torch.linalg.qr(matrix)
        ctx.save_for_backward(basis, factor)
        return basis  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, for_basis: Tensor) -> Tensor:
        """From dQ = (1 - Q Q^T) dA R^+."""
        basis, factor = ctx.saved_tensors
        outside = for_basis - basis @ (basis.T @ for_basis)
        return outside @ torch.linalg.pinv(factor, rtol=_RANK).T  # type: ignore[no-any-return]


def directions(
    matrix: Tensor, left: Tensor, values: Tensor, right: Tensor, kept: Any, tensor: str
) -> tuple[Any, Any, Any, Any] | None:
    """U, C, the diagonal of C and V^T of those directions of a wide matrix that `kept` names; None where it names none.

    `left` and `values` have all its directions, but for such of value 0; `right` has those that are kept.
    """
    numbers = torch.arange(len(values), device=matrix.device)[kept]
    if not len(numbers):
        return None
    found: tuple[Any, Any, Any, Any] = _applied(
        DirectionsFunction, matrix, left, values, right, numbers, tensor
    )
    return found


def identity(matrix: Tensor) -> Tensor:
    """The identity of a square matrix's size, dtype and device."""
    return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


@dataclass(frozen=True, slots=True)
class _Division:
    """Division by differences of singular values, of which those up to `limit` are 0."""

    limit: float
    tensor: str

    def __call__(
        self, numerators: Tensor, denominators: Tensor, gaps: Tensor, reference: Tensor
    ) -> Tensor:
        """The quotients; 0 where gap and numerator are 0 but for rounding of the reference, else GradientError."""
        is_apart = gaps.abs() > self.limit
        if not bool(is_apart.all()):
            rest = torch.where(is_apart, 0.0, numerators).abs()
            if float(rest.max()) > _EQUAL * _largest(reference):
                raise self._error()
        return torch.where(is_apart, numerators / torch.where(is_apart, denominators, 1.0), 0.0)

    def without_order(self, gradient: Tensor, values: Tensor) -> Tensor:
        """The gradient of falling values; GradientError where equal ones are told apart by their order."""
        is_equal = (values[:-1] - values[1:]).abs() <= self.limit
        differences = torch.where(is_equal, gradient[:-1] - gradient[1:], 0.0)
        if _largest(differences) > _EQUAL * _largest(gradient):
            raise self._error()
        return gradient

    def refuse(self, gradient: Tensor) -> None:
        """GradientError if a gradient that is not defined is not 0."""
        if _largest(gradient) > 0.0:
            raise self._error()

    def _error(self) -> GradientError:
        return GradientError(
            f"The merge of {self.tensor!r} has no gradient at these weights, because it depends on single directions "
            "of equal singular values, or of value 0, which are arbitrary; leave this tensor out of the loss, or merge "
            "it by a method without singular directions."
        )


def separated(core: Tensor, values: Tensor, tensor: str) -> tuple[Any, Any, Any]:
    """The directions of C, which is diagonal here, one by one: left, values, right."""
    found: tuple[Any, Any, Any] = _applied(Separated, core, values.detach(), tensor)
    return found


def unitary(core: Tensor, values: Tensor, tensor: str) -> Any:
    """The polar factor of C."""
    return _applied(Unitary, core, values.detach(), tensor)


def orthonormal(matrix: Tensor) -> Any:
    """An orthonormal basis of the columns, the gradient being that of their span."""
    return _applied(Orthonormal, matrix)


def arbitrary(result: Tensor, tensor: str) -> Any:
    """A result whose gradient is refused."""
    return _applied(Arbitrary, result, tensor)


def _applied(function: type[Function], *arguments: Any) -> Any:
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def of_symmetric(core: Tensor, values: Tensor, function: Callable[[Tensor], Tensor]) -> Any:
    """f(C) of a symmetric positive semidefinite C, which is diagonal here, for a function that works elementwise.

    What else the function depends on has its gradient, too.
    """
    at = values.detach().requires_grad_()
    with torch.enable_grad():
        gains = function(at)
        (slopes,) = torch.autograd.grad(gains.sum(), at, retain_graph=True)
    return _applied(OfSymmetric, core, values.detach(), gains, slopes)
