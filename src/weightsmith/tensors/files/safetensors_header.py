"""The header of a safetensors file: read more strictly than the safetensors library does, and
written.

A file is 8 bytes of little-endian header length N, N bytes of JSON, and the data. The JSON maps
each tensor's name to its dtype, its shape and its [begin, end) offsets into the data; together
these must cover the data exactly. Everything is checked before any byte of data is trusted.
Stricter than the library: duplicate keys, unknown fields, empty or unprintable names, a rank above
64 and a header that does not begin with "{" are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter, mul
from pathlib import Path
from typing import Any

from weightsmith.errors import CheckpointError, OutputError
from weightsmith.tensors.dtypes import SAFETENSORS_CODES, DType, unknown_code
from weightsmith.tensors.files.open_files import OPEN_FILES, FileIdentity, read_bytes
from weightsmith.tensors.files.parsed_once import ParsedOnce
from weightsmith.tensors.files.strict_json import collection_paused, parse_json
from weightsmith.tensors.messages import is_printable_name, shown
from weightsmith.tensors.stored import StoredTensor

LENGTH_BYTES = 8
LARGEST_HEADER_BYTES = 100_000_000
LARGEST_RANK = 64
ALIGNMENT = 8
METADATA_KEY = "__metadata__"
DEFAULT_METADATA: Mapping[str, str] = {"format": "pt"}

_FIELDS = {"dtype", "shape", "data_offsets"}
_LARGEST_COUNT = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What a header says: the tensors in the order of their data, the metadata, the data's first
    byte.
    """

    tensors: list[StoredTensor]
    metadata: dict[str, str]
    data_start: int


def read_header(path: Path) -> list[StoredTensor]:
    """The tensors of a safetensors file in the order of their data, checked as `parse_file` does."""
    return parse_file(path).tensors


def parse_file(path: Path) -> SafetensorsHeader:
    """Read and check the header of a safetensors file; no tensor data is read.

    Raises `CheckpointError`, naming file, tensor and byte, for anything that the format does not
    allow.
    """
    with OPEN_FILES.opened(path) as (descriptor, identity):
        size = identity.size
        if size < LENGTH_BYTES:
            raise _refusal(path, f"the file has {size} bytes, too few for a safetensors header")
        prefix = read_bytes(descriptor, path, 0, LENGTH_BYTES, "the header length")
        length = int.from_bytes(prefix, "little")
        if length > LARGEST_HEADER_BYTES:
            limit = LARGEST_HEADER_BYTES
            raise _refusal(
                path, f"byte 0 announces a header of {length} bytes, the limit is {limit}"
            )
        if LENGTH_BYTES + length > size:
            raise _refusal(path, f"byte 0 announces a header of {length} bytes in a file of {size}")
        header = read_bytes(descriptor, path, LENGTH_BYTES, length, "the header")
    with collection_paused():
        return parse_header(header, path, identity)


def parse_header(header: bytes, path: Path, identity: FileIdentity) -> SafetensorsHeader:
    """Check a header's JSON bytes against the size of its file; raises `CheckpointError`."""
    if header[:1] != b"{":
        raise _refusal(path, "byte 8 is not '{', so this is not a safetensors file")
    data_start = LENGTH_BYTES + len(header)
    listing = _LISTINGS.of(header, lambda: _listing(header, path, data_start))
    _check_end(data_start + listing.nbytes, path, identity.size)
    tensors = [
        StoredTensor(name, form.dtype, form.shape, path, data_start + begin, None, identity)
        for name, form, begin in listing.entries
    ]
    return SafetensorsHeader(tensors, dict(listing.metadata), data_start)


def _listing(header: bytes, path: Path, data_start: int) -> _Listing:
    entries: dict[str, Any] = parse_json(header, f"{shown(path)}: the header")
    metadata = _checked_metadata(entries.pop(METADATA_KEY, {}), path)
    _check_names(entries, path)
    forms: _Forms = {}
    checked = [_checked_entry(name, entry, path, forms) for name, entry in entries.items()]
    # Stable, so that empty tensors at one offset keep the header's order.
    checked.sort(key=itemgetter(2))
    return _Listing(checked, metadata, _covered(checked, path, data_start))


def _refusal(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{shown(path)}: {reason}; the file is damaged or hostile, fetch it again."
    )


def _tensor_refusal(path: Path, name: str, reason: str) -> CheckpointError:
    return _refusal(path, f"tensor {shown(name)} {reason}")


def _checked_metadata(metadata: object, path: Path) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _refusal(path, f"{METADATA_KEY} is not a map from text to text")
    try:
        "".join((*metadata, *metadata.values())).encode()
    except UnicodeEncodeError:
        raise _refusal(path, f"{METADATA_KEY} holds a lone surrogate") from None
    return metadata


def _check_names(entries: Mapping[str, Any], path: Path) -> None:
    # One search over all names is much faster than one per name.
    if "" not in entries and (not entries or is_printable_name("".join(entries))):
        return
    name = next(name for name in entries if not is_printable_name(name))
    raise _tensor_refusal(path, name, "has an empty name or control characters in it")


