"""Exact codecs: `same`, `lossless` against a base, and `whole` against nothing.

The base has the target's dtype; one with other rows is cut or continued with zeros.
Floats are mapped to integers in the order of their values, so that close numbers are close integers:

    u = bits ^ (all ones if the sign bit is set, else the sign bit)          its own inverse up to the test
    d = u(target) - u(base) mod 2^k, taken from [-2^(k-1), 2^(k-1))          integers are subtracted as they are
    z = (d << 1) ^ (d >> (k - 1))                                            small for small d of either sign

and z is stored in byte planes. NaN payloads, -0 and infinities are bits like any others. `whole` is the same against a
base of zeros, where z is the word turned left by one bit: exponent in one plane, fraction and sign in the others.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.deltas.codecs.codec import Encoded, StoredChange
from weightsmith.deltas.codecs.coded_streams import BlockStream, joined, stored_sizes
from weightsmith.deltas.codecs.held import BLOCK, BlockTensor, Prefix, block_sizes, fitted
from weightsmith.deltas.codecs.planes import joined_planes, longest_piece, plane_pieces
from weightsmith.tensors import WORDS, DType, LazyTensor, in_order, widen

Words = NDArray[Any]
SAME, LOSSLESS, WHOLE = "same", "lossless", "whole"
# Words mapped at a time: they stay in the cache between the steps.
_STEP = 1 << 15


def encode_lossless(base: LazyTensor | None, target: LazyTensor, threads: int = 1) -> Encoded:
    """The target against its base; `whole` where there is no base that fits, `same` where nothing differs.

    Both are read once, a block of 2^20 elements per thread at a time. The bytes do not depend on `threads`.
    """
    known = None if base is None else _counterpart(base, target.name, target.dtype, target.shape)
    parts = difference_parts(known, target, threads)
    is_alike = base is not None and (base.dtype, base.shape) == (target.dtype, target.shape)
    if is_alike and not parts["planes"].size:
        return Encoded(SAME)
    return Encoded(WHOLE if known is None else LOSSLESS, {}, parts)


def difference_parts(
    known: Known | None, target: LazyTensor, threads: int
) -> dict[str, NDArray[Any]]:
    """The parts that hold the difference of a target from what is known of it, or from zeros."""
    numbers = range(len(block_sizes(target.numel)))
    encode = functools.partial(_encoded_block, known, target)
    blocks = list(in_order(encode, numbers, min(threads, len(numbers))))
    stream, table = joined(blocks, _lane(target.dtype)[0])
    return {"planes": stream, "table": table}


def decode_same(stored: StoredChange) -> LazyTensor:
    """The base itself. Raises CheckpointError if the base is missing or of another form."""
    base = stored.base
    if base is None or (base.dtype, base.shape) != (stored.dtype, stored.shape):
        raise stored.unfit()
    return base if base.name == stored.name else Prefix(stored.name, stored.shape, base)


def decode_lossless(stored: StoredChange) -> LazyTensor:
    """The base with the differences added. Raises CheckpointError if base or parts do not fit."""
    base = None
    if stored.base is not None:
        base = _counterpart(stored.base, stored.name, stored.dtype, stored.shape)
    if base is None:
        raise stored.unfit()
    return with_difference(stored, base)


def decode_whole(stored: StoredChange) -> LazyTensor:
    """The tensor without a base. Raises CheckpointError if the parts do not fit."""
    return with_difference(stored, None)


@dataclass(frozen=True, slots=True)
class Known:
    """What a target is compared with, and whether it was computed."""

    tensor: LazyTensor
    is_computed: bool = False

    def block(self, number: int) -> Words:
        """A block; where it was computed, NaN counts as 0, for it may have any payload."""
        words = _block(self.tensor, number)
        if self.is_computed:
            words[np.isnan(widen(words, self.tensor.dtype))] = 0
        return words


def _counterpart(base: LazyTensor, name: str, dtype: DType, shape: tuple[int, ...]) -> Known | None:
    """The base with a target's rows; None where it has another dtype or other axes."""
    found = fitted(base, name, shape) if base.dtype is dtype else None
    return None if found is None else Known(found)


