"""Pieces depend on the shape alone; digests notice every change and nothing else."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.tensors.digest_pieces import piece_elements, pieces
from weightsmith.tensors.digests import (
    checkpoint_digest,
    digest_tensor,
    piece_digest,
    tensor_digest,
)
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.stored import StoredTensor

SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 257, 4096, 2**18 - 1, 2**18, 2**18 + 1]), max_size=3)


@given(SHAPES)
def test_pieces_cover_every_element_once_in_order(shape: list[int]) -> None:
    shape = shape if math.prod(shape) < 2**28 else shape[-1:]
    ranges = list(pieces(shape))
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges)][: len(ranges)]
    assert (ranges[-1][1] if ranges else 0) == math.prod(shape)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((), 2**18),
        ((7,), 2**18),
        ((2**20,), 2**18),
        ((5, 4096), 64 * 4096),
        ((5, 3), 87382 * 3),
        ((5, 2**18), 2**18),
        ((5, 2**18 - 1), 2 * (2**18 - 1)),
        ((5, 2**18 + 1), 2**18),
        ((3, 0), 2**18),
        ((2, 3, 1000), 263 * 1000),
    ],
)
def test_a_piece_is_whole_rows_where_rows_are_short(shape: tuple[int, ...], expected: int) -> None:
    assert piece_elements(shape) == expected


def test_the_digest_of_a_piece_is_xxh3_of_its_bytes() -> None:
    assert piece_digest(b"weights") == xxhash.xxh3_128(b"weights").digest()


def test_streaming_gives_the_digest_of_the_pieces(tmp_path: Path) -> None:
    shape = (300, 1001)
    data = np.random.default_rng(0).bytes(300 * 1001 * 2)
    file = tmp_path / "data"
    file.write_bytes(b"head" + data)
    tensor = StoredTensor("w", DType.BFLOAT16, shape, file, 4)
    size = 262 * 1001 * 2
    expected = [xxhash.xxh3_128(part).digest() for part in (data[:size], data[size:])]
    assert digest_tensor(tensor) == tensor_digest(DType.BFLOAT16, shape, expected)


def test_the_digest_of_an_empty_tensor_still_depends_on_shape_and_dtype(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"")
    found = {
        digest_tensor(StoredTensor("w", dtype, shape, tmp_path / "data", 0))
        for dtype in (DType.FLOAT16, DType.BFLOAT16)
        for shape in ((0,), (0, 3), (3, 0))
    }
    assert len(found) == 6


def test_a_tensor_digest_changes_with_dtype_shape_and_order_of_pieces() -> None:
    a, b = piece_digest(b"a"), piece_digest(b"b")
    digests = {
        tensor_digest(DType.FLOAT16, (4, 2), [a, b]),
        tensor_digest(DType.BFLOAT16, (4, 2), [a, b]),
        tensor_digest(DType.FLOAT16, (8,), [a, b]),
        tensor_digest(DType.FLOAT16, (42,), [a, b]),
        tensor_digest(DType.FLOAT16, (4, 2), [b, a]),
        tensor_digest(DType.FLOAT16, (4, 2), [a]),
    }
    assert len(digests) == 6
    assert all(digest.startswith("xxh3-tensor-1:") and len(digest) == 14 + 32 for digest in digests)


def test_a_checkpoint_digest_ignores_order_and_notices_names_and_values() -> None:
    one = checkpoint_digest({"a": "1", "b": "2"})
    assert one == checkpoint_digest({"b": "2", "a": "1"})
    others = [{"a": "2", "b": "1"}, {"a": "1"}, {"a1": "", "b": "2"}, {"a": "1b", "": "2"}, {}]
    assert len({one, *(checkpoint_digest(other) for other in others)}) == 6
