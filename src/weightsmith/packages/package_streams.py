"""The streams of a package on their way into one safetensors file, whose header is known only when all are there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from weightsmith.publishing import SUFFIX, staged_file
from weightsmith.tensors import (
    DType,
    LazyTensor,
    chunks_of,
    encode_header,
    piece_digest,
    piece_elements,
    pieces,
    pwrite_all,
    sync_file,
    tensor_digest,
)

METADATA: Mapping[str, str] = {"format": "weightsmith-delta"}
_CHUNK = 1 << 22
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class StreamFile:
    """A safetensors file that grows stream by stream; leaving it after an error removes what was written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.nbytes = 0
        self._entries: list[tuple[str, DType, tuple[int, ...]]] = []
        self._data = path.with_name(f".{path.name}.data{SUFFIX}")
        self._descriptor = os.open(self._data, _FLAGS, 0o666)

    def add(self, stream: LazyTensor, name: str) -> str:
        """Write a stream behind those before it; returns its digest. Raises ResourceError or OutputError."""
        digests = []
        length = min(piece_elements(stream.shape), stream.numel)
        buffer = memoryview(bytearray(length * stream.dtype.itemsize))
        for start, stop in pieces(stream.shape):
            piece = buffer[: (stop - start) * stream.dtype.itemsize]
            stream.read_into(start, stop, piece)
            pwrite_all(self._descriptor, piece, self.nbytes, self.path)
            digests.append(piece_digest(piece))
            self.nbytes += piece.nbytes
        self._entries.append((name, stream.dtype, stream.shape))
        return tensor_digest(stream.dtype, stream.shape, digests)

    def finish(self) -> int:
        """Put the header before the streams, make the file durable under its name; returns its size."""
        header = encode_header(self._entries, METADATA)
        final = os.open(self.path, _FLAGS, 0o666)
        try:
            pwrite_all(final, header, 0, self.path)
            for at in range(0, self.nbytes, _CHUNK):
                chunk = os.pread(self._descriptor, min(_CHUNK, self.nbytes - at), at)
                pwrite_all(final, chunk, len(header) + at, self.path)
            sync_file(final, self.path)
        finally:
            os.close(final)
        self.close()
        return len(header) + self.nbytes

    def close(self) -> None:
        """Remove the data that was gathered; what is finished stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._data.unlink(missing_ok=True)

    def __enter__(self) -> StreamFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def write_streams(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Create or replace a file of streams, in a package or among those that packages share.

    A crash leaves either the old or the whole new one. Raises what reading the tensors raises, ResourceError or
    OutputError; then nothing has changed.
    """
    header = encode_header([(name, t.dtype, t.shape) for name, t in tensors.items()], METADATA)
    with staged_file(path) as staged:
        pwrite_all(staged.descriptor, header, 0, path)
        at = len(header)
        for tensor in tensors.values():
            for chunk in chunks_of(tensor):
                pwrite_all(staged.descriptor, chunk, at, path)
                at += len(chunk)
        staged.replace()
