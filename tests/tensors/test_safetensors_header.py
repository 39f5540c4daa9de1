"""One test per rule of the safetensors format, and per rule of ours that is stricter than the library's."""

from __future__ import annotations

import gc
import json
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from weightsmith.errors import CheckpointError, OutputError
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.files.safetensors_header import encode_header, parse_file, read_header


def entry(
    dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8), **extra: Any
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **extra}


def write(
    folder: Path, header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None
) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "x.safetensors"
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def library_accepts(path: Path) -> bool:
    try:
        safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError:
        return False
    return True


GOOD = {"a": entry(), "b": entry("BF16", (3,), (8, 14))}


def test_a_plain_file_is_read_with_absolute_offsets_in_data_order(tmp_path: Path) -> None:
    header = {"b": GOOD["b"], "__metadata__": {"format": "pt"}, "a": GOOD["a"]}
    path = write(tmp_path, header, bytes(14))
    found = parse_file(path)
    assert [(t.name, t.dtype, t.shape) for t in found.tensors] == [
        ("a", DType.FLOAT32, (2,)),
        ("b", DType.BFLOAT16, (3,)),
    ]
    assert found.data_start == path.stat().st_size - 14
    assert [t.offset - found.data_start for t in found.tensors] == [0, 8]
    assert found.metadata == {"format": "pt"}


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_file_too_short_for_a_length_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "x").write_bytes(bytes(size))
    with pytest.raises(CheckpointError, match=f"has {size} bytes"):
        read_header(tmp_path / "x")


@pytest.mark.parametrize("length", [0, 1, 7])
def test_a_header_length_that_cuts_the_header_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(CheckpointError):
        read_header(write(tmp_path, GOOD, bytes(14), length))


@pytest.mark.parametrize("extra", [1, 1000, 2**31, 2**63, 2**64 - 1])
def test_a_header_length_beyond_the_file_or_the_limit_is_refused(
    tmp_path: Path, extra: int
) -> None:
    length = min(len(json.dumps(GOOD)) + 14 + extra, 2**64 - 1)
    with pytest.raises(CheckpointError, match=f"header of {length} bytes"):
        read_header(write(tmp_path, GOOD, bytes(14), length))


def test_a_header_above_100_mb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, b"", 100_000_001)
    os.truncate(path, 300_000_000)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="limit is 100000000"):
        read_header(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("start", [b" ", b"\n", b"\xef\xbb\xbf", b"[", b"\0"])
def test_a_header_must_begin_with_a_brace(tmp_path: Path, start: bytes) -> None:
    with pytest.raises(CheckpointError, match="byte 8 is not"):
        read_header(write(tmp_path, start + json.dumps(GOOD).encode(), bytes(14)))


def test_a_header_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not UTF-8"):
        read_header(write(tmp_path, b'{"\xff":{}}'))


@pytest.mark.parametrize("tail", [b"\0", b"\0\0\0", b"x", b"{}"])
def test_bytes_after_the_json_are_refused(tmp_path: Path, tail: bytes) -> None:
    with pytest.raises(CheckpointError, match="not JSON"):
        read_header(write(tmp_path, json.dumps(GOOD).encode() + tail, bytes(14)))


def test_padding_with_spaces_is_accepted(tmp_path: Path) -> None:
    assert len(read_header(write(tmp_path, json.dumps(GOOD).encode() + b"  \n", bytes(14)))) == 2


EMPTY = b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
DUPLICATES = {
    "tensor": b'{"a":' + EMPTY + b',"a":' + EMPTY + b"}",
    "escaped tensor": b'{"a":' + EMPTY + b',"\\u0061":' + EMPTY + b"}",
    "field": b'{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
    "metadata": b'{"__metadata__":{"k":"1","k":"2"}}',
    "metadata block": b'{"__metadata__":{},"__metadata__":{}}',
}


@pytest.mark.parametrize("kind", DUPLICATES)
def test_duplicate_keys_are_refused_at_every_level(tmp_path: Path, kind: str) -> None:
    with pytest.raises(CheckpointError, match="appears twice"):
        read_header(write(tmp_path, DUPLICATES[kind]))


@pytest.mark.parametrize(
    "metadata", [1, None, [], "x", {"k": 1}, {"k": None}, {"k": {}}, {"k": ["v"]}]
)
def test_metadata_must_map_text_to_text(tmp_path: Path, metadata: Any) -> None:
    with pytest.raises(CheckpointError, match="not a map from text to text"):
        read_header(write(tmp_path, {"__metadata__": metadata}))


def test_metadata_with_a_lone_surrogate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="surrogate"):
        read_header(write(tmp_path, b'{"__metadata__":{"k":"\\ud800"}}'))


