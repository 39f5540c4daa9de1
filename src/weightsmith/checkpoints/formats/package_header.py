"""`weightsmith-delta.json`: what a delta package holds, of which base, and how each tensor is decoded.

The streams lie in `delta.safetensors`, named `<tensor>::<codec>::<part>`, and `<tensor>::new_rows::<codec>::<part>` for
the rows that a grown vocabulary has beyond its base. The text is sealed like a manifest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightsmith.checkpoints.copied_files import absence, is_inside
from weightsmith.checkpoints.recognition import PACKAGE_HEADER
from weightsmith.errors import CheckpointError, Malformed, UsageError
from weightsmith.publishing import sealed, unsealed
from weightsmith.tensors import DType, is_printable_name, read_small, shown
from weightsmith.wording import fault

STREAMS = "delta.safetensors"
SCHEMA = 1
NEW_ROWS = "new_rows"
_LARGEST_BYTES = 100_000_000
_LARGEST_COUNT = 2**63 - 1
_LARGEST_RANK = 64
_DIGEST = re.compile(r"xxh3-tensor-1:[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class PackedPiece:
    """Rows of one tensor in one codec: its parameters, the digests of its parts, and their bytes.

    `error` is ||decoded - exact|| / ||exact - base|| as measured, 0 where no bit differs.
    """

    codec: str
    parameters: Mapping[str, Any]
    parts: Mapping[str, str]
    nbytes: int
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """One tensor of the fine-tune, and how it is made from the base's tensor `base`, if from any.

    `digest` is that of what is decoded, which is the fine-tune's own tensor where nothing is lost. `coded` are the rows
    that the base has too (all of them, unless the tensor has grown), `added` those beyond. `same_as` names an earlier
    tensor with the same content, which is then stored once.
    """

    dtype: DType
    shape: tuple[int, ...]
    digest: str
    base: str | None = None
    base_digest: str | None = None
    rows: int | None = None
    coded: PackedPiece | None = None
    added: PackedPiece | None = None
    same_as: str | None = None

    @property
    def pieces(self) -> tuple[PackedPiece, ...]:
        """The pieces in the order of their rows."""
        return tuple(piece for piece in (self.coded, self.added) if piece is not None)

    @property
    def error(self) -> float:
        """The measured error of the coded rows; added rows are always exact."""
        return 0.0 if self.coded is None else self.coded.error

    @property
    def dense_bytes(self) -> int:
        """Bytes of all elements, decoded."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class PackageHeader:
    """The content of `weightsmith-delta.json`.

    `digest` is that of all decoded tensors, `finetune_digest` that of the fine-tune's own; without loss they are equal.
    `goal` is `lossless`, `budget` or `error`, `limit` the bytes or the error that were asked for. `base_places` are
    where the base may lie (a path relative to the package, a Hub id). `error` is the relative error of all coded rows
    together, ||decoded - exact|| / ||exact - base||. `files` has the SHA-256 of every file carried along.
    """

    version: str
    goal: str
    limit: float | None
    digest: str
    reference: str
    finetune_digest: str
    base_reference: str
    base_digest: str
    base_places: tuple[str, ...]
    error: float
    tensors: Mapping[str, PackedTensor]
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def dense_bytes(self) -> int:
        """Bytes of all tensors, decoded."""
        return sum(tensor.dense_bytes for tensor in self.tensors.values())

    @property
    def streams(self) -> dict[str, str]:
        """The digest of each stream by its name."""
        return {
            stream_name(name, piece.codec, part, added=piece is tensor.added): digest
            for name, tensor in self.tensors.items()
            for piece in tensor.pieces
            for part, digest in piece.parts.items()
        }

    @property
    def of_base(self) -> dict[str, str]:
        """The digest of each tensor of the base that is decoded with, by its name there."""
        return {
            tensor.base: tensor.base_digest
            for tensor in self.tensors.values()
            if tensor.base is not None and tensor.base_digest is not None
        }

    @property
    def coded_bytes(self) -> int:
        """Bytes of all streams, each counted where it is used."""
        return sum(piece.nbytes for tensor in self.tensors.values() for piece in tensor.pieces)

    def codecs(self) -> dict[str, int]:
        """How many tensors have their coded rows in which codec, the most frequent first."""
        counts: dict[str, int] = {}
        for tensor in self.tensors.values():
            codec = _codec_of(tensor)
            counts[codec] = counts.get(codec, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def to_json(self) -> bytes:
        """The sealed text, which `read_package_header` reads back."""
        return sealed(self.to_mapping())

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "schema": SCHEMA,
            "weightsmith": self.version,
            "goal": self.goal,
            "limit": self.limit,
            "digest": self.digest,
            "finetune": {"reference": self.reference, "digest": self.finetune_digest},
            "base": {
                "reference": self.base_reference,
                "digest": self.base_digest,
                "places": list(self.base_places),
            },
            "error": self.error,
            "tensors": {name: tensor_json(tensor) for name, tensor in self.tensors.items()},
            "files": dict(sorted(self.files.items())),
        }


def _codec_of(tensor: PackedTensor) -> str:
    if tensor.same_as is not None:
        return "stored once"
    first = next(iter(tensor.pieces), None)
    return "none" if first is None else first.codec


def stream_name(tensor: str, codec: str, part: str, *, added: bool) -> str:
    """The name under which a part is stored."""
    words = (tensor, NEW_ROWS, codec, part) if added else (tensor, codec, part)
    return "::".join(words)


