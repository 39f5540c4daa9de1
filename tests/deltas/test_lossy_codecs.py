"""Lossy codecs: the errors that theory gives, exact formulas, any range, the same bytes every time."""

from __future__ import annotations

import concurrent.futures
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.deltas.stored_arrays import floats, from_bfloat16, read, stored, to_bfloat16

from weightsmith.deltas.codecs import (
    LOSSY,
    CodecChoice,
    Delta,
    choices,
    encode,
    in_memory,
    measured_error,
)
from weightsmith.deltas.codecs.held import BLOCK
from weightsmith.errors import CompatibilityError, NonFiniteError, UsageError
from weightsmith.tensors.dtypes import DType

# One choice of each codec, and of each of its kinds.
EVERY = [
    CodecChoice("sign"),
    CodecChoice("sign", {"scales": "row"}),
    CodecChoice("sign2"),
    CodecChoice("ternary"),
    CodecChoice("lloyd2"),
    CodecChoice("lloyd3", {"scales": "row"}),
    CodecChoice("lloyd4"),
    CodecChoice("sparse", {"density": 0.05, "values": "bfloat16"}),
    CodecChoice("sparse", {"density": 0.2, "values": "lloyd1"}),
    CodecChoice("sparse", {"density": 0.5, "values": "lloyd2"}),
    CodecChoice("sparse", {"density": 0.1, "values": "lloyd4"}),
    CodecChoice("low_rank", {"rank": 3}),
    CodecChoice("banded", {"bits": 1.0}),
]


def pair(change: np.ndarray) -> tuple:
    """A base of zeros and the change on it, so that nothing is lost in the sum."""
    return stored(np.zeros_like(change)), stored(change)


def drawn(kind: str, shape=(512, 1024)) -> np.ndarray:
    return getattr(np.random.default_rng(0), kind)(size=shape).astype(np.float32)


# Gaussian and Laplacian relative errors: sqrt(1 - 2/pi) and sqrt(1/2) for signs; second signs and Lloyd-Max levels from
# their integrals; the k largest from the tail moment. Bits are those of the codes.
ERRORS = [
    ("sign", {}, 1.0, 1.0, 0.603, 0.707),
    ("sign2", {}, 2.0, 2.0, 0.361, 0.479),
    ("ternary", {}, 1.54, 1.32, 0.436, 0.514),
    ("lloyd2", {}, 1.92, 1.75, 0.343, 0.420),
    ("lloyd3", {}, 2.83, 2.58, 0.186, 0.233),
    ("lloyd4", {}, 3.76, 3.49, 0.0975, 0.1243),
    ("sparse", {"density": 0.5, "values": "bfloat16"}, None, None, 0.267, 0.182),
    ("sparse", {"density": 0.2, "values": "bfloat16"}, None, None, 0.592, 0.468),
    ("sparse", {"density": 0.1, "values": "bfloat16"}, None, None, 0.749, 0.636),
    ("sparse", {"density": 0.05, "values": "bfloat16"}, None, None, 0.849, 0.759),
]


@pytest.mark.parametrize(("codec", "sets", "bits_n", "bits_l", "normal", "laplace"), ERRORS)
@pytest.mark.parametrize("kind", ["normal", "laplace"])
def test_errors_and_bits_are_those_of_theory(codec, sets, bits_n, bits_l, normal, laplace, kind):
    base, target = pair(drawn(kind))
    encoded = encode(Delta(base, target), CodecChoice(codec, sets))
    expected, bits = (normal, bits_n) if kind == "normal" else (laplace, bits_l)
    assert measured_error(encoded, base, target) == pytest.approx(expected, rel=0.01)
    if bits is not None:
        assert encoded.nbytes * 8 / target.numel == pytest.approx(bits, rel=0.01)


@pytest.mark.parametrize("kind", ["normal", "laplace"])
def test_more_bits_leave_less_error(kind):
    base, target = pair(drawn(kind, (128, 512)))
    delta = Delta(base, target)
    ladder = [
        [CodecChoice(name) for name in ("sign", "ternary", "lloyd2", "lloyd3", "lloyd4")],
        [CodecChoice("sparse", {"density": d}) for d in (0.01, 0.1, 0.3, 0.6)],
        [CodecChoice("low_rank", {"rank": r}) for r in (1, 8, 32, 100)],
        [CodecChoice("banded", {"bits": b}) for b in (0.25, 0.5, 1.0, 2.0, 4.0)],
    ]
    for rungs in ladder:
        found = [encode(delta, choice) for choice in rungs]
        sizes = [encoded.nbytes for encoded in found]
        errors = [measured_error(encoded, base, target) for encoded in found]
        assert sizes == sorted(sizes)
        assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("choice", EVERY, ids=str)
