"""Two operations in one instruction: the bits of two instructions, and only where nobody else asks for the first."""

from __future__ import annotations

import operator
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from weightsmith.graph.backends.instructions import assemble
from weightsmith.graph.backends.native import NativeBackend, load
from weightsmith.graph.backends.program import list_pass
from weightsmith.graph.graph import Node, Threshold, Value, above, largest, source, where
from weightsmith.graph.passes import PassSpec, ThresholdPoint
from weightsmith.tensors.dtypes import DType

COUNT = 1027  # no whole number of vectors or blocks
OPERATIONS = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
}
PAIRS = ("add_add", "add_mul", "mul_add", "mul_sub", "mul_mul", "div_add", "div_sub")
SOURCES = {
    "float": (DType.FLOAT32,) * 3,
    "half": (DType.BFLOAT16, DType.FLOAT16, DType.BFLOAT16),
    "double": (DType.FLOAT64, DType.FLOAT32, DType.BFLOAT16),
}


def instructions(
    output: Value, dtypes: tuple[DType, ...], known: Mapping[Node, Any] = MappingProxyType({})
) -> list[str]:
    """Names of what a pass is computed with."""
    names = load()._library.opcodes
    number_of = {number: name for name, number in names.items()}
    spec = PassSpec((COUNT,), dtypes, ((output, DType.FLOAT32),), known=known)
    (segment,) = assemble(list_pass(spec).structure, names)
    return [number_of[int(row[0])] for row in segment.code]


def assert_bits_of_torch(
    backend: NativeBackend, reference: Any, tools: Any, output: Value, dtypes: tuple[DType, ...]
) -> None:
    spec = PassSpec((COUNT,), dtypes, ((output, DType.FLOAT64),))
    buffers = [
        tools.encode(tools.values(seed, COUNT, 0.6), dtype) for seed, dtype in enumerate(dtypes)
    ]
    tools.assert_same_bits(
        tools.run(backend, spec, buffers).output, tools.run(reference, spec, buffers).output
    )


@pytest.mark.parametrize("sources", SOURCES)
@pytest.mark.parametrize("number", [None, 0, 1, 2])
@pytest.mark.parametrize("value", [-0.0, 0.3])
@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_has_the_bits_of_torch_with_numbers_on_every_side(
    backend: NativeBackend,
    reference: Any,
    tools: Any,
    pair: str,
    value: float,
    number: int | None,
    sources: str,
) -> None:
    operands: list[Any] = [source(0), source(1), source(2)]
    if number is not None:
        operands[number] = value
    first, second = (OPERATIONS[name] for name in pair.split("_"))
    output = second(first(operands[0], operands[1]), operands[2])
    dtypes = SOURCES[sources]
    assert pair in instructions(output, dtypes)
    assert_bits_of_torch(backend, reference, tools, output, dtypes)


@pytest.mark.parametrize("sources", SOURCES)
def test_a_task_vector_is_taken_while_it_is_loaded(
    backend: NativeBackend, reference: Any, tools: Any, sources: str
) -> None:
    dtypes = SOURCES[sources]
    output = (source(1) - source(0)) / (source(2) - source(0))
    names = instructions(output, dtypes)
    assert "sub" not in names
    assert_bits_of_torch(backend, reference, tools, output, dtypes)


def cut_at(dtype: DType, **ties: Any) -> tuple[Threshold, dict[Node, Any]]:
    """A threshold at 1 that takes some of the elements of that magnitude."""
    threshold = largest(source(0), 3)
    bits = struct.unpack("<q", struct.pack("<d", 1.0)) if dtype is DType.FLOAT64 else (0x3F800000,)
    return threshold, {threshold: ThresholdPoint(bits[0], magnitude=1.0, **ties)}


TIES = {
    "all": {"last_index": 1 << 40},
    "none": {"last_index": -1},
    "by index": {"last_index": 500},
    "by rank": {"last_index": 500, "last_rank": 1 << 62, "rank_key": 77},
}


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT64], ids=str)
@pytest.mark.parametrize("other", [0.0, -0.5])
def test_the_largest_elements_are_kept_in_one_instruction(
    backend: NativeBackend, reference: Any, tools: Any, other: float, dtype: DType, ties: str
) -> None:
    """Signs, infinities and NaN stay as they are, whether or not the element is needed once more."""
    threshold, known = cut_at(dtype, **TIES[ties])
    x = source(0)
    work = np.float64 if dtype is DType.FLOAT64 else np.float32
    numbers = np.resize(np.array([1, -1, 2, -0.0, 0.5, -np.inf, np.nan, 1, -1, 1], work), COUNT)
    for output in (
        where(above(x, threshold), x, other),
        where(above(x, threshold), x, other) / (x + 3.0),
    ):
        names = instructions(output, (dtype,), known)
        assert "keep" in names
        assert not {"above", "where"} & set(names)
        spec = PassSpec((COUNT,), (dtype,), ((output, dtype),), known=known)
        ours, theirs = (
            tools.run(b, spec, [memoryview(bytearray(numbers.tobytes()))]).output
            for b in (backend, reference)
        )
        tools.assert_same_bits(ours, theirs)


def test_a_mask_that_others_use_too_or_that_chooses_another_value_is_computed() -> None:
    threshold, known = cut_at(DType.FLOAT32, last_index=-1)
    x, y, dtypes = source(0), source(1), SOURCES["float"]
    mask = above(x, threshold)
    for output in (
        where(mask, x, 0.0) + where(mask, y, 0.0),
        where(mask, y, 0.0),
        where(mask, x, y),
    ):
        names = instructions(output, dtypes, known)
        assert "above" in names
        assert "keep" not in names


def test_what_is_used_twice_and_what_stands_on_the_other_side_is_not_taken_in() -> None:
    dtypes = SOURCES["float"]
    product = source(0) * source(1)
    assert "mul_add" not in instructions((product + source(2)) / product, dtypes)
    assert "mul_sub" not in instructions(source(2) - product, dtypes)
    assert "mul_add" in instructions(source(2) + product, dtypes)
    squared = source(0) / source(1)
    assert "div_add" not in instructions(squared + squared, dtypes)


def test_an_element_that_is_not_finite_is_counted_where_a_task_vector_is_taken_while_loading(
    backend: NativeBackend, tools: Any
) -> None:
    spec = PassSpec((3,), (DType.BFLOAT16,) * 2, ((source(1) - source(0), DType.FLOAT32),))
    buffers = [
        tools.encode([1.0, 2.0, float("inf")], DType.BFLOAT16),
        tools.encode([1.0, float("nan"), float("inf")], DType.BFLOAT16),
    ]
    result = tools.run(backend, spec, buffers).result
    assert result.nonfinite_sources == [(1, 2), (2, 1)]
