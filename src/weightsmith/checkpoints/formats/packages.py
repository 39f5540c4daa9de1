"""Delta packages: a fine-tune kept as small changes of its base, read as a checkpoint that is decoded tile by tile.

    PACKAGE/
      weightsmith-delta.json   what is stored, and of which base (see `package_header`)
      delta.safetensors        the streams
      config.json, tokenizer...  as the fine-tune has them

Streams that several packages of one folder have in common may lie once in `.shared` beside them, each under its
digest. Streams and the base's tensors are compared with their digests before anything is made of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from weightsmith.checkpoints.checkpoint import Behind, Checkpoint, assemble
from weightsmith.checkpoints.copied_files import is_inside
from weightsmith.checkpoints.formats.outside_base import Bases, base_tensor, open_base, part
from weightsmith.checkpoints.formats.package_header import (
    STREAMS,
    PackageHeader,
    PackedPiece,
    PackedTensor,
    read_package_header,
    stream_name,
)
from weightsmith.checkpoints.json_files import read_json
from weightsmith.checkpoints.locate import Location
from weightsmith.deltas import JoinedRows, RoundedTensor, SomeRows, renamed
from weightsmith.errors import CheckpointError
from weightsmith.tensors import DType, LazyTensor, shown
from weightsmith.tensors import read_header as read_safetensors

SHARED = ".shared"
_DAMAGED = "the package is damaged, fetch it or make it again"


def open_located(location: Location, source: str, bases: Bases) -> Checkpoint:
    """A package as the checkpoint that it decodes to; nothing but headers is read.

    Raises CheckpointError for a package that is damaged, and for a base that is not there, or lacks a tensor or has
    another form of it; what the base and the streams hold is compared with their digests when it is first read.
    """
    folder = location.path
    header = read_package_header(folder)
    needs_base = any(tensor.base is not None for tensor in header.tensors.values())
    origin = (
        open_base("package", folder, header.base_reference, header.base_places, bases)
        if needs_base
        else None
    )
    reader = _Reader(folder, header, stored_streams(folder, header), origin)
    tensors: dict[str, LazyTensor] = {}
    for name, packed in header.tensors.items():
        if packed.same_as is not None:
            tensors[name] = renamed(tensors[packed.same_as], name)
        else:
            tensors[name] = reader.tensor(name, packed)
    config = (
        read_json(folder / "config.json") if is_inside(folder / "config.json", folder) else None
    )
    opened = assemble(
        tensors,
        config,
        path=folder,
        source=source,
        hub_id=location.hub_id,
        revision=location.revision,
    )
    if origin is None:
        return opened
    return replace(opened, behind=(Behind(header.base_reference, origin, header.of_base),))


def stored_streams(folder: Path, header: PackageHeader) -> dict[str, LazyTensor]:
    """The streams of a package by name: in its own file, or beside it among those that packages share.

    Raises CheckpointError for files that are damaged or lead out of the folder. A stream that is nowhere is left out.
    """
    file = folder / STREAMS
    if not is_inside(file, folder):
        raise CheckpointError(f"{shown(folder)} has no {STREAMS}: {_DAMAGED}.")
    found: dict[str, LazyTensor] = {tensor.name: tensor for tensor in read_safetensors(file)}
    for name, digest in header.streams.items():
        if name not in found:
            with contextlib.suppress(FileNotFoundError):
                found[name] = renamed(shared_stream(folder.parent / SHARED, digest), name)
    return found


def shared_file(shared: Path, digest: str) -> Path:
    """Where a stream with this digest lies in a folder of shared streams."""
    return shared / f"{digest.rpartition(':')[2]}.safetensors"


def shared_stream(shared: Path, digest: str) -> LazyTensor:
    """A stream that packages share. Raises FileNotFoundError if it is not there, CheckpointError if it is damaged."""
    file = shared_file(shared, digest)
    if not file.exists():
        raise FileNotFoundError(str(file))
    if not is_inside(file, shared):
        raise CheckpointError(f"{shown(file)} is a link that leaves its folder: {_DAMAGED}.")
    tensors = read_safetensors(file)
    if len(tensors) != 1:
        raise CheckpointError(
            f"{shown(file)} holds {len(tensors)} tensors instead of one: {_DAMAGED}."
        )
    return tensors[0]


def as_base(tensor: LazyTensor, dtype: DType, rows: int | None) -> LazyTensor:
    """A base's tensor as changes count from it: no more than `rows` rows, floats rounded to the fine-tune's dtype."""
    if rows is not None and tensor.shape and tensor.shape[0] > rows:
        tensor = SomeRows(tensor, 0, rows)
    if tensor.dtype is dtype or not (tensor.dtype.is_float and dtype.is_float):
        return tensor
    return RoundedTensor(tensor, dtype)


@dataclass(frozen=True, slots=True)
class _Reader:
    """The tensors of one package."""

    folder: Path
    header: PackageHeader
    stored: Mapping[str, LazyTensor]
    base: Checkpoint | None

    def tensor(self, name: str, packed: PackedTensor) -> LazyTensor:
        """One tensor, decoded on the way."""
        base = self._base(name, packed)
        rows = packed.rows
        assert packed.coded is not None
        if packed.added is None or rows is None:
            return self._decoded(name, packed, packed.coded, packed.shape, base)
        above = self._decoded(name, packed, packed.coded, (rows, *packed.shape[1:]), base)
        below_shape = (packed.shape[0] - rows, *packed.shape[1:])
        below = self._decoded(name, packed, packed.added, below_shape, None)
        return JoinedRows(name, (above, below))

    def _base(self, name: str, packed: PackedTensor) -> LazyTensor | None:
        """The base's tensor; where it has fewer rows, exact codecs continue it with zeros."""
        if packed.base is None or packed.base_digest is None:
            return None
        assert self.base is not None
        found = base_tensor(
            "package", self.base, packed.base, packed.base_digest, self.header.base_reference
        )
        if len(found.shape) != len(packed.shape) or found.shape[1:] != packed.shape[1:]:
            raise CheckpointError(
                f"{found.location} has the shape {list(found.shape)}, which {name!r} of {shown(self.folder)} with "
                f"{list(packed.shape)} was not made from: give the base {self.header.base_reference!r}."
            )
        rows = packed.shape[0] if packed.shape and packed.rows is None else packed.rows
        return as_base(found, packed.dtype, rows)

    def _decoded(
        self,
        name: str,
        packed: PackedTensor,
        piece: PackedPiece,
        shape: tuple[int, ...],
        base: LazyTensor | None,
    ) -> LazyTensor:
        from weightsmith.deltas import decoded

        added = piece is packed.added
        parts = {
            label: part(
                self.folder, self.stored, stream_name(name, piece.codec, label, added=added), digest
            )
            for label, digest in piece.parts.items()
        }
        return decoded(
            piece.codec, piece.parameters, parts, base, name=name, dtype=packed.dtype, shape=shape
        )
