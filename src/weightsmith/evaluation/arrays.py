"""Arrays of an npz file, of which headers are read first: nothing is unpacked that they do not ask for."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import Malformed, UsageError
from weightsmith.tensors import format_size
from weightsmith.wording import shown

_SUFFIX = ".npy"
# An array that takes more memory than this and many times what it takes in the file is none of measured numbers.
_SMALL_BYTES = 2**28
_MOST_TIMES = 100
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class _Header:
    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of one item, or of the whole where there is no axis of items."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


def read_arrays(
    path: Path, named: str, wanted: Sequence[str], optional: Sequence[str], limit: int | None
) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file that are wanted, `limit` items of them at most, and optional ones if they are there.

    `named` begins every message. Raises UsageError for a file that is none, for a missing or damaged array, one of
    Python objects, and one that unpacks to far more than it takes in the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = {info.filename.removesuffix(_SUFFIX): info for info in archive.infolist()}
            missing = next((name for name in wanted if name not in names), None)
            if missing is not None:
                listed = ", ".join(shown(name)[1:-1] for name in list(names)[:8]) or "none"
                raise UsageError(f"{named} has no array {missing!r}; it has {listed}.")
            present = [name for name in optional if name in names and name not in wanted]
            return {
                name: _read(archive, names[name], limit if name in wanted else None)
                for name in (*wanted, *present)
            }
    except Malformed as problem:
        raise UsageError(f"{named} cannot be used, since {problem}.") from None
    except OSError as problem:
        raise UsageError(
            f"{named} cannot be read ({problem.strerror or 'it is damaged'})."
        ) from None
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        RuntimeError,
        NotImplementedError,
        ValueError,
    ):
        raise UsageError(
            f"{named} is no npz file of plain arrays, or damaged; write one with numpy.savez."
        ) from None


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int | None) -> NDArray[Any]:
    name = shown(info.filename.removesuffix(_SUFFIX))
    with archive.open(info) as file:
        header = _header(file, name)
        start = file.tell()
        found = info.file_size - start
        if found != header.nbytes:
            raise Malformed(
                f"the array {name} says that its shape is {list(header.shape)}, but it has {found} bytes"
            )
        rows = header.shape[0] if header.shape else 1
        if limit is not None and not header.by_columns:
            rows = min(rows, limit)
        needed = rows * header.row_bytes
        if needed > max(_SMALL_BYTES, _MOST_TIMES * info.compress_size):
            raise Malformed(
                f"the array {name} takes {format_size(needed)}, but {format_size(info.compress_size)} in the file; "
                "store it uncompressed if it is meant"
            )
        data = _filled(file, needed, name)
    shape = (rows, *header.shape[1:]) if header.shape else ()
    return np.frombuffer(data, header.dtype).reshape(shape, order="F" if header.by_columns else "C")


def _filled(file: IO[bytes], needed: int, name: str) -> bytearray:
    data = bytearray(needed)
    done = 0
    while done < needed:
        part = file.read(min(needed - done, _CHUNK))
        if not part:
            raise Malformed(f"the array {name} is truncated")
        data[done : done + len(part)] = part
        done += len(part)
    return data


def _header(file: IO[bytes], name: str) -> _Header:
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, by_columns, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise Malformed(f"the array {name} is of a version that is not known here")
    except Malformed:
        raise
    except Exception:  # noqa: BLE001 - numpy evaluates the header as a literal, which raises everything
        raise Malformed(f"the header of the array {name} is damaged") from None
    if dtype.hasobject:
        raise Malformed(f"the array {name} holds Python objects, which are never unpickled")
    if dtype.names is not None:
        raise Malformed(f"the array {name} holds records, not numbers")
    return _Header(tuple(shape), bool(by_columns), dtype)
