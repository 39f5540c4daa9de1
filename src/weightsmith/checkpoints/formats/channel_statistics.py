"""Statistics of channels as numbers of weights: every weight has that of the channel that it multiplies."""

from __future__ import annotations

from dataclasses import replace

from weightsmith.checkpoints.checkpoint import Checkpoint
from weightsmith.checkpoints.formats.statistics import Statistics
from weightsmith.errors import CompatibilityError
from weightsmith.tensors import ByChannel, LazyTensor

_INPUTS = ("input_magnitude", "input_square")


def by_weight(statistics: Statistics, checkpoint: Checkpoint) -> Statistics:
    """Statistics of `checkpoint`, those of input channels in the shapes of its weights; other kinds as they are.

    Inputs are the second axis of a weight, the first of one that is stored input first, and a norm's only one. Raises
    CompatibilityError where a weight has not as many.
    """
    if statistics.header.kind != "channels":
        return statistics
    tensors: dict[str, LazyTensor] = dict(statistics.checkpoint.tensors)
    for name in statistics.parts.keys() & checkpoint.tensors.keys():
        weight = checkpoint.tensors[name]
        axis = min(len(weight.shape) - 1, 0 if checkpoint.places[name].input_first else 1)
        for word in _INPUTS:
            key = f"{name}::{word}"
            stored = tensors.get(key)
            if stored is None:
                continue
            if axis < 0 or stored.shape != weight.shape[axis : axis + 1]:
                raise CompatibilityError(
                    f"{stored.location} has shape {list(stored.shape)}, which are not the input channels of a weight "
                    f"of shape {list(weight.shape)}: collect the statistics again."
                )
            tensors[key] = ByChannel(key, weight.shape, axis, stored)
    return replace(statistics, checkpoint=replace(statistics.checkpoint, tensors=tensors))
