"""The numbers that torch's generator on a processor gives for a seed, which adapters of random parts go by.

It is the Mersenne Twister of Matsumoto & Nishimura (1998), begun with the low 32 bits of the seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LOW = 0xFFFF_FFFF
# Permutations of more are drawn by torch in another order, which has to be followed to its end.
LONGEST_PERMUTATION = _LOW // 20 - 1
# A float32 takes the low 24 bits of a number.
_DIGITS = 24


@dataclass(frozen=True, slots=True)
class TorchGenerator:
    """As `torch.Generator().manual_seed(seed)`."""

    seed: int
    _bits: np.random.MT19937 = field(default_factory=np.random.MT19937, repr=False, compare=False)

    def __post_init__(self) -> None:
        begun: Any = np.random.RandomState(self.seed & _LOW).get_state(legacy=False)
        self._bits.state = begun

    def uniform(self, shape: tuple[int, ...], bound: float) -> NDArray[np.float32]:
        """As `torch.empty(shape).uniform_(-bound, bound)`, product and sum rounded once as processors with FMA do."""
        low, high = np.float32(-bound), np.float32(bound)
        drawn = self._bits.random_raw(math.prod(shape)) & ((1 << _DIGITS) - 1)
        share = drawn.astype(np.float64) * 2.0**-_DIGITS
        found = share * np.float64(high - low) + np.float64(low)
        rounded: NDArray[np.float32] = found.astype(np.float32).reshape(shape)
        return rounded

    def first_of_permutation(self, length: int, count: int) -> NDArray[np.int64]:
        """As `torch.randperm(length)[:count]`, for lengths up to `LONGEST_PERMUTATION`."""
        moved: dict[int, int] = {}
        found = []
        for i, drawn in enumerate(self._bits.random_raw(count).tolist()):
            other = i + drawn % (length - i)
            found.append(moved.get(other, other))
            moved[other] = moved.get(i, i)
        return np.array(found, np.int64)
