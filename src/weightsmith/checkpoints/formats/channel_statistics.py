"""Statistics of channels, and masks of rows, as numbers of weights: every weight has that of what it lies in."""

from __future__ import annotations

from dataclasses import replace

from weightsmith.checkpoints.checkpoint import Checkpoint
from weightsmith.checkpoints.formats.statistics import Statistics
from weightsmith.errors import CompatibilityError
from weightsmith.tensors import Broadcast, ByChannel, LazyTensor, fits_by_broadcasting

_INPUTS = ("input_magnitude", "input_square")


def by_weight(statistics: Statistics, checkpoint: Checkpoint) -> Statistics:
    """Statistics of `checkpoint`, those of input channels and masks in its weights' shapes; other kinds as they are.

    Inputs are the second axis of a weight, the first of one that is stored input first, and a norm's only one. Raises
    CompatibilityError where a weight has not as many, and for a mask that does not broadcast to its weight.
    """
    if statistics.header.kind == "mask":
        return _masks_by_weight(statistics, checkpoint)
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


def _masks_by_weight(statistics: Statistics, checkpoint: Checkpoint) -> Statistics:
    tensors: dict[str, LazyTensor] = {}
    for name, stored in statistics.checkpoint.tensors.items():
        weight = checkpoint.tensors.get(name)
        if weight is None or stored.shape == weight.shape:
            tensors[name] = stored
            continue
        if not fits_by_broadcasting(weight.shape, stored.shape):
            raise CompatibilityError(
                f"{stored.location} is a mask of shape {list(stored.shape)}, which does not broadcast to a weight of "
                f"shape {list(weight.shape)}: give it a number for each weight, row or column."
            )
        tensors[name] = Broadcast(name, weight.shape, stored)
    return replace(statistics, checkpoint=replace(statistics.checkpoint, tensors=tensors))
