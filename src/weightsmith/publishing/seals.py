"""The seal of a single output file: by it weightsmith knows a file as its own, of a kind, and as it was written.

    JSON          the last entries of the object, `kind` and `seal` (see `sealing`)
    HTML, SVG     the last line, a comment
    YAML          the last line, a comment
    PNG           the last chunk but one, tEXt
    safetensors   the entry `weightsmith_seal` of the metadata

Each has the SHA-256 of everything else in the file. It is no signature: who can write the file can seal it again.
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from weightsmith.publishing.sealing import sealed, unsealed
from weightsmith.tensors import LARGEST_HEADER_BYTES, DType, encode_header, pwrite_all

# The key of the seal in the metadata of a safetensors file.
METADATA = "weightsmith_seal"
_BLANK = "0" * 64
_COMMENT = re.compile(rb"(<!--|#) weightsmith [a-z]+ sha256:[0-9a-f]{64}( -->)?\n\Z")
_PNG = b"\x89PNG\r\n\x1a\n"
# Bytes of the last chunk of a PNG, and of the end of a file that its seal is looked for in.
_END_OF_PNG = 12
_TAIL = 256
_LENGTH = 8
_CHUNK = 1 << 20


def sealed_json(content: Mapping[str, object], kind: str) -> bytes:
    """A JSON object as the text of a file of a kind, sealed."""
    return sealed({**content, "kind": kind})


def with_seal(data: bytes, kind: str) -> bytes:
    """A file of HTML, SVG, PNG or YAML with its seal."""
    mark = _mark(kind, hashlib.sha256(data).hexdigest())
    if data.startswith(_PNG):
        return data[:-_END_OF_PNG] + _text_chunk(mark) + data[-_END_OF_PNG:]
    if data.lstrip().startswith(b"<"):
        return data + b"<!-- weightsmith " + mark + b" -->\n"
    return data + b"# weightsmith " + mark + b"\n"


def write_sealed_tensors(
    descriptor: int,
    path: Path,
    entries: Iterable[tuple[str, DType, tuple[int, ...]]],
    data: Iterable[memoryview],
    metadata: Mapping[str, str],
    kind: str,
) -> None:
    """Write a safetensors file of a kind with its seal; `data` has the bytes of the entries in their order.

    Raises what making the data raises, ResourceError and OutputError.
    """
    blank = f"{kind} sha256:{_BLANK}"
    header = encode_header(entries, {METADATA: blank, **metadata})
    state = hashlib.sha256(header)
    pwrite_all(descriptor, header, 0, path)
    at = len(header)
    for piece in data:
        state.update(piece)
        pwrite_all(descriptor, piece, at, path)
        at += piece.nbytes
    digits = header.index(blank.encode()) + len(blank) - len(_BLANK)
    pwrite_all(descriptor, state.hexdigest().encode(), digits, path)


def is_sealed_as(path: Path, kind: str) -> bool:
    """Whether a file has the seal of a kind, and nothing in it was changed since; no more is read than that takes.

    A pipe or a device has none, and is not waited for.
    """
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            start = file.read(_LENGTH + 1)
            if start[_LENGTH:] == b"{":
                return _is_sealed_header(path, kind)
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            tail = file.read()
        if start.startswith(b"{"):
            return b'"seal": "sha256:' in tail and unsealed(path.read_bytes()).get("kind") == kind
        if start.startswith(_PNG):
            return b"weightsmith\0" in tail and _is_sealed_png(path.read_bytes(), kind)
        found = _COMMENT.search(tail)
        if found is None:
            return False
        data = path.read_bytes()
        return with_seal(data[: -len(found[0])], kind) == data
    except (OSError, ValueError):
        return False


def _is_sealed_png(data: bytes, kind: str) -> bool:
    length = len(_text_chunk(_mark(kind, _BLANK)))
    return with_seal(data[: -_END_OF_PNG - length] + data[-_END_OF_PNG:], kind) == data


def _is_sealed_header(path: Path, kind: str) -> bool:
    with path.open("rb") as file:
        length = file.read(_LENGTH)
        header = length + file.read(min(int.from_bytes(length, "little"), LARGEST_HEADER_BYTES))
        found = re.search(f'"{METADATA}":"{kind} sha256:([0-9a-f]{{64}})"'.encode(), header)
        if found is None:
            return False
        state = hashlib.sha256(header[: found.start(1)] + _BLANK.encode() + header[found.end(1) :])
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest().encode() == found[1]


def _mark(kind: str, digits: str) -> bytes:
    return f"{kind} sha256:{digits}".encode()


def _text_chunk(mark: bytes) -> bytes:
    """A PNG chunk: length, type and content, and the CRC of the latter two."""
    content = b"tEXtweightsmith\0" + mark
    return (len(content) - 4).to_bytes(4, "big") + content + zlib.crc32(content).to_bytes(4, "big")
