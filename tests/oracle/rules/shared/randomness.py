"""The documented generators: of random masks, and of the ranks that decide between equal magnitudes of a model.

Element i of a stream is a function of (key, i):

    x = lo(i) + key0;                        x ^= x >> 17; x *= 0xED5AD4BB; x ^= x >> 11
    x += key1 + hi(i) * 0x9E3779B9;          x *= 0xAC4C1B51; x ^= x >> 15; x *= 0x31848BAB; x ^= x >> 14
    uniform = (x >> 8) * 2^-24               all modulo 2^32

The key is the BLAKE2b digest of 8 bytes of the words "weightsmith random stream 1", seed, model and tensor, joined by
NUL, read as two little-endian words of 32 bits. The rank of element i of a tensor is, modulo 2^64,

    x = key + i;   x = (x ^ x >> 30) 0xBF58476D1CE4E5B9;   x = (x ^ x >> 27) 0x94D049BB133111EB;   (x ^ x >> 31) >> 1

with the BLAKE2b digest of 8 bytes of "weightsmith equal magnitudes 1", NUL and the tensor's name as its key.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

_WORD = np.uint64(0xFFFFFFFF)


def uniform(seed: int, model: str, tensor: str, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers in [0, 1) of one tensor of one model."""
    text = f"weightsmith random stream 1\0{seed}\0{model}\0{tensor}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    first, second = (np.uint64(int.from_bytes(digest[k : k + 4], "little")) for k in (0, 4))
    index = np.arange(math.prod(shape), dtype=np.uint64)
    low, high = index & _WORD, index >> np.uint64(32)

    def mixed(x: np.ndarray, shift: int) -> np.ndarray:
        return x ^ (x >> np.uint64(shift))

    def times(x: np.ndarray, factor: int) -> np.ndarray:
        return (x * np.uint64(factor)) & _WORD

    x = (low + first) & _WORD
    x = mixed(times(mixed(x, 17), 0xED5AD4BB), 11)
    x = (x + second + times(high, 0x9E3779B9)) & _WORD
    x = times(mixed(times(x, 0xAC4C1B51), 15), 0x31848BAB)
    return ((mixed(x, 14) >> np.uint64(8)).astype(np.float64) * 2.0**-24).reshape(shape)


def ranks(tensor: str, size: int) -> np.ndarray:
    """The ranks of the elements of a tensor, by flat index."""
    text = b"weightsmith equal magnitudes 1\0" + tensor.encode()
    key = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    with np.errstate(over="ignore"):
        x = np.arange(size, dtype=np.uint64) + np.uint64(key)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) >> np.uint64(1)
