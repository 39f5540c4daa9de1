"""Our reader and writer against the safetensors library: round trips, and no file that only we would accept."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.errors import CheckpointError
from weightsmith.tensors.dtypes import SAFETENSORS_CODES, DType
from weightsmith.tensors.files.layout import plan_layout
from weightsmith.tensors.files.open_files import FileIdentity
from weightsmith.tensors.files.safetensors_header import LENGTH_BYTES, parse_header, read_header
from weightsmith.tensors.files.writer import ShardWriter

NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12)
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
ENTRIES = st.dictionaries(
    NAMES.filter(lambda n: n != "__metadata__"),
    st.tuples(st.sampled_from(list(DType)), SHAPES),
    max_size=6,
)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return (
        tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        if tensor.numel()
        else b""
    )


def random_tensor(dtype: DType, shape: tuple[int, ...]) -> torch.Tensor:
    count = math.prod(shape) * dtype.itemsize
    if count == 0:
        return torch.empty(shape, dtype=getattr(torch, dtype.value))
    data = torch.from_numpy(np.random.default_rng(count).integers(0, 2, count, dtype=np.uint8))
    return data.view(getattr(torch, dtype.value)).reshape(shape)


@given(entries=ENTRIES)
def test_what_we_write_the_library_reads(
    entries: dict[str, tuple[DType, tuple[int, ...]]], tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("out")
    tensors = {name: random_tensor(*facts) for name, facts in entries.items()}
    layout = plan_layout([(name, *facts) for name, facts in entries.items()])
    (shard,) = layout.shards
    with ShardWriter.create(folder, shard) as writer:
        for placement in shard.placements:
            writer.write(placement, 0, raw_bytes(tensors[placement.name]))
    found = safetensors.torch.load_file(folder / shard.file_name)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert raw_bytes(found[name]) == raw_bytes(tensor)


@given(entries=ENTRIES)
def test_what_the_library_writes_we_read(
    entries: dict[str, tuple[DType, tuple[int, ...]]], tmp_path_factory: Any
) -> None:
    file = tmp_path_factory.mktemp("in") / "x.safetensors"
    tensors = {name: random_tensor(*facts) for name, facts in entries.items()}
    safetensors.torch.save_file(tensors, file, {"format": "pt"})
    found = {tensor.name: tensor for tensor in read_header(file)}
    assert found.keys() == tensors.keys()
    for name, (dtype, shape) in entries.items():
        buffer = bytearray(found[name].nbytes)
        found[name].read_into(0, found[name].numel, memoryview(buffer))
        assert (found[name].dtype, found[name].shape) == (dtype, shape)
        assert bytes(buffer) == raw_bytes(tensors[name])


# Differential fuzzing ---------------------------------------------------------------------------------------------

PARTS = [
    b'"', b'{', b'}', b'[', b']', b',', b':', b'0', b'-', b'-0', b'8', b'1e1', b'.5',
    b'true', b'null', b'NaN', b'\\u0061', b'\\ud800', b'\xc3\xbc', b'\x00', b'\n',
    b'18446744073709551616', b'9223372036854775808', b'F32', b'BF16', b'F4',
    b'__metadata__', b'"a":', b'"dtype":', b'\\', b'/', b'\xff', b'"x":1,',
    b" ",
]  # fmt: skip


def seed_file(generator: random.Random) -> tuple[bytes, int]:
    document: dict[str, Any] = {}
    position = 0
    if generator.random() < 0.5:
        document["__metadata__"] = {"format": "pt"}
    for i in range(generator.randrange(4)):
        dtype = generator.choice(list(DType))
        shape = [generator.choice([0, 1, 2, 3]) for _ in range(generator.randrange(3))]
        end = position + math.prod(shape) * dtype.itemsize
        document[f"layer-{i}"] = {
            "dtype": dtype.safetensors,
            "shape": shape,
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(document, separators=(",", ":")).encode()
    return text, position


def mutate(text: bytes, generator: random.Random) -> bytes:
    for _ in range(generator.choice([0, 1, 1, 1, 2, 4])):
        at = generator.randrange(len(text) + 1)
        kind = generator.randrange(5)
        if kind == 0:
            text = text[:at] + generator.choice(PARTS) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + generator.randrange(1, 6) :]
        elif kind == 2:
            text = text[:at] + generator.choice(PARTS) + text[at + 1 :]
        elif kind == 3:
            text = text[:at] + bytes([generator.randrange(256)]) + text[at + 1 :]
        else:
            other = generator.randrange(len(text) + 1)
            text = text[:at] + text[min(at, other) : max(at, other)] + text[at:]
    return text


def ours(text: bytes, data_bytes: int) -> dict[str, tuple[str, tuple[int, ...], int]] | None:
    identity = FileIdentity(0, LENGTH_BYTES + len(text) + data_bytes, 0)
    try:
        header = parse_header(text, Path("fuzz.safetensors"), identity)
    except CheckpointError:
        return None
    start = header.data_start
    return {t.name: (t.dtype.safetensors, t.shape, t.offset - start) for t in header.tensors}


def theirs(text: bytes, data_bytes: int) -> dict[str, tuple[str, tuple[int, ...]]] | None:
    try:
        found = safetensors.deserialize(len(text).to_bytes(8, "little") + text + bytes(data_bytes))
    except safetensors.SafetensorError:
        return None
    return {name: (facts["dtype"], tuple(facts["shape"])) for name, facts in found}


def compare(cases: int, seed: int) -> int:
    """Returns how many of the cases both accept, so that a test can see that it tests something."""
    generator = random.Random(seed)
    accepted = 0
    for _ in range(cases):
        text, data_bytes = seed_file(generator)
        text = mutate(text, generator)
        data_bytes += generator.choice([0, 0, 0, 0, 1, -1]) if data_bytes else 0
        mine = ours(text, data_bytes)
        if mine is None:
            continue
        library = theirs(text, data_bytes)
        assert library is not None, (text, data_bytes)
        assert library.keys() == mine.keys(), text
        for name, (code, shape, _) in mine.items():
            assert SAFETENSORS_CODES[code].safetensors == code
            assert library[name][1] == shape, text
        accepted += 1
    return accepted


def test_the_library_accepts_every_mutated_header_that_we_accept() -> None:
    assert 100 < compare(2000, seed=1) < 1900


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(100, 110))
def test_the_library_accepts_every_mutated_header_that_we_accept_at_length(seed: int) -> None:
    assert compare(100_000, seed) > 1000