@pytest.mark.parametrize("code", ["", "f32", "BF15", "F32 ", None, 7, ["F32"]])
def test_an_unknown_dtype_is_refused(tmp_path: Path, code: Any) -> None:
    with pytest.raises(CheckpointError, match=r"tensor 'a'.*unknown"):
        read_header(write(tmp_path, {"a": entry(code)}, bytes(8)))


@pytest.mark.parametrize("code", ["F4", "F8_E8M0", "F6_E2M3", "F6_E3M2"])
def test_a_dtype_that_only_the_library_knows_is_refused_with_the_reason(
    tmp_path: Path, code: str
) -> None:
    with pytest.raises(CheckpointError, match="scales"):
        read_header(write(tmp_path, {"a": entry(code, (16,), (0, 16))}, bytes(16)))


@pytest.mark.parametrize(
    "shape",
    [[-2], [2.0], [True, 2], ["2"], [None], [[2]], "2", 2, None, {"0": 2}, [1e400], [2**64 + 2]],
)
def test_a_shape_must_be_natural_numbers(tmp_path: Path, shape: Any) -> None:
    with pytest.raises(CheckpointError, match=r"tensor 'a'|not a number of JSON"):
        read_header(write(tmp_path, {"a": entry(shape=shape)}, bytes(8)))


@pytest.mark.parametrize(
    "offsets",
    [
        [8, 0],
        [-8, 0],
        [0],
        [0, 8, 8],
        [0.0, 8],
        [False, 8],
        [0, "8"],
        None,
        8,
        {},
        [0, 2**63],
        [2**63, 2**63 + 8],
    ],
)
def test_offsets_must_be_a_range_of_the_data(tmp_path: Path, offsets: Any) -> None:
    with pytest.raises(CheckpointError):
        read_header(write(tmp_path, {"a": entry(offsets=offsets)}, bytes(8)))


@pytest.mark.parametrize(
    ("shape", "end"), [((3,), 8), ((1,), 8), ((), 8), ((2, 2), 8), ((0,), 8), ((2,), 0)]
)
def test_the_range_must_have_the_size_of_shape_and_dtype(
    tmp_path: Path, shape: tuple[int, ...], end: int
) -> None:
    with pytest.raises(CheckpointError, match=r"tensor 'a'.*cannot fill bytes 0 to"):
        read_header(write(tmp_path, {"a": entry(shape=shape, offsets=(0, end))}, bytes(end)))


@pytest.mark.parametrize(
    "shape", [[2**32, 2**32], [2**40, 2**40, 0], [0, 2**70], [2**62, 4], [2**63, 0]]
)
def test_a_product_that_overflows_is_refused_even_behind_a_zero(
    tmp_path: Path, shape: list[int]
) -> None:
    with pytest.raises(CheckpointError, match="tensor 'a'"):
        read_header(write(tmp_path, {"a": entry(shape=shape, offsets=(0, 0))}))


def test_a_rank_of_64_is_the_highest(tmp_path: Path) -> None:
    assert (
        read_header(write(tmp_path, {"a": entry(shape=[1] * 63 + [2])}, bytes(8)))[0].shape[-1] == 2
    )
    with pytest.raises(CheckpointError, match="too many or too long axes"):
        read_header(write(tmp_path, {"a": entry(shape=[1] * 64 + [2])}, bytes(8)))