@dataclass(frozen=True, slots=True)
class _Form:
    """A dtype and a shape that a tensor may have, and the bytes that it then takes."""

    dtype: DType
    shape: tuple[int, ...]
    nbytes: int


_Forms = dict[tuple[str, tuple[int, ...]], _Form]
# A name, its form, and the first of its bytes, counted from the first of all.
_Entry = tuple[str, _Form, int]


@dataclass(frozen=True, slots=True)
class _Listing:
    """What a header says of any file that it may stand in: the tensors in the order of their data, and its bytes."""

    entries: list[_Entry]
    metadata: dict[str, str]
    nbytes: int


_LISTINGS: ParsedOnce[_Listing] = ParsedOnce(most_bytes=1 << 25)


def _checked_entry(name: str, entry: Any, path: Path, forms: _Forms) -> _Entry:
    if type(entry) is not dict or entry.keys() != _FIELDS:
        raise _tensor_refusal(
            path, name, "does not have exactly the fields dtype, shape, data_offsets"
        )
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(code) is not str:
        raise CheckpointError(f"{shown(path)}: tensor {shown(name)}: {unknown_code(str(code))}")
    if type(shape) is not list or type(offsets) is not list or len(offsets) != 2:
        raise _tensor_refusal(path, name, "has a shape or data_offsets that is not a fitting list")
    for number in shape:
        # The exact type is asked for, because JSON's true would pass as the integer 1.
        if type(number) is not int or number < 0:
            raise _tensor_refusal(path, name, f"has the length {shown(number)} in its shape")
    begin, end = offsets
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        raise _tensor_refusal(path, name, f"has the data_offsets {shown(offsets)}")
    # A file has many tensors of few forms, whose shapes are then one object.
    lengths = tuple(shape)
    form = forms.get((code, lengths))
    if form is None:
        form = forms[code, lengths] = _checked_form(code, lengths, path, name)
    if end - begin != form.nbytes:
        stated = f"of dtype {form.dtype} and shape {shown(shape)}"
        raise _tensor_refusal(path, name, f"{stated} cannot fill bytes {begin} to {end}")
    return name, form, begin


def _checked_form(code: str, shape: tuple[int, ...], path: Path, name: str) -> _Form:
    dtype = SAFETENSORS_CODES.get(code)
    if dtype is None:
        raise CheckpointError(f"{shown(path)}: tensor {shown(name)}: {unknown_code(code)}")
    count = math.prod(shape)
    if len(shape) > LARGEST_RANK or (count == 0 and _overflows(shape)):
        raise _tensor_refusal(
            path, name, f"has a shape with too many or too long axes: {shown(list(shape))}"
        )
    return _Form(dtype, shape, count * dtype.itemsize)


def _overflows(shape: tuple[int, ...]) -> bool:
    """True if a zero hides a product on which a fixed-width reader would overflow."""
    return any(n > _LARGEST_COUNT for n in (*shape, *accumulate(shape, mul)))


def _covered(entries: list[_Entry], path: Path, data_start: int) -> int:
    """The bytes that tensors cover together, with no overlap and no hole."""
    position = 0
    for name, form, begin in entries:
        if begin != position:
            problem = (
                "overlaps the tensor before it" if begin < position else "leaves a hole before it"
            )
            at, wanted = data_start + begin, data_start + position
            raise _tensor_refusal(
                path, name, f"{problem}: it begins at byte {at} instead of {wanted}"
            )
        position += form.nbytes
    return position


def _check_end(position: int, path: Path, file_size: int) -> None:
    """Nothing lacks, and nothing comes after the last tensor."""
    if position > file_size:
        raise _refusal(path, f"the tensors end at byte {position} but the file at byte {file_size}")
    if position < file_size:
        raise _refusal(
            path, f"{file_size - position} bytes follow the last tensor at byte {position}"
        )


def encode_header(
    entries: Iterable[tuple[str, DType, tuple[int, ...]]],
    metadata: Mapping[str, str] = DEFAULT_METADATA,
) -> bytes:
    """The first bytes of a safetensors file, up to its data, for (name, dtype, shape) in data
    order.

    Padded with spaces so that the data begins at a multiple of 8. Raises `OutputError` for a name
    that cannot be written, a name given twice, or a header above the format's limit of 100 MB.
    """
    document: dict[str, Any] = {METADATA_KEY: dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape in entries:
        if name in document or name == METADATA_KEY or not is_printable_name(name):
            raise OutputError(
                f"tensor {shown(name)} cannot be written: its name is empty, reserved, unprintable or "
                "used twice; rename it."
            )
        end = position + math.prod(shape) * dtype.itemsize
        document[name] = {
            "dtype": dtype.safetensors,
            "shape": list(shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    if len(text) > LARGEST_HEADER_BYTES:
        raise OutputError(
            f"the header of one shard would have {len(text)} bytes, above the format's limit of "
            f"{LARGEST_HEADER_BYTES}: choose smaller shards."
        )
    return len(text).to_bytes(LENGTH_BYTES, "little") + text
