"""What was measured on the experts of a family, for methods that weigh by it: drawn, with the gaps that files have."""

from __future__ import annotations

import math
import zlib
from dataclasses import replace

import numpy as np

from .families import Family, Place

SAMPLES = 3
SILENT = 0.1
# What a statistic is like in size: Fishers lie about the floors of papers, Adam's moments far below any.
_SIZES = {"fisher": 1e-6, "adam": 1e-12, "gradients:absolute": 1e-3}
_LOOKED_UP = ("embedding", "position_embedding", "head")


def measured(family: Family, kind: str) -> Family:
    """The family with statistics of a kind that were drawn for each expert.

    fisher, adam: mean squares, a tenth of which are 0 for one expert and another tenth for all. gradients: one array
    per sample, all 0 for another tenth. repair: any numbers. mask: tenths in [0, 1]. gram: X^T X of fewer samples
    than inputs, the first input being dead, for every matrix that is not looked up and no router; experts of a stack
    share theirs in every other layer. gradients:absolute: mean magnitudes, like mean squares. channels:WORD: one
    number for each input, of everything but stacks, scalars and what is looked up, given to each of its weights; the
    first input is dead. The last norm has no statistics of any kind.
    """
    rng = np.random.default_rng([family.seed, zlib.crc32(kind.encode())])
    known = [p for p in family.places.values() if p.role != "norm" or p.layer is not None]
    silent = {p.name: rng.random(p.shape) < SILENT for p in known}
    found = []
    for _ in family.experts:
        mine: dict[str, np.ndarray | list[np.ndarray]] = {}
        for place in known:
            heard = ~silent[place.name]
            if kind == "gradients":
                samples = rng.normal(size=(SAMPLES, *place.shape))
                mine[place.name] = [_rounded(sample * heard) for sample in samples]
            elif kind.startswith("channels"):
                if place.shape and len(place.shape) != 3 and place.role not in _LOOKED_UP:
                    mine[place.name] = _by_channel(rng, place)
            elif kind == "mask":
                mine[place.name] = _rounded(rng.random(place.shape).round(1) * heard)
            elif kind == "repair":
                mine[place.name] = _rounded(rng.normal(size=place.shape))
            elif kind != "gram":
                heard &= rng.random(place.shape) >= SILENT
                drawn = rng.exponential(size=place.shape) ** 2 * _SIZES[kind]
                mine[place.name] = _rounded(drawn * heard)
            elif len(place.shape) > 1 and place.role not in (*_LOOKED_UP, "router"):
                mine[place.name] = _gram(rng, place)
        found.append(mine)
    return replace(family, statistics=found)


def _by_channel(rng: np.random.Generator, place: Place) -> np.ndarray:
    """A number for each input of a weight, at all of its elements that multiply it."""
    axis = channel_axis(place)
    drawn = rng.exponential(size=place.shape[axis]) ** 2
    drawn[0] = 0.0
    shape = [1] * len(place.shape)
    shape[axis] = -1
    return np.array(np.broadcast_to(_rounded(drawn).reshape(shape), place.shape))


def channel_axis(place: Place) -> int:
    """The axis of a weight's inputs."""
    return 0 if place.input_first or len(place.shape) == 1 else 1


def _gram(rng: np.random.Generator, place: Place) -> np.ndarray:
    """X^T X of the inputs of y = W x: the last axis of W, all but the first of a kernel's, or a turned one's first."""
    width = math.prod(place.shape[1:]) if len(place.shape) == 4 else place.shape[-1]
    if place.input_first:
        width = place.shape[0]
    is_shared = place.layer is not None and place.layer % 2 == 1
    stack = place.shape[:1] if len(place.shape) == 3 and not is_shared else ()
    samples = np.round(rng.normal(size=(*stack, width // 2 + 1, width)) * 64) / 64
    samples[..., 0] = 0.0
    return samples.swapaxes(-1, -2) @ samples


def _rounded(x: np.ndarray) -> np.ndarray:
    """Numbers that float32 has."""
    return np.asarray(x, np.float32).astype(np.float64)
