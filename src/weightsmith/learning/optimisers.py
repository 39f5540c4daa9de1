"""What moves free numbers down a gradient: torch's optimisers, and Frank-Wolfe steps between the experts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from weightsmith.errors import UsageError
from weightsmith.graph import FreeNumber
from weightsmith.learning.parametrisations import Parametrisation, hulls

if TYPE_CHECKING:
    from torch import Tensor

OPTIMIZERS = ("adam", "adamw", "sgd", "frank_wolfe")
STEPS = ("diminishing", "line_search")
_HALVINGS = 10
# The share of what a step promises that it must keep (Armijo).
_SUFFICIENT = 1e-4


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """Which optimiser, and its numbers.

    `rate` is the learning rate, for frank_wolfe the factor of its steps 2 / (t + 2); `first_restart` the steps before a
    cosine schedule first begins anew, every next time twice as many, down to a tenth of the rate (None: a constant
    rate); `clip` bounds the norm of a gradient.
    """

    name: str = "adam"
    rate: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.0
    first_restart: int | None = None
    clip: float | None = None
    step: str = "diminishing"

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0: SGDR (arXiv:1608.03983) with T_mult = 2."""
        if self.first_restart is None:
            return self.rate
        length, at = self.first_restart, step
        while at >= length:
            at -= length
            length *= 2
        low = 0.1 * self.rate
        return low + (self.rate - low) * (1 + math.cos(math.pi * at / length)) / 2


@dataclass(frozen=True, slots=True, eq=False)
class Slope:
    """The loss at the present numbers, its gradient [n] in float64, and the loss of the same items elsewhere."""

    loss: float
    gradient: Tensor
    loss_at: Callable[[list[float]], float]


class Optimiser(Protocol):
    """What holds free numbers and moves them."""

    def values(self) -> list[float]:
        """The numbers as they are now."""
        ...

    def step(self, number: int, slope: Slope) -> float | None:
        """Move them; gives the duality gap, where there is one."""
        ...

    def state(self) -> dict[str, Any]:
        """All that the next steps depend on, as JSON."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Be as another was when it gave its state."""
        ...


def make_optimiser(
    settings: OptimizerSettings, parametrisation: str, numbers: Mapping[str, FreeNumber]
) -> Optimiser:
    """An optimiser that starts where the numbers do; raises UsageError for what does not go together."""
    if settings.name == "frank_wolfe":
        if parametrisation != "clip":
            raise UsageError(
                "frank_wolfe keeps to the convex hull of the experts by itself; leave out the parametrisation."
            )
        return FrankWolfe(settings, numbers)
    return GradientSteps(settings, Parametrisation(parametrisation, numbers), numbers)


