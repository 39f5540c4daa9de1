"""A model that runs, whatever stands behind it: one network, or several that answer as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

# What a network is given, under the names of transformers' arguments: `input_ids` [B, T] with `attention_mask` [B, T],
# `decoder_input_ids` [B, T], `pixel_values` [B, C, H, W]; a plain network takes `inputs` [B, ...].
Batch = Mapping[str, "Tensor"]
IGNORED = -100


class RunningModel(Protocol):
    """What evaluation, statistics and objectives ask of a model.

    Letters: B items, T tokens, V tokens of the vocabulary, C classes, D features.
    """

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def device(self) -> str:
        """Where inputs must be."""
        ...

    def logits(self, batch: Batch) -> Tensor:
        """Of every token [B, T, V] or item [B, C]."""
        ...

    def features(self, batch: Batch) -> Tensor:
        """The last hidden states, [B, T, D] or [B, D]."""
        ...

    def loss(self, batch: Batch, labels: Tensor) -> Tensor:
        """The mean cross-entropy of `labels`, [], in nats.

        Labels are the tokens themselves [B, T] for causal models (each is predicted from those before it), the tokens
        that belong there [B, T] for masked and sequence-to-sequence models, classes [B] (or [B, T]) for classifiers.
        Those that are IGNORED do not count.
        """
        ...

    def generate(self, batch: Batch, *, most: int, ends: Sequence[int] = ()) -> list[list[int]]:
        """The likeliest tokens after each row, one by one, at most `most`, without the one of `ends` that ends them.

        Rows have one length; padding would change what some networks compute.
        """
        ...
