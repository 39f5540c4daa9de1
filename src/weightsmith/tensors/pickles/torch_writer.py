"""Writing a flat dict of tensors as torch.save does: an uncompressed zip archive with a pickle that names storages.

The pickle is put together here, opcode by opcode, so that no class of torch has to be imported to be named in it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from weightsmith.errors import OutputError
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.messages import shown
from weightsmith.tensors.pickles.strided import contiguous_strides
from weightsmith.tensors.stored import LazyTensor, chunks_of

_STORAGES = {
    DType.FLOAT64: "DoubleStorage",
    DType.FLOAT32: "FloatStorage",
    DType.FLOAT16: "HalfStorage",
    DType.BFLOAT16: "BFloat16Storage",
    DType.INT64: "LongStorage",
    DType.INT32: "IntStorage",
    DType.INT16: "ShortStorage",
    DType.INT8: "CharStorage",
    DType.UINT8: "ByteStorage",
    DType.BOOL: "BoolStorage",
}
_FOLDER = "archive"
_EPOCH = (1980, 1, 1, 0, 0, 0)
# As torch does, so that a file can be mapped into memory.
_ALIGNMENT = 64
_LOCAL_HEADER, _EXTRA_HEADER, _ZIP64_EXTRA = 30, 4, 20
_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def check_torch_dtype(name: str, dtype: DType) -> None:
    """Raise OutputError for a dtype that torch has no storage of its own for, as the 8-bit floats."""
    if dtype not in _STORAGES:
        raise OutputError(
            f"Tensor {shown(name)} is to be written into a file of torch.save, which cannot hold {dtype}; give a "
            "`dtype:` of 16 bits or more, or convert that file to safetensors."
        )


def write_torch_file(file: BinaryIO, tensors: Sequence[LazyTensor]) -> None:
    """Write tensors under their names into an open, empty file; each is read a few megabytes at a time.

    The same tensors give the same bytes. Raises OutputError as `check_torch_dtype` does, and what reading raises.
    """
    for tensor in tensors:
        check_torch_dtype(tensor.name, tensor.dtype)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", [b"".join(_pickled(tensors))])
        _add(archive, "byteorder", [b"little"])
        for key, tensor in enumerate(tensors):
            _add(archive, f"data/{key}", chunks_of(tensor), tensor.nbytes)
        _add(archive, "version", [b"3\n"])


def _add(
    archive: zipfile.ZipFile,
    name: str,
    pieces: Iterable[bytes | bytearray],
    size: int = 0,
) -> None:
    member = zipfile.ZipInfo(f"{_FOLDER}/{name}", _EPOCH)
    member.file_size = size
    is_large = 1.05 * size > zipfile.ZIP64_LIMIT
    assert archive.fp is not None
    start = archive.fp.tell() + _LOCAL_HEADER + len(member.filename) + _EXTRA_HEADER
    padding = -(start + _ZIP64_EXTRA * is_large) % _ALIGNMENT
    member.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    with archive.open(member, "w", force_zip64=is_large) as stored:
        for piece in pieces:
            stored.write(piece)


def _pickled(tensors: Sequence[LazyTensor]) -> Iterator[bytes]:
    """The dict as a pickle of protocol 2."""
    yield b"\x80\x02}("
    for key, tensor in enumerate(tensors):
        storage = f"ctorch\n{_STORAGES[tensor.dtype]}\n".encode()
        shape = tuple(tensor.shape)
        yield _text(tensor.name)
        yield b"ctorch._utils\n_rebuild_tensor_v2\n("
        yield b"(" + _text("storage") + storage + _text(str(key)) + _text("cpu")
        yield _integer(tensor.numel) + b"tQ" + _integer(0)
        yield _tuple(shape) + _tuple(contiguous_strides(shape))
        yield b"\x89" + _ORDERED_DICT + b"tR"
    yield b"u."


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def _integer(number: int) -> bytes:
    if number < 2**31:
        return b"J" + number.to_bytes(4, "little")
    return b"\x8a\x08" + number.to_bytes(8, "little")


def _tuple(numbers: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_integer, numbers)) + b"t"
