"""A sealed file is known as weightsmith's own, of its kind, until any of its bytes is changed."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from weightsmith.publishing.seals import (
    is_sealed_as,
    sealed_json,
    with_seal,
    write_sealed_tensors,
)
from weightsmith.tensors.dtypes import DType


def chunk(name: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


PNG = (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(b"\0\x7f"))
    + chunk(b"IEND", b"")
)
HTML = b"<!doctype html>\n<title>x</title>\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0"/></svg>\n'
TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}


def write(path: Path, form: str) -> Path:
    if form == "json":
        path.write_bytes(sealed_json({"schema": 1, "scores": [0.5, None]}, "picture"))
    elif form == "safetensors":
        entries = [(name, DType.FLOAT32, array.shape) for name, array in TENSORS.items()]
        data = (array.reshape(-1).view(np.uint8).data for array in TENSORS.values())
        with path.open("wb") as file:
            write_sealed_tensors(file.fileno(), path, entries, data, {"format": "pt"}, "picture")
    else:
        content = {"html": HTML, "svg": SVG, "png": PNG}[form]
        path.write_bytes(with_seal(content, "picture"))
    return path


FORMS = ("json", "html", "svg", "png", "safetensors")


@pytest.mark.parametrize("form", FORMS)
def test_a_sealed_file_is_known_and_only_as_its_kind(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "file", form)
    assert is_sealed_as(path, "picture")
    assert not is_sealed_as(path, "report")
    assert not is_sealed_as(path, "pict")


@pytest.mark.parametrize("form", FORMS)
def test_every_flipped_bit_is_noticed(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "file", form)
    data = path.read_bytes()
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << (at % 8)
        path.write_bytes(changed)
        assert not is_sealed_as(path, "picture"), at


@pytest.mark.parametrize("form", FORMS)
def test_a_byte_more_or_less_is_noticed(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "file", form)
    data = path.read_bytes()
    for changed in (data[:-1], data[1:], data + b"\n", data + data, b"", b"{", data[:9]):
        path.write_bytes(changed)
        assert not is_sealed_as(path, "picture")


def test_a_png_is_still_a_png(tmp_path: Path) -> None:
    """Chunks with right lengths and CRCs, the picture's own untouched."""
    data = write(tmp_path / "file", "png").read_bytes()
    at, names = 8, []
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        content = data[at + 4 : at + 8 + length]
        (crc,) = struct.unpack(">I", data[at + 8 + length : at + 12 + length])
        assert crc == zlib.crc32(content)
        names.append(content[:4])
        at += 12 + length
    assert names == [b"IHDR", b"IDAT", b"tEXt", b"IEND"]
    assert hashlib.sha256(PNG).hexdigest().encode() in data


def test_an_svg_is_still_xml_and_json_still_json(tmp_path: Path) -> None:
    assert ET.fromstring(write(tmp_path / "a", "svg").read_bytes()).tag.endswith("svg")
    content = json.loads(write(tmp_path / "b", "json").read_bytes())
    assert list(content) == ["schema", "scores", "kind", "seal"]
    assert content["scores"] == [0.5, None]


def test_other_libraries_read_sealed_tensors(tmp_path: Path) -> None:
    path = write(tmp_path / "file.safetensors", "safetensors")
    with safe_open(path, "numpy") as file:
        assert file.metadata()["format"] == "pt"
        for name, array in TENSORS.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"x" * 300, PNG, HTML, b"\0" * 9, b"\xff" * 8 + b"{"]
)
def test_what_has_no_seal_is_not_known(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert not is_sealed_as(tmp_path / "file", "picture")
    assert not is_sealed_as(tmp_path / "missing", "picture")
    assert not is_sealed_as(tmp_path, "picture")


def test_a_pipe_has_no_seal_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device", "absent"):
        assert not is_sealed_as(tmp_path / name, "adapter")
