"""Which of equal magnitudes a threshold over the whole model takes, without favouring a tensor or a part of it.

In bfloat16 many elements share the magnitude at a threshold, and taking them in the order of tensors gives them all to
the first. So every element has a rank that depends on the name of its
tensor and on its flat index i alone, and those of lowest rank are taken:

    x = K + i                           K: the first 8 bytes of BLAKE2b of the tensor's name, little-endian
    x ^= x >> 30;  x *= 0xBF58476D1CE4E5B9
    x ^= x >> 27;  x *= 0x94D049BB133111EB
    x ^= x >> 31;  rank = x >> 1        (the finaliser of SplitMix64; Steele, Lea and Flood, OOPSLA 2014)

with arithmetic modulo 2^64. Elements of equal rank, which are not to be expected, are taken in the order of tensors by
name and of their flat index. The same elements are taken however tensors are split over files and ordered in them.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.graph.passes import CollectPart, Equal

HIGHEST_RANK = (1 << 63) - 1
_SIGMAS = 8.0
# Of one tile; a bracket rarely holds so many of all tiles together, and every tile has room for them.
_COLLECT_LIMIT = 1 << 16
# A million ranks at once would take tens of megabytes on the way.
_AT_ONCE = 1 << 16

Ranks = Callable[[NDArray[np.int64]], NDArray[np.int64]]


class EqualMagnitudes(enum.Enum):
    """In which order equal magnitudes are taken over the model: by rank, by index, or by index in the files' order."""

    HASH = "hash"
    INDEX = "index"
    FILE = "file"


def rank_key(tensor: str) -> int:
    """K of a tensor, as a signed 64-bit integer."""
    text = f"weightsmith equal magnitudes 1\0{tensor}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


def ranks_of(key: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ranks of the elements of one tensor at flat indices."""
    with np.errstate(over="ignore"):
        x = indices.astype(np.uint64) + np.uint64(key & ((1 << 64) - 1))
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    found: NDArray[np.int64] = (x >> np.uint64(1)).astype(np.int64)
    return found


def model_ranks(tensors: Sequence[tuple[str, int]]) -> Ranks:
    """Ranks by index into the elements of several tensors, one after the other, given by name and size."""
    offsets = np.cumsum([0, *(size for _, size in tensors)])
    keys = [rank_key(name) for name, _ in tensors]

    def some(indices: NDArray[np.int64]) -> NDArray[np.int64]:
        of = np.searchsorted(offsets, indices, side="right") - 1
        found = np.empty(len(indices), dtype=np.int64)
        for tensor in np.unique(of):
            own = of == tensor
            found[own] = ranks_of(keys[tensor], indices[own] - offsets[tensor])
        return found

    def ranks(indices: NDArray[np.int64]) -> NDArray[np.int64]:
        found = np.empty(len(indices), dtype=np.int64)
        for start in range(0, len(indices), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            found[part] = some(indices[part])
        return found

    return ranks


def lowest(wanted: int, ranks: NDArray[np.int64], indices: NDArray[np.int64]) -> tuple[int, int]:
    """Rank and index of the element that is the `wanted`-th in the order of ranks, equal ones by index."""
    rank = np.partition(ranks, wanted - 1)[wanted - 1]
    equal = np.sort(indices[ranks == rank])
    return int(rank), int(equal[wanted - 1 - np.count_nonzero(ranks < rank)])


def around(key: int, share: float, half: float, low: int = 0, high: int = HIGHEST_RANK) -> Equal:
    """Ask for the elements of a magnitude whose ranks lie `half` to both sides of a share of [low, high]."""
    span = high - low
    first = low + int(span * min(1.0, max(0.0, share - half)))
    last = low + math.ceil(span * min(1.0, share + half))
    # A float of so many bits may be rounded beyond the end.
    return Equal(key, min(first, high), min(last, high), _COLLECT_LIMIT)


class RankSearch:
    """The `wanted`-th lowest rank of `count` elements of one magnitude that are too many to be held.

    Ranks are uniform, so a bracket around the place where it is expected holds it, and little else.
    """

    def __init__(self, key: int, wanted: int, count: int) -> None:
        self.result: tuple[int, int] | None = (
            (HIGHEST_RANK, HIGHEST_RANK) if wanted >= count else None
        )
        self._key, self._wanted, self._sigmas = key, wanted, _SIGMAS
        # Invariant: the rank lies in [low, high], where `inside` are, and `below` are lower.
        self._low, self._high, self._below, self._inside = 0, HIGHEST_RANK, 0, count

    def request(self) -> Equal:
        """What to ask of every tile in the next round."""
        share = (self._wanted - self._below) / self._inside
        spread = math.sqrt(self._inside * share * (1.0 - share)) + 1.0
        half = self._sigmas * spread / self._inside
        return around(self._key, share, half, self._low, self._high)

    def absorb(self, asked: Equal, parts: Sequence[CollectPart]) -> None:
        """Take the answers of one round."""
        below, inside = (
            sum(counts) for counts in zip(*((p.above, p.inside) for p in parts), strict=True)
        )
        if self._wanted <= below:
            self._high, self._inside = asked.low - 1, below - self._below
            return
        if self._wanted > below + inside:
            self._inside -= below + inside - self._below
            self._low, self._below = asked.high + 1, below + inside
            return
        self._low, self._high, self._below, self._inside = asked.low, asked.high, below, inside
        held: list[Any] = [p for p in parts if len(p.keys)]
        if sum(len(p.keys) for p in held) == inside:
            ranks = np.concatenate([p.keys for p in held]).astype(np.int64)
            indices = np.concatenate([p.indices for p in held])
            self.result = lowest(self._wanted - below, ranks, indices)
        else:
            self._sigmas /= 2.0  # so that the next bracket is a part of this one
