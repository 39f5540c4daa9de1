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
        read = _READERS.get(func)
        if read is not None and torch.is_grad_enabled():
            use = read(*args, **named)
            if use is not None and id(use[0]) in self._names:
                weight, *others = use
                apply = _FUNCTIONS[func].apply
                return apply(self._teller(self._names[id(weight)]), weight, *real(others))
        return func(*args, **named)

    def _teller(self, name: str) -> _Tell:
        return lambda term: self._caught.setdefault(name, []).append(term)


class _Linear(torch.autograd.Function):
    """x W^T + b."""

    @staticmethod
    def forward(ctx: Any, tell: _Tell, weight: Any, x: Any, bias: Any) -> Any:
        ctx.tell = tell
        ctx.save_for_backward(weight, x)
        return functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        weight, x = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        ctx.tell(Product(flat, x.detach().reshape(-1, x.shape[-1])))
        back = gradient @ weight if ctx.needs_input_grad[2] else None
        return None, None, back, flat.sum(0) if ctx.needs_input_grad[3] else None


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
    """Rows of W."""

    @staticmethod
    def forward(ctx: Any, tell: _Tell, weight: Any, places: Any, padding: int) -> Any:
        ctx.tell, ctx.padding = tell, padding
        ctx.save_for_backward(places)
        return functional.embedding(places, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        places = ctx.saved_tensors[0].reshape(-1)
        values = gradient.reshape(-1, gradient.shape[-1])
        if ctx.padding >= 0:
            places, values = places[places != ctx.padding], values[places != ctx.padding]
        own, index = places.unique(return_inverse=True)
        sums = values.new_zeros((len(own), values.shape[1]))
        with deterministic(values.device.type):
            sums.index_add_(0, index, values)
        ctx.tell(Looked(own, sums))
        return None, None, None, None


def _read_linear(x: Any, weight: Any, bias: Any = None) -> tuple[Any, ...]:
    return weight, x, bias


def _read_addmm(bias: Any, x: Any, weight: Any, **others: Any) -> tuple[Any, ...] | None:
    is_plain = not others and bias.ndim == 1
    return (weight, x, bias) if is_plain else None


def _read_embedding(
    places: Any,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> tuple[Any, ...] | None:
    padding = -1 if padding_idx is None else padding_idx % len(weight)
    is_plain = max_norm is None and not scale_grad_by_freq and not sparse
    return (weight, places, padding) if is_plain else None


_READERS: dict[Any, Callable[..., tuple[Any, ...] | None]] = {
    functional.linear: _read_linear,
    functional.embedding: _read_embedding,
    torch.addmm: _read_addmm,
}
_FUNCTIONS: dict[Any, type[torch.autograd.Function]] = {
    functional.linear: _Linear,
    functional.embedding: _Embedding,
    torch.addmm: _Addmm,
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