def test_any_range_in_any_thread_is_that_of_the_whole(choice):
    rng = np.random.default_rng(1)
    base = stored(to_bfloat16(rng.normal(size=(1100, 1021))), DType.BFLOAT16)
    moved = from_bfloat16(np.frombuffer(read(base), np.uint16)) + 0.1 * rng.normal(size=base.numel)
    target = stored(to_bfloat16(moved).reshape(base.shape), DType.BFLOAT16)
    encoded = encode(Delta(base, target), choice)
    whole = read(in_memory(encoded, base, "x", DType.BFLOAT16, base.shape))
    fresh = in_memory(encoded, base, "x", DType.BFLOAT16, base.shape)
    n = base.numel
    edges = [(n - 1, n), (BLOCK - 5, BLOCK + 5), (7, 7), (3, 300_001), (BLOCK, n), (0, n)]
    edges += [tuple(sorted(rng.integers(0, n, 2))) for _ in range(6)]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda e: read(fresh, int(e[0]), int(e[1])), edges))
    for (start, stop), data in zip(edges, found, strict=True):
        assert data == whole[2 * start : 2 * stop]


@pytest.mark.parametrize("choice", EVERY, ids=str)
def test_the_same_change_gives_the_same_bytes(choice):
    base, target = pair(drawn("laplace", (64, 300)))
    one, two = (encode(Delta(base, target), choice) for _ in range(2))
    assert dict(one.parameters) == dict(two.parameters)
    assert list(one.parts) == list(two.parts)
    for part, array in one.parts.items():
        assert array.dtype == two.parts[part].dtype
        np.testing.assert_array_equal(array, two.parts[part])


