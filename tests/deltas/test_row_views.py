"""Rows of tensors as tensors: every range reads what slicing an array gives."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith.deltas.codecs.codec import part_in_memory
from weightsmith.deltas.row_views import JoinedRows, SomeRows, StackedTensors, Stretch
from weightsmith.tensors.stored import behind


def read(tensor, start, stop):
    buffer = bytearray((stop - start) * tensor.dtype.itemsize)
    tensor.read_into(start, stop, memoryview(buffer))
    return np.frombuffer(buffer, np.float32)


@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 2, 3)])
def test_some_rows_and_joined_rows_read_as_slices_do(shape):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    whole = part_in_memory("x", array)
    parts = tuple(SomeRows(whole, a, b) for a, b in ((2, 5), (0, 0), (5, 7), (0, 1)))
    wanted = [array[2:5], array[0:0], array[5:7], array[0:1]]
    for part, rows in zip(parts, wanted, strict=True):
        assert part.shape == rows.shape
        assert part.nbytes == rows.nbytes
        np.testing.assert_array_equal(read(part, 0, part.numel), rows.reshape(-1))
    joined = JoinedRows("y", parts)
    flat = np.concatenate(wanted).reshape(-1)
    assert joined.shape == (6, *shape[1:])
    assert joined.name == "y"
    for start in range(joined.numel + 1):
        for stop in range(start, joined.numel + 1):
            np.testing.assert_array_equal(read(joined, start, stop), flat[start:stop])
    assert [id(t) for t in behind([joined])] == [
        id(t) for t in (joined, *parts[:1], whole, *parts[1:])
    ]


def test_a_stack_reads_as_its_parts_and_a_stretch_as_a_part_of_it():
    parts = [np.arange(6, dtype=np.float32).reshape(2, 3) + 10 * i for i in range(4)]
    sources = tuple(part_in_memory(str(i), part) for i, part in enumerate(parts))
    stack = StackedTensors("stack", (2, 4, 3), sources)
    wanted = np.stack([np.concatenate(parts[:2]), np.concatenate(parts[2:])])
    for start in range(stack.numel + 1):
        for stop in range(start, stack.numel + 1):
            np.testing.assert_array_equal(read(stack, start, stop), wanted.reshape(-1)[start:stop])
    assert stack.parts == sources
    for i, part in enumerate(parts):
        stretch = Stretch("part", stack, 6 * i, (2, 3))
        assert (stretch.name, stretch.shape, stretch.numel) == ("part", (2, 3), 6)
        np.testing.assert_array_equal(read(stretch, 1, 5), part.reshape(-1)[1:5])
        assert stretch.cost.stored_bytes == stack.cost.stored_bytes // 4