def with_difference(stored: StoredChange, base: Known | None) -> LazyTensor:
    """What is known, or zeros, with the stored difference added. Raises CheckpointError if the parts do not fit."""
    size, lanes = _lane(stored.dtype)
    sizes = stored_sizes(stored) * lanes
    limits = np.repeat(longest_piece(sizes)[:, None], size, axis=1)
    stream = BlockStream(stored, ("planes", "table"), (0, size), len(sizes), lambda _table: limits)

    def decode(number: int) -> Words:
        words = joined_planes(stream.block(number), int(sizes[number]), size)
        if words is None:
            raise stored.damaged(f"cannot be decompressed in block {number}")
        known = None if base is None else base.block(number)
        _add(words, known, stored.dtype)
        return words

    sources = (*stored.parts.values(), *(() if base is None else (base.tensor,)))
    return BlockTensor(stored.name, stored.dtype, stored.shape, sources, decode)


def _encoded_block(base: Known | None, target: LazyTensor, number: int) -> list[bytes]:
    words = _block(target, number)
    known = None if base is None else base.block(number)
    if known is not None and np.array_equal(words, known):
        return [b""] * words.itemsize
    _subtract(words, known, target.dtype)
    return plane_pieces(words)


def _block(tensor: LazyTensor, number: int) -> Words:
    start = number * BLOCK
    stop = min(start + BLOCK, tensor.numel)
    size, lanes = _lane(tensor.dtype)
    words = np.empty((stop - start) * lanes, WORDS[size])
    tensor.read_into(start, stop, words.data.cast("B"))
    return words


def _lane(dtype: DType) -> tuple[int, int]:
    """Bytes of a word and words of an element: a complex number is two floats."""
    lanes = 2 if dtype is DType.COMPLEX64 else 1
    return dtype.itemsize // lanes, lanes


def _subtract(words: Words, base: Words | None, dtype: DType) -> None:
    """z of `words` against `base`, in place."""
    for low in range(0, words.size, _STEP):
        part = words[low : low + _STEP]
        known = _ordered_base(base, low, part, dtype)
        _to_ordered(part, dtype)
        np.subtract(part, known, out=part)
        sign = _signs(part)
        np.left_shift(part, 1, out=part)
        np.bitwise_xor(part, sign, out=part)


def _add(words: Words, base: Words | None, dtype: DType) -> None:
    """The target of which `words` are z against `base`, in place."""
    for low in range(0, words.size, _STEP):
        part = words[low : low + _STEP]
        known = _ordered_base(base, low, part, dtype)
        sign = np.bitwise_and(part, 1)
        np.negative(sign, out=sign)
        np.right_shift(part, 1, out=part)
        np.bitwise_xor(part, sign, out=part)
        np.add(part, known, out=part)
        _from_ordered(part, dtype)


def _ordered_base(base: Words | None, low: int, part: Words, dtype: DType) -> Words:
    if base is None:
        zero = np.zeros(1, part.dtype)
        _to_ordered(zero, dtype)
        return zero
    known = base[low : low + _STEP]
    _to_ordered(known, dtype)
    return known


def _to_ordered(words: Words, dtype: DType) -> None:
    if dtype.is_float or dtype is DType.COMPLEX64:
        mask = _signs(words)
        np.bitwise_or(mask, _top(words), out=mask)
        np.bitwise_xor(words, mask, out=words)


def _from_ordered(words: Words, dtype: DType) -> None:
    if dtype.is_float or dtype is DType.COMPLEX64:
        mask = _signs(words)
        np.invert(mask, out=mask)
        np.bitwise_or(mask, _top(words), out=mask)
        np.bitwise_xor(words, mask, out=words)


def _signs(words: Words) -> Words:
    """All ones where the top bit is set, else 0."""
    signed = words.view(f"<i{words.itemsize}")
    signs: Words = np.right_shift(signed, words.itemsize * 8 - 1).view(words.dtype)
    return signs


def _top(words: Words) -> Any:
    return words.dtype.type(1 << (words.itemsize * 8 - 1))