@pytest.mark.parametrize("choice", EVERY, ids=str)
@given(st.data())
@settings(max_examples=8)
def test_awkward_shapes_and_values_are_coded_and_decoded(choice, data):
    shape = data.draw(
        st.sampled_from(
            [(1,), (7,), (), (5, 3), (1, 9), (9, 1), (3, 5, 7), (4, 3, 3, 3), (5, 2, 1)]
        )
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    change = rng.integers(-2, 3, shape) * data.draw(st.sampled_from([1.0, 1e-42, 1e30]))
    base, target = pair(np.asarray(change, np.float32))
    if choice.codec == "low_rank":
        choice = CodecChoice("low_rank", {"rank": 1})
    delta = Delta(base, target)
    encoded = encode(delta, choice)
    found = floats(in_memory(encoded, base, "x", DType.FLOAT32, shape))
    assert found.shape == shape
    assert np.isfinite(found).all()
    # Nothing is decoded further away than zero would be, but for the float16 of tiny factors.
    gap = np.linalg.norm(found.astype(np.float64) - change)
    assert gap <= 1.001 * np.linalg.norm(change) + 1e-40


def test_a_sign_and_a_scale_are_what_the_formula_says():
    change = np.array([[0.5, -0.0, -2.0], [0.0, 1.0, -0.25]], np.float32)
    base = stored(np.full((2, 3), 8.0, np.float32))
    target = stored(np.float32(8) + change)
    one = encode(Delta(base, target), CodecChoice("sign"))
    mean = np.float32(3.75 / 6)
    # Zero counts as plus.
    signs = np.array([[1, 1, -1], [1, 1, -1]], np.float32)
    np.testing.assert_array_equal(
        floats(in_memory(one, base, "x", DType.FLOAT32, (2, 3))), np.float32(8) + mean * signs
    )
    assert one.parts["bits"].tolist() == [0b011011]
    rows = encode(Delta(base, target), CodecChoice("sign", {"scales": "row"}))
    scale = np.array([[2.5 / 3], [1.25 / 3]], np.float32)
    np.testing.assert_array_equal(
        floats(in_memory(rows, base, "x", DType.FLOAT32, (2, 3))), np.float32(8) + scale * signs
    )


def test_the_second_signs_are_those_of_what_the_first_leave():
    change = drawn("normal", (16, 33))
    base, target = pair(change)
    encoded = encode(Delta(base, target), CodecChoice("sign2"))
    first = np.abs(change).mean(dtype=np.float64)
    left = change - np.where(change >= 0, first, -first)
    second = np.abs(left).mean()
    expected = np.where(change >= 0, first, -first) + np.where(left >= 0, second, -second)
    found = floats(in_memory(encoded, base, "x", DType.FLOAT32, change.shape))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_row_scales_take_up_what_rows_differ_in():
    rng = np.random.default_rng(2)
    change = (rng.normal(size=(64, 512)) * np.geomspace(0.01, 10, 64)[:, None]).astype(np.float32)
    base, target = pair(change)
    delta = Delta(base, target)
    listed = {choice.codec: choice for choice in choices(delta, ["sign", "lloyd2"])}
    assert all(choice.settings == {"scales": "row"} for choice in listed.values())
    for codec, theory in (("sign", 0.603), ("lloyd2", 0.343)):
        errors = [
            measured_error(encode(delta, CodecChoice(codec, {"scales": kind})), base, target)
            for kind in ("row", "tensor")
        ]
        assert errors[0] == pytest.approx(theory, rel=0.03)
        assert errors[1] > 1.15 * errors[0]


@pytest.mark.parametrize("count", [1, 5, 12, 13, 24])
def test_exactly_the_largest_are_kept_and_of_equal_ones_the_first(count):
    change = np.array([3, -1, 1, -3, 2, 0, 1, -1, 2, 1, -2, 5] * 2, np.float32)
    base, target = pair(change)
    encoded = encode(
        Delta(base, target), CodecChoice("sparse", {"density": count / 24, "values": "bfloat16"})
    )
    order = np.lexsort((np.arange(24), -np.abs(change)))[:count]
    expected = np.zeros(24, np.float32)
    expected[order] = change[order]
    found = floats(in_memory(encoded, base, "x", DType.FLOAT32, (24,)))
    np.testing.assert_array_equal(found, expected)
    assert encoded.parts["table"][:, 0].sum() == count


def test_kept_elements_of_several_blocks_share_one_threshold():
    rng = np.random.default_rng(3)
    change = rng.integers(-3, 4, BLOCK + 5000).astype(np.float32)
    change[BLOCK:] *= 2
    base, target = pair(change)
    encoded = encode(
        Delta(base, target), CodecChoice("sparse", {"density": 0.1, "values": "bfloat16"})
    )
    count = round(0.1 * change.size)
    order = np.lexsort((np.arange(change.size), -np.abs(change)))[:count]
    expected = np.zeros_like(change)
    expected[order] = change[order]
    np.testing.assert_array_equal(
        floats(in_memory(encoded, base, "x", DType.FLOAT32, change.shape)), expected
    )


def test_a_kept_value_is_the_nearest_bfloat16_and_never_infinite():
    values = np.array([1.00390625, 1.01171875, -3.4e38, 1e-45], np.float32)
    base, target = pair(values)
    encoded = encode(
        Delta(base, target), CodecChoice("sparse", {"density": 1, "values": "bfloat16"})
    )
    found = floats(in_memory(encoded, base, "x", DType.FLOAT32, (4,)))
    assert found[:2].tolist() == [1.0, 1.015625]
    assert found[2] == np.float32(-3.3895314e38)


def test_the_sum_is_rounded_once_to_the_stored_dtype():
    rng = np.random.default_rng(4)
    base = rng.normal(size=(64, 100)).astype(np.float32)
    target = (base + 0.3 * rng.normal(size=base.shape)).astype(np.float16)
    tensors = stored(base), stored(target, DType.FLOAT16)
    delta = Delta(*tensors)
    encoded = encode(delta, CodecChoice("lloyd2"))
    zero = stored(np.zeros_like(base))
    change = floats(in_memory(encoded, zero, "x", DType.FLOAT32, base.shape))
    found = read(in_memory(encoded, tensors[0], "x", DType.FLOAT16, base.shape))
    assert found == (base + change).astype(np.float16).tobytes()
    gap = np.frombuffer(found, np.float16).astype(np.float64) - target.reshape(-1)
    changed = target.astype(np.float64) - base
    expected = np.linalg.norm(gap) / np.linalg.norm(changed)
    assert measured_error(encoded, *tensors) == pytest.approx(expected, rel=1e-6)


def test_a_grown_table_is_a_change_of_a_base_with_rows_of_zeros():
    rng = np.random.default_rng(5)
    base, target = rng.normal(size=(20, 300)), rng.normal(size=(23, 300))
    tensors = stored(base.astype(np.float32)), stored(target.astype(np.float32))
    encoded = encode(Delta(*tensors), CodecChoice("lloyd4"))
    assert measured_error(encoded, *tensors) < 0.12
    assert in_memory(encoded, tensors[0], "x", DType.FLOAT32, (23, 300)).shape == (23, 300)


def test_float64_is_decoded_in_float64():
    rng = np.random.default_rng(6)
    base = rng.normal(size=(8, 64))
    change = np.where(rng.random(base.shape) < 0.5, 1.0, -1.0) * 2.0**-40
    tensors = stored(base, DType.FLOAT64), stored(base + change, DType.FLOAT64)
    encoded = encode(Delta(*tensors), CodecChoice("sign"))
    assert measured_error(encoded, *tensors) < 1e-3


def test_every_codec_offers_choices_that_it_can_encode():
    base, target = pair(drawn("normal", (96, 128)))
    delta = Delta(base, target)
    listed = choices(delta)
    assert [*dict.fromkeys(choice.codec for choice in listed)] == list(LOSSY)
    for choice in listed:
        encoded = encode(delta, choice)
        assert encoded.codec == choice.codec
        assert 0 < encoded.nbytes < 0.6 * target.nbytes
        assert measured_error(encoded, base, target) < 1


def test_small_zero_and_infinite_changes_are_left_to_exact_codecs():
    zeros = np.zeros((64, 128), np.float32)
    broken = zeros.copy()
    broken[3, 4] = np.inf
    for change in (zeros, broken, np.ones(8192, np.float32), np.ones((10, 10), np.float32)):
        assert choices(Delta(*pair(change))) == []
    with pytest.raises(NonFiniteError, match="only an exact codec"):
        encode(Delta(*pair(broken)), CodecChoice("sign"))


@pytest.mark.parametrize(
    "choice",
    [
        CodecChoice("sine"),
        CodecChoice("sign", {"scales": "column"}),
        CodecChoice("lloyd2", {"scales": 1}),
        CodecChoice("sparse"),
        CodecChoice("sparse", {"density": 0.0}),
        CodecChoice("sparse", {"density": math.nan}),
        CodecChoice("sparse", {"density": 0.5, "values": "float8"}),
        CodecChoice("low_rank", {"rank": 17}),
        CodecChoice("low_rank", {"rank": 2.0}),
        CodecChoice("banded"),
        CodecChoice("banded", {"bits": -1}),
        CodecChoice("banded", {"bands": [[1, 5]]}),
        CodecChoice("banded", {"bands": [[17, 2]]}),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(choice):
    delta = Delta(*pair(drawn("normal", (16, 20))))
    with pytest.raises(UsageError):
        encode(delta, choice)


def test_shapes_and_dtypes_that_have_no_difference_are_refused():
    one = stored(np.zeros((4, 6), np.float32))
    with pytest.raises(CompatibilityError, match="store it whole"):
        Delta(stored(np.zeros((4, 5), np.float32)), one)
    whole_numbers = stored(np.zeros((64, 128), np.int32), DType.INT32)
    with pytest.raises(CompatibilityError, match="store it exactly"):
        choices(Delta(whole_numbers, whole_numbers))


def test_nothing_changed_has_no_error_and_a_change_of_nothing_an_infinite_one():
    base, target = pair(drawn("normal", (16, 20)))
    encoded = encode(Delta(base, target), CodecChoice("sign"))
    assert measured_error(encoded, base, base) == math.inf
    zeros = encode(Delta(base, base), CodecChoice("sign"))
    assert measured_error(zeros, base, base) == 0.0


@pytest.mark.parametrize("choice", EVERY, ids=str)
@pytest.mark.parametrize(
    "dtype",
    [DType.FLOAT64, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT8_E4M3FN, DType.FLOAT8_E5M2],
    ids=str,
)
def test_every_float_dtype_is_decoded_nearer_to_the_target_than_the_base_is(dtype, choice):
    rng = np.random.default_rng(7)
    base, moved = rng.normal(size=(32, 48)), rng.normal(size=(3, 32, 48))
    change = moved[0] + 3 * np.outer(moved[1][:, 0], moved[2][0])

    def cast(values: np.ndarray):
        single = values.astype(np.float32)
        if dtype is DType.FLOAT64:
            return stored(values, dtype)
        if dtype is DType.BFLOAT16:
            return stored(to_bfloat16(single), dtype)
        if dtype is DType.FLOAT16:
            return stored(single.astype(np.float16), dtype)
        if dtype is DType.FLOAT8_E5M2:
            return stored((single.astype(np.float16).view(np.uint16) >> 8).astype(np.uint8), dtype)
        # Positive and negative numbers of about 2^-6 to 240, cut to three fraction bits.
        bits = np.clip(np.abs(single), 0.02, 240).astype(np.float32).view(np.uint32)
        words = (bits >> 20).astype(np.int64) - ((127 - 7) << 3)
        return stored((words | (single < 0) << 7).astype(np.uint8), dtype)

    known, target = cast(base), cast(base + change)
    encoded = encode(Delta(known, target), choice)
    assert measured_error(encoded, known, target) < 0.98


@pytest.mark.parametrize("choice", EVERY, ids=str)
def test_changes_too_large_to_hold_give_the_same_bytes(choice, monkeypatch):
    base, target = pair(drawn("laplace", (64, 300)))
    held = encode(Delta(base, target), choice)
    monkeypatch.setattr("weightsmith.deltas.codecs.delta_codec._HELD", 0)
    again = encode(Delta(base, target), choice)
    for part, array in held.parts.items():
        np.testing.assert_array_equal(array, again.parts[part])