def test_an_overlap_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tensor 'b' overlaps"):
        read_header(write(tmp_path, {"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)))


def test_two_tensors_with_the_same_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tensor 'b' overlaps"):
        read_header(write(tmp_path, {"a": entry(), "b": entry()}, bytes(8)))


@pytest.mark.parametrize(
    "header", [{"a": entry(offsets=(1, 9))}, {"a": entry(), "b": entry(offsets=(9, 17))}]
)
def test_a_hole_is_refused(tmp_path: Path, header: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="leaves a hole"):
        read_header(write(tmp_path, header, bytes(17)))


def test_bytes_after_the_last_tensor_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="1 bytes follow the last tensor"):
        read_header(write(tmp_path, GOOD, bytes(15)))


def test_a_truncated_file_is_refused_with_the_byte(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, bytes(13))
    with pytest.raises(CheckpointError, match=f"end at byte {path.stat().st_size + 1} but"):
        read_header(path)


@pytest.mark.parametrize(
    "value", [None, 3, [], "x", {}, {"dtype": "F32"}, entry(more=1), entry(note="x")]
)
def test_an_entry_must_have_exactly_the_three_fields(tmp_path: Path, value: Any) -> None:
    with pytest.raises(CheckpointError, match="exactly the fields"):
        read_header(write(tmp_path, {"a": value}, bytes(8)))


@pytest.mark.parametrize("name", ["", "a\0b", "a\nb", "\x1b[31mred", "a\x7f", "\x9bx", "\ud800"])
def test_a_name_that_is_empty_or_unprintable_is_refused_and_shown_escaped(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(CheckpointError, match="empty name or control characters") as caught:
        read_header(write(tmp_path, {name: entry()}, bytes(8)))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "a b",
        "naïve",
        "重み",
        "\u202eevil",
        "w" * 65536,
        "layer-0",
        "1" * 30,
    ],
)
def test_a_printable_name_is_only_a_name(tmp_path: Path, name: str) -> None:
    assert read_header(write(tmp_path, {name: entry()}, bytes(8)))[0].name == name


def test_a_long_or_right_to_left_name_is_shown_short_and_escaped(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_header(write(tmp_path, {"\u202e" + "w" * 65536: entry("X")}, bytes(8)))
    assert len(str(caught.value)) < 1000
    assert "\u202e" not in str(caught.value)


@pytest.mark.parametrize(
    "number",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        "-0",
        "1" * 30,
        "1" * 5000,
        "08",
        "+8",
        "0x8",
        "8.0",
        "1_0",
    ],
)
def test_an_odd_number_is_refused(tmp_path: Path, number: str) -> None:
    text = f'{{"a":{{"dtype":"U8","shape":[{number}],"data_offsets":[0,8]}}}}'
    with pytest.raises(CheckpointError):
        read_header(write(tmp_path, text.encode(), bytes(8)))


def test_a_negative_zero_is_no_length(tmp_path: Path) -> None:
    text = b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'
    with pytest.raises(CheckpointError, match="'-0' is not an integer"):
        read_header(write(tmp_path, text))


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(tmp_path: Path, enabled: bool) -> None:
    path = write(tmp_path, {"a": entry("X")})
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(CheckpointError):
            read_header(path)
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"a":[', b'{"__metadata__":['])
def test_deep_nesting_is_refused_quickly(tmp_path: Path, opening: bytes) -> None:
    started = time.process_time()
    with pytest.raises(CheckpointError):
        read_header(write(tmp_path, b'{"x":' + opening * 100_000))
    assert time.process_time() - started < 2


def test_empty_tensors_and_no_tensors_are_fine(tmp_path: Path) -> None:
    assert read_header(write(tmp_path, {})) == []
    header = {
        "a": entry(shape=[0, 3], offsets=[0, 0]),
        "b": entry(),
        "c": entry(shape=[0], offsets=[8, 8]),
    }
    assert [t.name for t in read_header(write(tmp_path, header, bytes(8)))] == ["a", "b", "c"]


def test_the_error_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        read_header(write(tmp_path, {"a": entry("X")}, bytes(8)))


def test_twenty_thousand_tensors_are_read_fast(tmp_path: Path) -> None:
    entries = [
        (f"model.layers.{i}.mlp.experts.weight", DType.BFLOAT16, (2, 2)) for i in range(20_000)
    ]
    path = tmp_path / "x.safetensors"
    path.write_bytes(encode_header(entries) + bytes(8 * 20_000))
    read_header(path)
    started = time.process_time()
    assert len(read_header(path)) == 20_000
    assert time.process_time() - started < 0.8


# Writing --------------------------------------------------------------------------------------------------------


def test_an_encoded_header_is_what_the_library_writes() -> None:
    arrays = {
        "b": np.zeros((2, 3), np.float32),
        "a.ü": np.zeros((), np.float32),
        'q"\\': np.zeros(0, np.float32),
    }
    theirs = safetensors.numpy.save(arrays, {"format": "pt"})
    ours = encode_header([(n, DType.FLOAT32, arrays[n].shape) for n in sorted(arrays)])
    assert ours == theirs[: len(ours)]
    assert len(theirs) == len(ours) + 4 * (6 + 1)


def test_an_encoded_header_is_aligned_and_accepted_by_the_library(tmp_path: Path) -> None:
    for length in range(1, 20):
        header = encode_header(
            [("n" * length, DType.BFLOAT16, (3,))], {"format": "pt", "note": "ü"}
        )
        assert len(header) % 8 == 0
        path = tmp_path / "x.safetensors"
        path.write_bytes(header + bytes(6))
        assert library_accepts(path)
        assert parse_file(path).metadata == {"format": "pt", "note": "ü"}


@pytest.mark.parametrize("names", [[""], ["a\n"], ["__metadata__"], ["a", "a"], ["\ud800"]])
def test_a_name_that_could_not_be_read_back_is_not_written(names: list[str]) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        encode_header([(name, DType.INT8, (1,)) for name in names])


def test_a_header_above_the_limit_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightsmith.tensors.files.safetensors_header.LARGEST_HEADER_BYTES", 1000)
    entries = [(f"{i}" * 100, DType.INT8, (1,)) for i in range(8)]
    assert len(encode_header(entries[:5])) <= 1008
    with pytest.raises(OutputError, match="smaller shards"):
        encode_header(entries)
