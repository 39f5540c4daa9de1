"""Tensors in memory: filled in pieces, read back, and named in messages."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.memory import MemorySink, MemoryTensor


def test_what_is_written_in_pieces_is_read_back_from_anywhere() -> None:
    tensor = MemoryTensor.empty("w", DType.FLOAT32, (3, 4))
    told: list[int] = []
    sink, values = MemorySink(tensor, told.append), np.arange(12, dtype=np.float32)
    sink.write(5, values[5:].data)
    sink.write(0, values[:5].data)
    assert told == [28, 20]
    out = np.zeros(4, np.float32)
    tensor.read_into(3, 7, out.data.cast("B"))
    np.testing.assert_array_equal(out, values[3:7])


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (5, 3)], ids=str)
def test_an_array_has_its_elements_in_order_however_it_lies_in_memory(
    shape: tuple[int, ...],
) -> None:
    array = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape).T
    tensor = MemoryTensor.of("w", DType.INT64, array, "what it is")
    assert (tensor.shape, tensor.nbytes, tensor.location) == (
        array.shape,
        8 * array.size,
        "what it is",
    )
    out = bytearray(tensor.nbytes)
    tensor.read_into(0, tensor.numel, memoryview(out))
    assert bytes(out) == array.tobytes()


def test_a_tensor_without_a_place_is_named_by_itself() -> None:
    assert MemoryTensor("w", DType.INT8, (2,), b"ab").location == "tensor 'w' in memory"
