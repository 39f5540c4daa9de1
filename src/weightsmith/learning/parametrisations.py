"""Free numbers as what an optimiser moves, with no bounds of its own, and back.

    clip       v = x, put back into [low, high] after every step (projected gradient)
    sigmoid    v = low + (high - low) / (1 + exp(-x))                 Expert Merging, arXiv:2509.25712
    softmax    v_k = exp(x_k) / sum_j exp(x_j) over the experts k, so that they sum to 1

What belongs together in a softmax, and to one convex hull, are the numbers of the models of one list that are called
alike: `models[0].parameters.weight[layer 3]` and `models[1].parameters.weight[layer 3]`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from weightsmith.errors import UsageError
from weightsmith.graph import FreeNumber

if TYPE_CHECKING:
    from torch import Tensor

PARAMETRISATIONS = ("clip", "sigmoid", "softmax")
_EXPERT = re.compile(r"\b(models|sources)\[\d+\](?=\.parameters\.[^\[]*(\[[^\]]*\])?$)")


def hulls(names: Sequence[str]) -> list[list[int]]:
    """Places of the numbers of several models that are called alike, in the order of the first of each.

    Raises UsageError for a number that is not of one model among others.
    """
    found: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        key, count = _EXPERT.subn(r"\1[*]", name)
        if not count:
            raise UsageError(
                f"The free number {name!r} is not that of one model among others; write `per: expert` (or per: "
                "[expert, layer], and so on) where numbers are to sum to 1."
            )
        found.setdefault(key, []).append(place)
    return list(found.values())


class Parametrisation:
    """Numbers v by what is optimised, x, both float64 [n]."""

    def __init__(self, name: str, numbers: Mapping[str, FreeNumber]) -> None:
        import torch

        if name not in PARAMETRISATIONS:
            raise UsageError(
                f"There is no parametrisation {name!r}; there are {', '.join(PARAMETRISATIONS)}."
            )
        self.name = name
        self._low = torch.tensor([n.low for n in numbers.values()], dtype=torch.float64)
        self._high = torch.tensor([n.high for n in numbers.values()], dtype=torch.float64)
        self._groups = hulls(list(numbers)) if name == "softmax" else []
        self._check(numbers)

    def _check(self, numbers: Mapping[str, FreeNumber]) -> None:
        for number in numbers.values():
            if self.name == "sigmoid" and not number.low < number.start < number.high:
                raise UsageError(
                    f"The free number {number.name!r} starts at a bound, {number.start:g}, from where a sigmoid cannot "
                    "move; start it between its bounds."
                )
            if self.name == "softmax" and not (number.low <= 0 and number.high >= 1):
                raise UsageError(
                    f"The free number {number.name!r} lies in [{number.low:g}, {number.high:g}], but a softmax gives "
                    "all of [0, 1]; free it there."
                )
            if self.name == "softmax" and number.start <= 0:
                raise UsageError(
                    f"The free number {number.name!r} starts at {number.start:g}, from where a softmax cannot move; "
                    "start it above 0."
                )

    def begin(self, values: Sequence[float]) -> Tensor:
        """What values come from; of a softmax only their ratios matter."""
        import torch

        v = torch.tensor(values, dtype=torch.float64)
        if self.name == "sigmoid":
            share = (v - self._low) / (self._high - self._low)
            return torch.log(share) - torch.log1p(-share)
        return torch.log(v) if self.name == "softmax" else v

    def values(self, x: Tensor) -> Tensor:
        """The numbers, with gradients where x has them."""
        import torch

        if self.name == "sigmoid":
            return self._low + (self._high - self._low) * torch.sigmoid(x)
        if self.name == "softmax":
            found = torch.empty_like(x)
            for group in self._groups:
                found[group] = torch.softmax(x[group], 0)
            return found
        return x

    def within(self, values: Tensor) -> list[float]:
        """Numbers as the recipe takes them: rounding may have led a hair out of their bounds."""
        import torch

        return [float(v) for v in torch.minimum(torch.maximum(values, self._low), self._high)]

    def project(self, x: Tensor) -> None:
        """Put what was moved back to where numbers may be."""
        import torch

        if self.name == "clip":
            with torch.no_grad():
                x.copy_(torch.minimum(torch.maximum(x, self._low), self._high))
