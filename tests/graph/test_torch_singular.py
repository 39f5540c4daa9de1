"""Gradients of singular directions: those of finite differences, also where values are equal, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from weightsmith.errors import GradientError
from weightsmith.graph.singular import (
    Spectrum,
    arbitrary,
    differentiable,
    exact,
    gram_spectrum,
    orthonormal,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def matrix(m: int, n: int, values: list[float], seed: int = 0) -> Tensor:
    left = torch.linalg.qr(drawn(m, len(values), seed=seed))[0]
    right = torch.linalg.qr(drawn(n, len(values), seed=seed + 1))[0]
    return (left * torch.tensor(values, dtype=torch.float64)) @ right.T


def leading(a: Tensor, rank: int, find: Callable[..., Spectrum] = exact) -> Spectrum:
    return differentiable(a, find(torch, a.detach()), slice(rank), "w")


def agrees(function: Callable[[Tensor], Tensor], a: Tensor, direction: Tensor) -> None:
    """The gradient of a weighted sum of what the function gives is its slope along a direction."""
    weights = drawn(*function(a).shape, seed=7)
    point = a.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((function(point) * weights).sum(), point)
    step = 1e-6
    ahead, behind = (function(a + s * step * direction) for s in (1.0, -1.0))
    slope = float(((ahead - behind) * weights).sum()) / (2.0 * step)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-7)


def subspace(a: Tensor, rank: int) -> Tensor:
    found = leading(a, rank)
    return found.left @ found.left.T


INVARIANT = {
    "truncated": lambda a: leading(a, 2).matrix(),
    "polar": lambda a: leading(a, 2).polar(),
    "subspace": lambda a: subspace(a, 2),
    "sum of values": lambda a: leading(a, 2).values.sum()[None],
    "leading of more": lambda a: leading(a, 3).leading(2).polar(),
    "chosen of more": lambda a: leading(a, 3).only(torch.tensor([True, False, True])).matrix(),
    "by Gram matrices": lambda a: leading(a, 2, gram_spectrum).polar(),
}


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (5, 5)])
@pytest.mark.parametrize("name", INVARIANT)
def test_what_depends_on_no_basis_has_the_gradient_of_finite_differences(name, shape):
    a = matrix(*shape, [3.0, 2.0, 1.2, 0.7, 0.1])
    agrees(INVARIANT[name], a, drawn(*shape, seed=3))


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (5, 5)])
@pytest.mark.parametrize("name", ["truncated", "polar", "subspace", "sum of values"])
def test_equal_values_on_one_side_of_the_cut_change_nothing(name, shape):
    a = matrix(*shape, [2.0, 2.0, 0.5, 0.5, 0.5])
    agrees(INVARIANT[name], a, drawn(*shape, seed=3))


@pytest.mark.parametrize("name", ["truncated", "polar", "subspace", "sum of values"])
def test_low_rank_has_the_gradient_along_what_keeps_the_rank(name):
    left, right = drawn(9, 2), drawn(2, 6, seed=1)
    turn_left, turn_right = drawn(9, 2, seed=2), drawn(2, 6, seed=3)
    tangent = turn_left @ right + left @ turn_right
    a = left @ right
    weights = drawn(*INVARIANT[name](a).shape, seed=7)
    point = a.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((INVARIANT[name](point) * weights).sum(), point)
    step = 1e-6
    values = [
        float((INVARIANT[name]((left + s * turn_left) @ (right + s * turn_right)) * weights).sum())
        for s in (step, -step)
    ]
    slope = (values[0] - values[1]) / (2.0 * step)
    assert float((gradient * tangent).sum()) == pytest.approx(slope, rel=1e-6)


def test_the_polar_factor_has_the_derivative_of_its_sylvester_equation():
    """A = W H, dW = W X with X skew and H X + X H = W^T dA - dA^T W, solved as 16 linear equations."""
    a, direction = matrix(4, 4, [2.0, 2.0, 2.0, 1.0]), drawn(4, 4, seed=3)
    u, s, v = torch.linalg.svd(a)
    polar, symmetric = u @ v, v.T @ torch.diag(s) @ v
    eye = torch.eye(4, dtype=torch.float64)
    system = torch.kron(symmetric, eye) + torch.kron(eye, symmetric)
    skew = polar.T @ direction - direction.T @ polar
    change = polar @ torch.linalg.solve(system, skew.reshape(-1)).reshape(4, 4)
    weights = drawn(4, 4, seed=7)
    point = a.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((leading(point, 4).polar() * weights).sum(), point)
    assert float((gradient * direction).sum()) == pytest.approx(float((change * weights).sum()))


def test_numbers_are_the_same_with_gradients_and_without():
    a = matrix(6, 5, [3.0, 2.0, 1.2, 0.7, 0.1])
    for part in ("matrix", "polar"):
        plain = getattr(leading(a, 3), part)()
        assert torch.equal(getattr(leading(a.clone().requires_grad_(), 3), part)(), plain)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (5, 5)])
def test_single_directions_have_gradients_where_values_differ(shape):
    a = matrix(*shape, [3.0, 2.0, 1.2, 0.7, 0.1])

    def pair(a: Tensor) -> Tensor:
        found = leading(a, 4).separated()
        return found.left[:, 2:3] ** 2 * found.values[2] @ found.right[2:3] ** 2

    agrees(lambda a: leading(a, 4).separated().values, a, drawn(*shape, seed=3))
    agrees(pair, a, drawn(*shape, seed=3))


REFUSED = {
    "a cut between equal values": lambda a: leading(a, 1).matrix().sum(),
    "the sum of some of equal values": lambda a: leading(a, 1).values.sum(),
    "one of equal values": lambda a: leading(a, 3).values[0],
    "a direction of equal values": lambda a: leading(a, 3).separated().left[0, 0],
    "the value of one of them": lambda a: leading(a, 3).separated().values[1],
    "leading ones of equal ones": lambda a: leading(a, 3).leading(1).polar().sum(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_gradients_that_do_not_exist_are_refused_in_a_sentence_that_names_the_tensor(name):
    a = matrix(6, 5, [2.0, 2.0, 1.0, 0.5, 0.1]).requires_grad_()
    with pytest.raises(GradientError, match=r"^The merge of 'w' has no gradient .*\.$"):
        REFUSED[name](a).backward()


def test_directions_of_value_0_have_no_polar_factor():
    a = matrix(6, 5, [2.0, 1.0]).requires_grad_()
    with pytest.raises(GradientError, match="of value 0"):
        leading(a, 4).polar().sum().backward()
    leading(a, 2).polar().sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()


def test_a_cut_between_equal_values_is_harmless_where_nothing_depends_on_it():
    a = matrix(6, 5, [2.0, 2.0, 1.0, 0.5, 0.1]).requires_grad_()
    (leading(a, 1).matrix() * 0.0).sum().backward()
    assert a.grad is not None
    assert not a.grad.any()


def test_a_choice_among_equals_is_refused_once_something_depends_on_it():
    a = drawn(3, 3).requires_grad_()
    result = arbitrary(a * 2.0, "w")
    assert torch.equal(result, a * 2.0)
    with pytest.raises(GradientError, match="'w'"):
        result.sum().backward()
    assert arbitrary(result.detach(), "w") is not None


SMOOTH = {
    "reciprocal": lambda x: 1.0 / x,
    "exponential": lambda x: -torch.expm1(-3.0 * x) / x,
    "power": lambda x: x**1.5,
}


def of_symmetric(a: Tensor, function: Callable[[Tensor], Tensor], rank: int) -> Tensor:
    values, vectors = torch.linalg.eigh(a.detach())
    values, vectors = values.flip(0), vectors.flip(1)
    found = differentiable(a, Spectrum(vectors, values, vectors.T), slice(rank), "w")
    return found.through(found.left, function) @ found.left.T


@pytest.mark.parametrize("values", [[3.0, 2.0, 1.0, 0.1], [2.0, 2.0, 1.0, 1.0], [2.0] * 4])
@pytest.mark.parametrize("name", SMOOTH)
def test_functions_of_symmetric_matrices_are_smooth_in_equal_eigenvalues(name, values):
    basis = torch.linalg.qr(drawn(4, 4))[0]
    a = (basis * torch.tensor(values, dtype=torch.float64)) @ basis.T
    direction = drawn(4, 4, seed=3)
    agrees(lambda a: of_symmetric(a, SMOOTH[name], 4), a, direction + direction.T)


def test_a_function_may_depend_on_the_largest_eigenvalue():
    basis = torch.linalg.qr(drawn(4, 4))[0]
    a = (basis * torch.tensor([3.0, 1.0, 1.0, 0.2], dtype=torch.float64)) @ basis.T

    def relative(a: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(a.detach())
        found = Spectrum(vectors.flip(1), values.flip(0), vectors.flip(1).T)
        found = differentiable(a, found, slice(4), "w")
        largest = found.values[0]
        return found.through(found.left, lambda x: (1.0 - x / largest) ** 3) @ found.left.T

    direction = drawn(4, 4, seed=3)
    agrees(relative, a, direction + direction.T)


@pytest.mark.parametrize("rank", [2, 5])
def test_a_basis_of_columns_moves_with_their_span(rank):
    """Rank 2 in 5 columns, as sketches of low-rank matrices are: the directions of rounding have no part in it."""
    left, right = drawn(9, rank), drawn(rank, 5, seed=1)
    turn = drawn(9, rank, seed=2)

    def projected(left: Tensor) -> Tensor:
        basis = orthonormal(torch, left @ right)
        return basis @ (basis.T @ (left @ right)) @ right.T

    agrees(projected, left, turn)


def test_second_derivatives_are_refused():
    a = matrix(4, 4, [4.0, 3.0, 2.0, 1.0]).requires_grad_()
    (gradient,) = torch.autograd.grad(leading(a, 2).polar().sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
