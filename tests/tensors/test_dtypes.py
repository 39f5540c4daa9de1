"""Names, sizes and promotion of dtypes, held against torch."""

from __future__ import annotations

import itertools

import pytest
import torch

from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.tensors.dtypes import SAFETENSORS_CODES, DType, promote, unknown_code


@pytest.mark.parametrize("dtype", DType)
def test_name_size_and_kind_are_those_of_torch(dtype: DType) -> None:
    theirs = getattr(torch, dtype.value)
    assert dtype.itemsize == theirs.itemsize
    assert dtype.is_float == theirs.is_floating_point


@pytest.mark.parametrize("dtype", DType)
def test_every_spelling_of_its_own_name_is_parsed(dtype: DType) -> None:
    for text in (
        dtype.value,
        f"torch.{dtype.value}",
        dtype.value.upper(),
        dtype.safetensors,
        f" {dtype.value} ",
    ):
        assert DType.parse(text) is dtype
    assert SAFETENSORS_CODES[dtype.safetensors] is dtype


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("bf16", DType.BFLOAT16),
        ("fp16", DType.FLOAT16),
        ("half", DType.FLOAT16),
        ("float", DType.FLOAT32),
        ("double", DType.FLOAT64),
        ("fp8", DType.FLOAT8_E4M3FN),
    ],
)
def test_common_short_names_are_parsed(text: str, dtype: DType) -> None:
    assert DType.parse(text) is dtype


@pytest.mark.parametrize("text", ["", "float31", "auto", "F4", "torch.", "None"])
def test_an_unknown_name_is_refused_with_the_list_of_names(text: str) -> None:
    with pytest.raises(UsageError, match="bfloat16"):
        DType.parse(text)


def test_codes_that_need_scales_are_told_apart_from_unknown_ones() -> None:
    assert "scales" in unknown_code("F8_E8M0")
    assert "unknown" in unknown_code("Q4")


WIDE_FLOATS = [DType.FLOAT64, DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16]


@pytest.mark.parametrize("group", list(itertools.product(WIDE_FLOATS, repeat=3)))
def test_floats_promote_as_torch_promotes(group: tuple[DType, ...]) -> None:
    expected = getattr(torch, group[0].value)
    for dtype in group[1:]:
        expected = torch.promote_types(expected, getattr(torch, dtype.value))
    assert getattr(torch, promote(group).value) == expected


def test_an_eight_bit_float_stays_alone_and_widens_in_company() -> None:
    e4, e5 = DType.FLOAT8_E4M3FN, DType.FLOAT8_E5M2
    assert promote([e4, e4]) is e4
    assert promote([e4, e5]) is DType.FLOAT32
    assert promote([e4, DType.BFLOAT16]) is DType.FLOAT32
    assert promote([e5, DType.FLOAT64]) is DType.FLOAT64


def test_integers_give_way_to_floats_but_never_to_each_other() -> None:
    assert promote([DType.INT64, DType.BFLOAT16]) is DType.BFLOAT16
    assert promote([DType.INT64, DType.INT64]) is DType.INT64
    for group in ([DType.INT64, DType.INT32], [DType.COMPLEX64, DType.FLOAT32], []):
        with pytest.raises(CompatibilityError):
            promote(group)
