"""Random graphs give the same bits in the register machine as in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightsmith.graph import graph
from weightsmith.graph.graph import Value, source
from weightsmith.graph.passes import PassSpec, ThresholdPoint, used_sources
from weightsmith.tensors.dtypes import DType

FLOATS = [d for d in DType if d.is_float]
SHAPES = st.sampled_from(
    [(), (1,), (7,), (1025,), (3, 700), (2, 3, 5), (2, 2, 31, 17), (0,), (4, 0)]
)
ARITHMETIC: list[Callable[..., Value]] = [
    lambda a, b: a + b,
    lambda a, b: a - b,
    lambda a, b: a * b,
    lambda a, b: a / b,
    # torch's own choice among zeros of two signs depends on the position: give both one sign
    lambda a, b: graph.minimum(graph.value(a) + 0.0, graph.value(b) + 0.0),
    lambda a, b: graph.maximum(graph.value(a) + 0.0, graph.value(b) + 0.0),
]
COMPARE: list[Callable[..., Value]] = [
    lambda a, b: a < b,
    lambda a, b: a <= b,
    lambda a, b: a > b,
    lambda a, b: a >= b,
    lambda a, b: a.equals(b),
]
UNARY: list[Callable[[Value], Value]] = [
    lambda a: -a,
    abs,
    graph.sign,
    lambda a: graph.rounded(a, DType.BFLOAT16),
    lambda a: graph.rounded(a, DType.FLOAT16),
    lambda a: graph.rounded(a, DType.FLOAT8_E4M3FN),
    lambda a: graph.rounded(a, DType.FLOAT8_E5M2),
    lambda a: graph.rounded(a, DType.FLOAT32),
]
NUMBERS = st.sampled_from([0.0, -0.0, 1.0, 0.1, -2.5, 1e-30, 1e30, float("inf"), float("nan")])


# Only in float32: torch's float64 square root is not always correctly rounded.
FLOAT32_UNARY = [*UNARY, graph.sqrt, graph.exp, graph.log]


class Grower:
    """Draws a graph over some sources, node by node; earlier nodes are used again."""

    def __init__(self, draw: Any, sources: int, unary: list[Any]) -> None:
        self.draw = draw
        self.unary = unary
        self.values: list[Value] = [source(i) for i in range(sources)]
        self.masks: list[Value] = [self.values[0] > 0.0]
        self.known: dict[Any, Any] = {}

    def operand(self) -> Any:
        return self.draw(
            st.one_of(st.sampled_from(self.values), st.sampled_from(self.masks), NUMBERS)
        )

    def value(self) -> Value:
        return self.draw(st.sampled_from(self.values))

    def mask(self) -> Value:
        return self.draw(st.sampled_from([*self.masks, *self.values[:1]]))

    def grow(self) -> None:
        kind = self.draw(st.integers(0, 6))
        if kind == 0:
            self.values.append(self.draw(st.sampled_from(ARITHMETIC))(self.value(), self.operand()))
        elif kind == 1:
            self.values.append(
                self.draw(st.sampled_from(ARITHMETIC))(graph.value(self.operand()), self.value())
            )
        elif kind == 2:
            self.values.append(self.draw(st.sampled_from(self.unary))(self.value()))
        elif kind == 3:
            self.masks.append(self.draw(st.sampled_from(COMPARE))(self.value(), self.operand()))
        elif kind == 4:
            a, b = self.mask(), self.mask()
            self.masks.append(self.draw(st.sampled_from([a & b, a | b, ~a])))
        elif kind == 5:
            self.values.append(graph.where(self.mask(), self.operand(), self.operand()))
        else:
            self.special()

    def special(self) -> None:
        if self.draw(st.booleans()):
            word = st.integers(0, 2**32 - 1)
            self.values.append(graph.uniform((self.draw(word), self.draw(word))))
            return
        threshold = graph.largest(abs(self.value()), 3)
        key = self.draw(st.sampled_from([0, 1, 0x3F800000, 0x7FFFFFFF]))
        self.known[threshold] = ThresholdPoint(key, self.draw(st.integers(-1, 3000)), 1.0)
        self.masks.append(graph.above(self.value(), threshold))


@settings(max_examples=120, suppress_health_check=list(HealthCheck))
@given(data=st.data(), shape=SHAPES, seed=st.integers(0, 1000))
def test_random_graphs_give_torchs_bits(
    backend: Any, reference: Any, tools: Any, data: Any, shape: tuple[int, ...], seed: int
) -> None:
    dtypes = tuple(data.draw(st.lists(st.sampled_from(FLOATS), min_size=1, max_size=4)))
    grower = Grower(data.draw, len(dtypes), UNARY if DType.FLOAT64 in dtypes else FLOAT32_UNARY)
    for _ in range(data.draw(st.integers(1, 14))):
        grower.grow()
    output = graph.add_all([*grower.values[-3:], grower.masks[-1] * 1.0])
    written = data.draw(st.sampled_from(FLOATS))
    count = int(np.prod(shape))
    buffers = [tools.encode(tools.values(seed + i, count), d) for i, d in enumerate(dtypes)]
    spec = PassSpec(shape, dtypes, ((output, written),), known=grower.known)
    read = used_sources([output], grower.known)
    if not read:
        output, read = (
            output + source(0),
            {0},
        )  # the reference learns the size of a tile from its sources
        spec = PassSpec(shape, dtypes, ((output, written),), known=grower.known)
    used = [b if i in read else None for i, b in enumerate(buffers)]
    ours, theirs = tools.run(backend, spec, used), tools.run(reference, spec, used)
    tools.assert_same_bits(ours.output, theirs.output)
    assert ours.result.nonfinite_outputs == theirs.result.nonfinite_outputs
    assert ours.result.nonfinite_sources == theirs.result.nonfinite_sources


@pytest.mark.parametrize("function", [graph.minimum, graph.maximum])
def test_nan_wins_in_minimum_and_maximum(backend: Any, tools: Any, function: Any) -> None:
    values = np.array([[np.nan, 1.0], [1.0, np.nan], [2.0, 3.0], [-np.inf, 0.0]] * 20)
    buffers = [tools.encode(values[:, i], DType.FLOAT32) for i in range(2)]
    spec = PassSpec((80,), (DType.FLOAT32,) * 2, ((function(source(0), source(1)), DType.FLOAT32),))
    expected = torch.from_numpy(
        (np.minimum if function is graph.minimum else np.maximum)(*values.T)
    )
    tools.assert_same_bits(tools.run(backend, spec, buffers).output, expected.float())


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT64], ids=str)
def test_exp_and_log_are_rounded_once_from_float64(backend: Any, tools: Any, dtype: DType) -> None:
    numbers = np.concatenate(
        [np.linspace(-110, 95, 4001), np.logspace(-40, 38, 999), tools.special]
    )
    buffer = tools.encode(numbers, dtype)
    stored = np.frombuffer(buffer, dtype=dtype.value).astype(np.float64)
    for function, golden in ((graph.exp, np.exp), (graph.log, np.log)):
        spec = PassSpec(numbers.shape, (dtype,), ((function(source(0)), dtype),))
        found = tools.run(backend, spec, [buffer]).output
        with np.errstate(all="ignore"):
            expected = torch.from_numpy(golden(stored)).to(found.dtype)
        if dtype is DType.FLOAT32:
            tools.assert_same_bits(found, expected)
        else:
            torch.testing.assert_close(found, expected, rtol=4e-16, atol=0, equal_nan=True)


def uniform_by_hand(key: tuple[int, int], index: int) -> float:
    word = 0xFFFFFFFF
    x = (index + key[0]) & word
    x ^= x >> 17
    x = x * 0xED5AD4BB & word
    x ^= x >> 11
    x = (x + key[1] + (index >> 32) * 0x9E3779B9) & word
    x = x * 0xAC4C1B51 & word
    x ^= x >> 15
    x = x * 0x31848BAB & word
    x ^= x >> 14
    return (x >> 8) / 2**24


@pytest.mark.parametrize("start", [0, 2**32 - 2**18, 5 * 2**32])
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT64], ids=str)
def test_uniforms_follow_the_documented_generator(
    backend: Any, tools: Any, start: int, dtype: DType
) -> None:
    key = (0x12345678, 0xFEDCBA98)
    count = 2**18 + 1500
    spec = PassSpec((1 << 40,), (dtype,), ((graph.uniform(key), dtype),))
    found = tools.run(backend, spec, [memoryview(bytes(count * dtype.itemsize))], start).output
    for at in [0, 1, 1023, 1024, 2**18 - 1, 2**18, 2**18 + 1, count - 1]:
        assert float(found[at]) == uniform_by_hand(key, start + at)


@pytest.mark.parametrize("last_index", [-1, 0, 999, 1024, 2999, 1 << 61])
def test_a_cut_selects_ties_up_to_its_last_index(backend: Any, tools: Any, last_index: int) -> None:
    values = np.resize([1.0, -1.0, 2.0, 0.5], 3000)
    threshold = graph.largest(source(0), 5)
    known = {threshold: ThresholdPoint(0x3F800000, last_index, 1.0)}
    spec = PassSpec(
        (3000,),
        (DType.FLOAT32,),
        ((graph.above(source(0), threshold) * 1.0, DType.FLOAT32),),
        (),
        known,
    )
    found = tools.run(backend, spec, [tools.encode(values, DType.FLOAT32)]).output.numpy()
    expected = (values == 2.0) | ((np.abs(values) == 1.0) & (np.arange(3000) <= last_index))
    assert (found.astype(bool) == expected).all()


def test_square_roots_are_correctly_rounded(backend: Any, reference: Any, tools: Any) -> None:
    numbers = np.concatenate([np.logspace(-44, 38, 5000), tools.special])
    for dtype in (DType.FLOAT32, DType.FLOAT64):
        buffer = tools.encode(numbers, dtype)
        with np.errstate(invalid="ignore"):
            expected = torch.from_numpy(np.sqrt(np.frombuffer(buffer, dtype=dtype.value)))
        spec = PassSpec(numbers.shape, (dtype,), ((graph.sqrt(source(0)), dtype),))
        tools.assert_same_bits(tools.run(backend, spec, [buffer]).output, expected)
        if dtype is DType.FLOAT32:
            tools.assert_same_bits(tools.run(reference, spec, [buffer]).output, expected)