class GradientSteps:
    """Adam, AdamW or SGD of torch, in float64."""

    def __init__(
        self,
        settings: OptimizerSettings,
        parametrisation: Parametrisation,
        numbers: Mapping[str, FreeNumber],
    ) -> None:
        import torch

        self._settings, self._numbers = settings, parametrisation
        start = parametrisation.begin([number.start for number in numbers.values()])
        self._x = torch.nn.Parameter(start)
        decay = settings.weight_decay
        makers: Mapping[str, Callable[[], Any]] = {
            "adam": lambda: torch.optim.Adam([self._x], weight_decay=decay),
            "adamw": lambda: torch.optim.AdamW([self._x], weight_decay=decay),
            "sgd": lambda: torch.optim.SGD(
                [self._x], momentum=settings.momentum, weight_decay=decay
            ),
        }
        if settings.name not in makers:
            raise UsageError(
                f"There is no optimizer {settings.name!r}; there are {', '.join(OPTIMIZERS)}."
            )
        self._optimizer = makers[settings.name]()

    def values(self) -> list[float]:
        """The numbers as they are now."""
        import torch

        with torch.no_grad():
            return self._numbers.within(self._numbers.values(self._x))

    def step(self, number: int, slope: Slope) -> float | None:
        """One step of the optimiser."""
        import torch

        self._optimizer.zero_grad()
        with torch.enable_grad():
            values = self._numbers.values(self._x)
            (self._x.grad,) = torch.autograd.grad(values, [self._x], slope.gradient)
        if self._settings.clip is not None:
            torch.nn.utils.clip_grad_norm_([self._x], self._settings.clip)
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.rate_at(number)
        self._optimizer.step()
        self._numbers.project(self._x)
        return None

    def state(self) -> dict[str, Any]:
        """The numbers and the moments."""
        kept = self._optimizer.state.get(self._x, {})
        moments = {key: None if m is None else m.tolist() for key, m in kept.items()}
        return {"x": self._x.detach().tolist(), "moments": moments}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Be as another was."""
        import torch

        with torch.no_grad():
            self._x.copy_(torch.tensor(state["x"], dtype=torch.float64))
        for key, m in state["moments"].items():
            # Adam counts its steps in the default dtype.
            dtype = torch.float32 if key == "step" else torch.float64
            self._optimizer.state[self._x][key] = (
                None if m is None else torch.tensor(m, dtype=dtype)
            )


class FrankWolfe:
    """Steps towards the vertex that a gradient points to, in the convex hull of the experts.

        s = argmin_k <g, theta_k>      v := (1 - gamma) v + gamma e_s      gap = <g, theta - theta_s> >= 0

    The gradient of number k is <g, theta_k>, up to what all of one hull have in common. Each set of numbers that are
    called alike has a hull of its own: one for the whole model with `per: expert`, one for every tensor with
    `per: [expert, tensor]`. Where they do not sum to 1 at the start the rest is the base's, which is then a vertex
    like the experts. gamma is `rate` 2 / (t + 2), or found by halving it from 1 until the loss falls enough (Armijo).
    FW-Merging, arXiv:2503.12649.
    """

    def __init__(self, settings: OptimizerSettings, numbers: Mapping[str, FreeNumber]) -> None:
        if settings.step not in STEPS:
            raise UsageError(
                f"There is no step {settings.step!r} of frank_wolfe; there are {', '.join(STEPS)}."
            )
        self._settings = settings
        self._hulls = hulls(list(numbers))
        self._values = [number.start for number in numbers.values()]
        self._has_base = []
        for hull in self._hulls:
            total = math.fsum(self._values[i] for i in hull)
            self._check([list(numbers.values())[i] for i in hull], total)
            self._has_base.append(not math.isclose(total, 1, abs_tol=1e-9))

    def _check(self, numbers: list[FreeNumber], total: float) -> None:
        first = numbers[0]
        if any((number.low, number.high) != (0, 1) for number in numbers):
            raise UsageError(
                f"frank_wolfe mixes experts with weights in [0, 1], but {first.name!r} lies in "
                f"[{first.low:g}, {first.high:g}]; free it in [0, 1]."
            )
        if total > 1 + 1e-9:
            raise UsageError(
                f"frank_wolfe mixes experts with weights that sum to at most 1, but {first.name!r} and its like start "
                f"at {total:g} in all; start them lower."
            )

    def values(self) -> list[float]:
        """The weights as they are now."""
        return list(self._values)

    def step(self, number: int, slope: Slope) -> float | None:
        """One step in every hull; gives the sum of their gaps."""
        gradient = slope.gradient.tolist()
        towards = [0.0] * len(self._values)
        gap = 0.0
        for hull, has_base in zip(self._hulls, self._has_base, strict=True):
            best = min(hull, key=lambda i: gradient[i])
            here = math.fsum(self._values[i] * gradient[i] for i in hull)
            # The base's own weight has no number, and a gradient of 0.
            if not has_base or gradient[best] < 0:
                towards[best] = 1.0
                gap += here - gradient[best]
            else:
                gap += here
        if self._settings.step == "line_search":
            share = self._searched(slope, towards, gap)
        else:
            share = min(1.0, self._settings.rate * 2 / (number + 2))
        self._values = self._moved(towards, share)
        return gap

    def _moved(self, towards: list[float], share: float) -> list[float]:
        pairs = zip(self._values, towards, strict=True)
        return [min(max((1 - share) * v + share * t, 0.0), 1.0) for v, t in pairs]

    def _searched(self, slope: Slope, towards: list[float], gap: float) -> float:
        share = 1.0
        for _ in range(_HALVINGS):
            if slope.loss_at(self._moved(towards, share)) <= slope.loss - _SUFFICIENT * share * gap:
                return share
            share /= 2
        return 0.0

    def state(self) -> dict[str, Any]:
        """The weights."""
        return {"values": self._values}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Be as another was."""
        self._values = [float(value) for value in state["values"]]
