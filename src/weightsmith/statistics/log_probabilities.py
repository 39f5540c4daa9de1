"""Log-probabilities of classes, of which one is taken for each prediction; what goes back is one array of their size.

Logits of a language model are its largest activations: as large as its head for a text of as many tokens as it has
features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


class LogProbabilities:
    """log_softmax of logits [P, C], in float32."""

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits
        self.values = logits.detach().float().log_softmax(-1)

    def of_classes(self, classes: torch.Tensor) -> torch.Tensor:
        """Those of one class for each prediction, [P], with gradients where the logits have them."""
        found: torch.Tensor = _OfClasses.apply(self._logits, self.values, classes)  # type: ignore[no-untyped-call]
        return found


class _OfClasses(torch.autograd.Function):
    """values[p, classes[p]], whose gradient at the logits is (1 at that class) - exp(values)."""

    @staticmethod
    def forward(ctx: Any, logits: Any, values: Any, classes: Any) -> Any:
        ctx.save_for_backward(values, classes)
        ctx.dtype = logits.dtype
        return values.gather(1, classes[:, None])[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> Any:
        values, classes = ctx.saved_tensors
        found = values.exp().mul_(-gradient[:, None])
        found[torch.arange(len(classes), device=classes.device), classes] += gradient
        return found.to(ctx.dtype), None, None