def read_package_header(folder: Path) -> PackageHeader:
    """The header of a package; raises CheckpointError if it is missing, damaged, hostile or of a newer version."""
    path = folder / PACKAGE_HEADER
    if not is_inside(path, folder):
        raise CheckpointError(absence(folder, PACKAGE_HEADER, "a delta package"))
    try:
        content = unsealed(read_small(path, _LARGEST_BYTES))
        if content.get("schema") != SCHEMA:
            raise CheckpointError(
                f"{shown(path)} has schema {shown(content.get('schema'))}, but this version reads {SCHEMA}: use a "
                "newer weightsmith."
            )
        return _header(content)
    except OSError as error:
        raise CheckpointError(f"{shown(path)} cannot be read ({error.strerror}).") from None
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        UsageError,
    ) as error:
        raise CheckpointError(
            f"{shown(path)} is not a package's header ({fault(error)}): the package is damaged, "
            "fetch it or make it again."
        ) from None


def tensor_json(tensor: PackedTensor) -> dict[str, Any]:
    """A tensor's entry as JSON has it."""
    content: dict[str, Any] = {
        "dtype": str(tensor.dtype),
        "shape": list(tensor.shape),
        "digest": tensor.digest,
    }
    if tensor.same_as is not None:
        return content | {"same_as": tensor.same_as}
    if tensor.base is not None:
        content |= {"base": tensor.base, "base_digest": tensor.base_digest}
    if tensor.rows is not None:
        content["rows"] = tensor.rows
    for key, piece in (("coded", tensor.coded), ("added", tensor.added)):
        if piece is not None:
            content[key] = {
                "codec": piece.codec,
                "parameters": dict(piece.parameters),
                "parts": dict(piece.parts),
                "bytes": piece.nbytes,
                "error": piece.error,
            }
    return content


def _header(content: Mapping[str, Any]) -> PackageHeader:
    base, finetune, limit = content["base"], content["finetune"], content["limit"]
    tensors: dict[str, PackedTensor] = {}
    for name, entry in content["tensors"].items():
        if not is_printable_name(name):
            raise Malformed(f"the name {shown(name)} is empty or has control characters in it")
        tensors[name] = _tensor(name, entry, tensors)
    if not tensors:
        raise Malformed("it has no tensors")
    return PackageHeader(
        version=str(content["weightsmith"]),
        goal=str(content["goal"]),
        limit=None if limit is None else float(limit),
        digest=str(content["digest"]),
        reference=str(finetune["reference"]),
        finetune_digest=str(finetune["digest"]),
        base_reference=str(base["reference"]),
        base_digest=str(base["digest"]),
        base_places=tuple(str(place) for place in base["places"]),
        error=float(content["error"]),
        tensors=tensors,
        files={str(name): str(digest) for name, digest in content["files"].items()},
    )


def _tensor(
    name: str, entry: Mapping[str, Any], before: Mapping[str, PackedTensor]
) -> PackedTensor:
    dtype, shape = DType.parse(entry["dtype"]), _shape(entry["shape"], name)
    if math.prod(n for n in shape if n) * dtype.itemsize > _LARGEST_COUNT:
        raise Malformed(f"{shown(name)} has the shape {shown(list(shape))}, too many elements")
    digest = _digest(entry["digest"])
    if "same_as" in entry:
        same = str(entry["same_as"])
        found = before.get(same)
        if found is None or (found.dtype, found.shape, found.digest) != (dtype, shape, digest):
            raise Malformed(f"{shown(name)} cannot be the same tensor as {shown(same)}")
        return PackedTensor(dtype, shape, digest, same_as=same)
    base, rows = entry.get("base"), entry.get("rows")
    if rows is not None and (
        type(rows) is not int or not shape or not 0 <= rows < shape[0] or base is None
    ):
        raise Malformed(f"{shown(name)} cannot share {shown(rows)} rows with its base")
    coded = _piece(entry["coded"]) if "coded" in entry else None
    added = _piece(entry["added"]) if "added" in entry else None
    if coded is None or (added is None) != (rows is None):
        raise Malformed(f"{shown(name)} lacks a part of its rows")
    return PackedTensor(
        dtype,
        shape,
        digest,
        None if base is None else str(base),
        None if base is None else _digest(entry["base_digest"]),
        rows,
        coded,
        added,
    )


def _shape(lengths: Any, name: str) -> tuple[int, ...]:
    if type(lengths) is not list or len(lengths) > _LARGEST_RANK:
        raise Malformed(f"{shown(name)} has no fitting shape")
    for length in lengths:
        if type(length) is not int or not 0 <= length <= _LARGEST_COUNT:
            raise Malformed(f"{shown(name)} has the length {shown(length)} in its shape")
    return tuple(lengths)


def _piece(entry: Mapping[str, Any]) -> PackedPiece:
    return PackedPiece(
        str(entry["codec"]),
        dict(entry["parameters"]),
        {str(part): _digest(digest) for part, digest in entry["parts"].items()},
        int(entry["bytes"]),
        float(entry["error"]),
    )


def _digest(text: Any) -> str:
    if not isinstance(text, str) or _DIGEST.fullmatch(text) is None:
        raise Malformed(f"{shown(text)} is not the digest of a tensor")
    return text
