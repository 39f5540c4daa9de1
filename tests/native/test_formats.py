"""Every stored format is read and written as torch does it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from weightsmith.graph.graph import rounded, source
from weightsmith.graph.passes import PassSpec
from weightsmith.tensors.dtypes import DType

FLOATS = [d for d in DType if d.is_float]
SMALL = [d for d in FLOATS if d.itemsize < 4]


def every_code(dtype: DType) -> torch.Tensor:
    count = 1 << (8 * dtype.itemsize)
    codes = np.arange(count, dtype=np.uint16 if dtype.itemsize == 2 else np.uint8)
    return torch.from_numpy(codes).view(getattr(torch, dtype.value))


def edge_values(dtype: DType) -> torch.Tensor:
    """Every number of a format, the midpoints between neighbours, and float32's next door to each."""
    codes = every_code(dtype).double()
    finite = torch.sort(codes[torch.isfinite(codes)]).values
    midpoints = (finite[1:] + finite[:-1]) / 2
    beyond = torch.tensor([465.0, 480.0, 65519.0, 65520.0, 61440.0, 57345.0, 3.4e38, 1e-45])
    values = torch.cat([finite, midpoints, beyond, -beyond]).float()
    up = torch.nextafter(values, torch.tensor(torch.inf))
    down = torch.nextafter(values, torch.tensor(-torch.inf))
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0])
    return torch.cat([values, up, down, special])


@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_every_code_decodes_to_its_number(backend: Any, tools: Any, dtype: DType) -> None:
    codes = every_code(dtype)
    buffer = memoryview(codes.view(torch.uint8).numpy()).cast("B")
    spec = PassSpec((codes.numel(),), (dtype,), ((source(0), DType.FLOAT32),))
    answer = tools.run(backend, spec, [buffer])
    tools.assert_same_bits(answer.output, codes.float())
    bad = torch.nonzero(~torch.isfinite(codes.float())).flatten()
    expected = (bad.numel(), int(bad[0]))
    assert answer.result.nonfinite_sources == [expected]
    assert answer.result.nonfinite_outputs == [expected]


@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_rounding_is_to_nearest_even_at_every_midpoint(
    backend: Any, tools: Any, dtype: DType
) -> None:
    values = edge_values(dtype)
    buffer = memoryview(values.numpy()).cast("B")
    expected = values.to(getattr(torch, dtype.value))
    spec = PassSpec((values.numel(),), (DType.FLOAT32,), ((source(0), dtype),))
    tools.assert_same_bits(tools.run(backend, spec, [buffer]).output, expected)
    inner = PassSpec(
        (values.numel(),), (DType.FLOAT32,), ((rounded(source(0), dtype), DType.FLOAT32),)
    )
    tools.assert_same_bits(tools.run(backend, inner, [buffer]).output, expected.float())


@pytest.mark.parametrize("stored", FLOATS, ids=str)
@pytest.mark.parametrize("written", FLOATS, ids=str)
def test_a_copy_between_formats_equals_torch(
    backend: Any, reference: Any, tools: Any, stored: DType, written: DType
) -> None:
    buffer = tools.encode(tools.values(1, 3001), stored)
    for value in (source(0), rounded(source(0), written), rounded(source(0), DType.BFLOAT16)):
        spec = PassSpec((3001,), (stored,), ((value, written),))
        ours, theirs = tools.run(backend, spec, [buffer]), tools.run(reference, spec, [buffer])
        tools.assert_same_bits(ours.output, theirs.output)
        assert ours.result.nonfinite_outputs == theirs.result.nonfinite_outputs
        assert ours.result.nonfinite_sources == theirs.result.nonfinite_sources


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_unaligned_sources_and_outputs_are_fine(backend: Any, tools: Any, dtype: DType) -> None:
    count = 515
    stored = tools.encode(tools.values(2, count, special_share=0), dtype)
    room = bytearray(stored.nbytes + 3)
    room[3:] = stored
    out = bytearray(stored.nbytes + 1)
    spec = PassSpec((count,), (dtype,), ((source(0), dtype),))
    view = memoryview(out)[1:]
    backend.compile(spec).run([memoryview(room)[3:]], 0, count, [view])
    assert view == stored


def test_nonfinite_elements_are_counted_with_the_flat_index_of_the_first(
    backend: Any, tools: Any
) -> None:
    values = np.zeros(5000)
    values[[1500, 1501, 4999]] = [np.inf, np.nan, -np.inf]
    spec = PassSpec((10000,), (DType.BFLOAT16,), ((source(0) + 1.0, DType.FLOAT16),))
    answer = tools.run(backend, spec, [tools.encode(values, DType.BFLOAT16)], start=100)
    assert answer.result.nonfinite_sources == [(3, 1600)]
    assert answer.result.nonfinite_outputs == [(3, 1600)]


def test_overflow_of_the_output_is_found(backend: Any, tools: Any) -> None:
    spec = PassSpec((40,), (DType.FLOAT32,), ((source(0) * 2.0, DType.FLOAT16),))
    values = np.ones(40)
    values[33] = 40000.0
    answer = tools.run(backend, spec, [tools.encode(values, DType.FLOAT32)])
    assert answer.result.nonfinite_outputs == [(1, 33)]
    assert answer.result.nonfinite_sources == [(0, -1)]
