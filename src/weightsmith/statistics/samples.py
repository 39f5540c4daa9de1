"""Items that a network is run on, and the batches that they make: items of one length together, never padded.

What padding does to a statistic need then not be taken out again, whatever the architecture; and no result depends on
which items came together, but for rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from weightsmith.errors import UsageError
from weightsmith.live import IGNORED, LiveModel

if TYPE_CHECKING:
    from torch import Tensor

Inputs = Mapping[str, "Tensor"]
# Logits that a batch may have.
_LOGITS = 1 << 24


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One item: inputs by the names of the network's arguments, without an axis of items, and its labels.

    `labels` [P] are what P predictions should be, IGNORED where nothing is predicted; None where there are none.
    Each is one of `classes`.
    """

    inputs: Inputs
    labels: Tensor | None = None
    classes: int = 0

    @property
    def form(self) -> tuple[object, ...]:
        """What items of one batch have in common."""
        inputs = tuple((name, tuple(t.shape), t.dtype) for name, t in sorted(self.inputs.items()))
        return (*inputs, None if self.labels is None else tuple(self.labels.shape))


class Predictions(Protocol):
    """From a batch of inputs to logits [B, P, C] for the labels [B, P] of its items."""

    def __call__(self, model: LiveModel, inputs: Inputs) -> Tensor:
        """The logits, with gradients where the network has them."""
        ...


@dataclass(frozen=True, eq=False)
class Samples:
    """The items of some data.

    `name` says which, `objective` whose gradients are taken, in words. `predictions` is None where the network predicts
    nothing, and `is_text` tells whether an item has several tokens.
    """

    name: str
    items: Sequence[Sample]
    objective: str = ""
    predictions: Predictions | None = None
    is_text: bool = False

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all inputs and labels."""
        state = hashlib.sha256(self.objective.encode())
        for sample in self.items:
            for name, tensor in sorted(sample.inputs.items()):
                state.update(f"{name};{tensor.dtype};{tuple(tensor.shape)};".encode())
                state.update(tensor.contiguous().numpy().data)
            if sample.labels is not None:
                state.update(sample.labels.contiguous().numpy().data)
        return state.hexdigest()

    @property
    def described(self) -> str:
        """The data in words, as headers have them."""
        return f"{self.name}, {len(self.items)} items, sha256:{self.digest[:16]}"


@dataclass(frozen=True, slots=True, eq=False)
class SampleBatch:
    """Items by their numbers: inputs [B, ...] and labels [B, P]."""

    items: tuple[int, ...]
    inputs: Inputs
    labels: Tensor | None


def batched(items: Sequence[Sample], most: int, device: str) -> Iterator[SampleBatch]:
    """Batches of at most `most` items of one form, in the order of their first items.

    There are fewer where all their logits would be too many.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, sample in enumerate(items):
        groups.setdefault(sample.form, []).append(number)
    for group in groups.values():
        first = items[group[0]]
        logits = 0 if first.labels is None else first.labels.numel() * first.classes
        count = max(1, min(most, _LOGITS // max(logits, 1)))
        for start in range(0, len(group), count):
            yield _stacked(items, tuple(group[start : start + count]), device)


def _stacked(items: Sequence[Sample], numbers: tuple[int, ...], device: str) -> SampleBatch:
    import torch

    chosen = [items[number] for number in numbers]
    inputs = {
        name: torch.stack([sample.inputs[name] for sample in chosen]).to(device)
        for name in chosen[0].inputs
    }
    labels = [sample.labels for sample in chosen if sample.labels is not None]
    return SampleBatch(numbers, inputs, torch.stack(labels).to(device) if labels else None)


def unpadded(batch: Inputs, labels: Tensor | None = None) -> list[Sample]:
    """The items of a batch of a network's inputs [B, ...], each cut to where its masks are 1.

    Masks go with `input_ids`, with `decoder_input_ids`, and with labels that are as long as what is read last. Raises
    UsageError for a mask with holes.
    """
    count = len(next(iter(batch.values())))
    return [
        _unpadded_row(
            {n: t[row] for n, t in batch.items()}, None if labels is None else labels[row]
        )
        for row in range(count)
    ]


def _unpadded_row(own: dict[str, Tensor], labels: Tensor | None) -> Sample:
    last = "decoder_attention_mask" if "decoder_input_ids" in own else "attention_mask"
    for mask, names in _MASKED.items():
        if mask not in own:
            continue
        kept = _kept(own.pop(mask), mask)
        if labels is not None and mask == last and labels.ndim:
            labels = labels[kept]
        own.update({name: own[name][kept] for name in names if name in own})
    return Sample(own, labels)


_MASKED = {
    "decoder_attention_mask": ("decoder_input_ids",),
    "attention_mask": ("input_ids", "token_type_ids"),
}


def _kept(mask: Tensor, name: str) -> slice:
    places = mask.nonzero()[:, 0]
    first, last = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
    if last - first != len(places):
        raise UsageError(f"The data has an {name} with holes; give items in one piece.")
    return slice(first, last)


def counted_labels(labels: Tensor | None) -> int:
    """How many predictions of an item, or of a batch, count."""
    return 0 if labels is None else int((labels != IGNORED).sum())
