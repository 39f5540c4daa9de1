"""Catching the gradients of weights on the way back, before arrays as large as the weights are made of them.

    with GradientCatcher() as catcher, catcher.training(parameters):
        loss = network(...)
        loss.backward()
        catcher.take("layers.0.weight", parameters["layers.0.weight"])

What multiplies rows with a weight, or looks rows of it up, is told from everything else that uses one by the function
that is called, whatever module calls it. Weights that are used otherwise get the arrays that autograd makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from weightsmith.live.blocks.kept_tensors import real
from weightsmith.live.devices import deterministic
from weightsmith.live.residency import requiring_gradients
from weightsmith.live.weight_gradients import Looked, Product, Term, WeightGradient, Whole

_Tell = Callable[[Term], None]


class GradientCatcher(TorchFunctionMode):
    """What losses left at weights that are trained, by the names of the tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[int, str] = {}
        self._caught: dict[str, list[Term]] = {}

    @contextmanager
    def training(self, parameters: Mapping[str, torch.nn.Parameter]) -> Iterator[None]:
        """Have weights require gradients, and catch these, while the context lasts."""
        before = dict(self._names)
        self._names.update({id(parameter): name for name, parameter in parameters.items()})
        try:
            with requiring_gradients(parameters.values()):
                yield
        finally:
            self._names = before

    def take(self, name: str, other: torch.Tensor | None = None) -> list[Term]:
        """The terms of a gradient that were caught, which are then forgotten, with what autograd made of others."""
        return self._caught.pop(name, []) + ([] if other is None else [Whole(other)])

    def forget(self) -> None:
        """Forget everything that was caught."""
        self._caught.clear()

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute as the function does, and listen on the way back where a weight is used that is known."""
        named = kwargs or {}
        use = _USES.get(func)
        if use is not None and torch.is_grad_enabled():
            found = use(*args, **named)
            if found is not None and id(found.weight) in self._names:
                apply: Any = found.function.apply
                tell = self._teller(self._names[id(found.weight)])
                # By rows, since a function's output that is a view could not be written to.
                rows = apply(tell, found.weight, found.rows, found.other)
                return rows.view(*found.shape, rows.shape[-1])
        return func(*args, **named)

    def _teller(self, name: str) -> _Tell:
        return lambda term: self._caught.setdefault(name, []).append(term)


@dataclass(frozen=True, slots=True, eq=False)
class _Use:
    """What reads a weight: rows [N, ...], what else it needs, and the shape of its output but for the last axis."""

    function: type[torch.autograd.Function]
    weight: Any
    rows: Any
    other: Any
    shape: tuple[int, ...]


class _Linear(torch.autograd.Function):
    """x W^T + b, of rows x [N, I] and W [O, I]."""

    @staticmethod
    def forward(ctx: Any, tell: _Tell, weight: Any, x: Any, bias: Any) -> Any:
        ctx.tell = tell
        ctx.save_for_backward(weight, x)
        return functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        weight, x = ctx.saved_tensors
        ctx.tell(Product(gradient, x.detach()))
        back = gradient @ weight if ctx.needs_input_grad[2] else None
        return None, None, back, gradient.sum(0) if ctx.needs_input_grad[3] else None


class _Addmm(torch.autograd.Function):
    """b + x W, of rows x [N, I] and W [I, O]."""

    @staticmethod
    def forward(ctx: Any, tell: _Tell, weight: Any, x: Any, bias: Any) -> Any:
        ctx.tell = tell
        ctx.save_for_backward(weight, x)
        return torch.addmm(bias, x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        weight, x = ctx.saved_tensors
        ctx.tell(Product(x.detach(), gradient))
        back = gradient @ weight.T if ctx.needs_input_grad[2] else None
        return None, None, back, gradient.sum(0) if ctx.needs_input_grad[3] else None


class _Embedding(torch.autograd.Function):
    """The rows of W at places [N], but for those of padding trained by what comes back."""

    @staticmethod
    def forward(ctx: Any, tell: _Tell, weight: Any, places: Any, padding: int) -> Any:
        ctx.tell, ctx.padding = tell, padding
        ctx.save_for_backward(places)
        return weight.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        (places,) = ctx.saved_tensors
        if ctx.padding >= 0:
            gradient, places = gradient[places != ctx.padding], places[places != ctx.padding]
        own, index = places.unique(return_inverse=True)
        sums = gradient.new_zeros((len(own), gradient.shape[1]))
        with deterministic(gradient.device.type):
            sums.index_add_(0, index, gradient)
        ctx.tell(Looked(own, sums))
        return None, None, None, None


def _use_linear(x: Any, weight: Any, bias: Any = None) -> _Use | None:
    x = real(x)
    if x.ndim < 2:
        return None
    return _Use(_Linear, weight, x.reshape(-1, x.shape[-1]), bias, tuple(x.shape[:-1]))


def _use_addmm(bias: Any, x: Any, weight: Any, **others: Any) -> _Use | None:
    if others or bias.ndim != 1:
        return None
    return _Use(_Addmm, weight, real(x), bias, tuple(x.shape[:-1]))


def _use_embedding(
    places: Any, weight: Any, padding_idx: int | None = None, **others: Any
) -> _Use | None:
    if any(others.get(key) for key in ("max_norm", "scale_grad_by_freq", "sparse")):
        return None
    padding = -1 if padding_idx is None else padding_idx % len(weight)
    return _Use(_Embedding, weight, real(places).reshape(-1), padding, tuple(places.shape))


_USES: dict[Any, Callable[..., _Use | None]] = {
    functional.linear: _use_linear,
    functional.embedding: _use_embedding,
    torch.addmm: _use_addmm,
}


def gradients_of(
    found: Mapping[str, Sequence[Term]], parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, WeightGradient]:
    """Gradients of the tensors that have any, of their terms."""
    return {
        name: WeightGradient(tuple(parameters[name].shape), list(terms))
        for name, terms in found.items()
        if terms
    }
