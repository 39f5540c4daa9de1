"""Order statistics of magnitudes, over one tensor or over the whole model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from .randomness import ranks


def count(share: float, size: int) -> int:
    """floor(share x size), the share being the decimal number that it is written as."""
    return math.floor(Fraction(repr(float(share))) * size)


def largest(x: np.ndarray, k: int) -> np.ndarray:
    """Mask of the k elements of largest magnitude; of equals the first ones."""
    flat = np.abs(x).ravel()
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[:k]] = True
    return mask.reshape(x.shape)


def largest_of_model(arrays: Mapping[str, np.ndarray], k: int) -> dict[str, np.ndarray]:
    """Masks of the k elements of largest magnitude of a model; of equals those of the lowest documented rank."""
    flat = np.abs(joined(list(arrays.values())))
    order = np.concatenate([ranks(name, x.size) for name, x in arrays.items()])
    mask = np.zeros(flat.size, bool)
    mask[np.lexsort((order, -flat))[:k]] = True
    return dict(zip(arrays, parted(mask, list(arrays.values())), strict=True))


def largest_by_share(
    arrays: Mapping[str, np.ndarray], shares: Mapping[str, float], sizes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Masks of the largest magnitudes of a model, with a threshold of its own for each share that tensors are given.

    `sizes` are the numbers of elements that the share counts. Zeros are in no mask but that of share 1.
    """
    found: dict[str, np.ndarray] = {}
    for share in dict.fromkeys(shares.values()):
        group = {n: x for n, x in arrays.items() if shares[n] == share}
        masks = largest_of_model(group, count(share, sum(sizes[n] for n in group)))
        found |= {n: m & (arrays[n] != 0) | (share >= 1.0) for n, m in masks.items()}
    return found


def joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """All elements of a model as one vector."""
    return np.concatenate([np.ravel(a) for a in arrays])


def parted(flat: np.ndarray, like: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The vector of a model as tensors again."""
    cuts = np.cumsum([a.size for a in like])[:-1]
    return [x.reshape(a.shape) for x, a in zip(np.split(flat, cuts), like, strict=True)]
