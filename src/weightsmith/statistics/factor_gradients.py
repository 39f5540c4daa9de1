"""Gradients of what an adapter stores, from those of the weights that it changes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from weightsmith.adapters import Adapter, Form, Update, fitted_updates, is_embedding, open_adapter
from weightsmith.checkpoints import Checkpoint, open_checkpoint
from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.live import WeightGradient, Whole
from weightsmith.tensors import LazyTensor, read_array, shown

if TYPE_CHECKING:
    from torch import Tensor

_FORMS = (Form.LORA, Form.FULL, Form.REPLACED, Form.ROWS)


@dataclass(frozen=True, eq=False)
class AdapterGradients:
    """The gradients of an adapter's tensors, by their names in its file, for gradients G of a base's weights W.

        W + c s B A        dB = c s G A^T      dA = c s B^T G        embeddings and turned matrices: with G^T
        W + c (T - W)      dT = c G            rows of it: c G of these rows; T may have factors beside it
        W + c s T          dT = c s G

    c is the strength that the adapter is applied with, s its scale. Stacks of experts have factors for each.
    """

    name: str
    base: Checkpoint
    tensors: Mapping[str, LazyTensor]
    _updates: Mapping[str, Update] = field(repr=False)
    _strength: float

    @property
    def changed(self) -> Collection[str]:
        """The stored names of the weights that the adapter changes."""
        return self._updates.keys()

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        """The adapter's tensors, in float32."""
        import torch

        return {n: torch.from_numpy(read_array(t)).float() for n, t in self.tensors.items()}

    def of(self, gradients: Mapping[str, WeightGradient]) -> dict[str, WeightGradient]:
        """Those that follow from gradients of weights, by stored names, some of which may be of no matter here."""
        found: dict[str, WeightGradient] = {}
        for name, gradient in gradients.items():
            update = self._updates.get(name)
            if update is not None:
                own = self._of_update(update, self._strength * gradient.dense().float())
                found |= {n: WeightGradient(tuple(t.shape), [Whole(t)]) for n, t in own.items()}
        return found

    def _of_update(self, update: Update, gradient: Tensor) -> dict[str, Tensor]:
        if update.form is not Form.LORA:
            (stored,) = update.sources
            own = gradient if update.rows is None else gradient[list(update.rows)]
            return {stored.name: (own * update.scale).reshape(stored.shape)}
        found = self._of_factors(update, gradient)
        if update.replacement is not None:
            found[update.replacement.name] = gradient.reshape(update.replacement.shape)
        return found

    def _of_factors(self, update: Update, gradient: Tensor) -> dict[str, Tensor]:
        if update.input_first or is_embedding(update):
            gradient = gradient.transpose(-1, -2)
        down, up = _factors(update)
        a, b = (self.weights[t.name].to(gradient.device) for t in (down, up))
        scaled = update.scale * gradient
        if len(gradient.shape) == 3 and len(down.shape) == 2:
            experts, outputs, inputs = gradient.shape
            a, b = a.reshape(experts, -1, inputs), b.reshape(outputs, -1, experts).permute(2, 0, 1)
            of_a, of_b = b.mT @ scaled, (scaled @ a.mT).permute(1, 2, 0)
        else:
            scaled = scaled.reshape(b.shape[0], -1)
            of_a, of_b = b.flatten(1).T @ scaled, scaled @ a.flatten(1).T
        return {down.name: of_a.reshape(down.shape), up.name: of_b.reshape(up.shape)}


def adapter_gradients(model: Checkpoint) -> AdapterGradients:
    """Those of the one adapter that a model is opened with.

    Raises UsageError for a model with none or several, CompatibilityError for an adapter of another form than LoRA and
    tensors that are stored whole.
    """
    if len(model.attached) != 1:
        raise UsageError(
            f"{model.identity} has {len(model.attached)} adapters, but gradients of an adapter's own tensors are of "
            "one; give BASE+ADAPTER."
        )
    (attached,) = model.attached
    base, adapter = open_checkpoint(model.base_source), open_adapter(attached.path)
    updates = fitted_updates(base, adapter)
    sources = [source for update in updates.values() for source in update.stored]
    counts = Counter(name for u in updates.values() for name in {s.name for s in u.stored})
    for name, update in updates.items():
        if not _is_known(update) or any(counts[source.name] > 1 for source in update.sources):
            raise _unknown(adapter, name, update)
    return AdapterGradients(
        attached.name, base, {t.name: t for t in sources}, updates, attached.strength
    )


def _is_known(update: Update) -> bool:
    if update.form not in _FORMS or update.magnitude is not None:
        return False
    if update.form is not Form.LORA:
        return len(update.sources) == 1
    factors = _factors(update)
    if len(factors) != 2 or update.shape is None:
        return False
    down, up = factors
    experts = update.shape[0] if len(update.shape) == 3 and len(down.shape) == 2 else 1
    numel = math.prod(up.shape[:1]) * math.prod(down.shape[1:]) * experts
    return down.shape[0] == experts * (update.rank or 0) and numel == math.prod(update.shape)


def _factors(update: Update) -> tuple[LazyTensor, ...]:
    """What is multiplied: A and B."""
    return tuple(source for source in update.sources if source is not update.replacement)


def _unknown(adapter: Adapter, name: str, update: Update) -> CompatibilityError:
    return CompatibilityError(
        f"Adapter {shown(adapter.source)} changes {shown(name)} by more than two factors of its own or one whole "
        f"tensor ({update.form.value}), so gradients of what it stores cannot be told; collect those of the weights."
    )
