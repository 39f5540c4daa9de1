"""What a package's header says of one tensor, and how many bytes a tensor takes in header and streams together."""

from __future__ import annotations

import json

from weightsmith.checkpoints import PackedPiece, PackedTensor, stream_name, tensor_json
from weightsmith.deltas import WHOLE, Encoded
from weightsmith.packages.tensor_pairs import Pair

# As long as any other.
_DIGEST = "xxh3-tensor-1:" + 32 * "0"
_ERROR = -1.2345678901234567e-300
# Bytes of a stream's entry in the header of its file beyond its name, with room for long offsets.
_STREAM_BYTES = 110


def piece(encoded: Encoded, digests: dict[str, str], error: float) -> PackedPiece:
    """Some rows in one codec."""
    return PackedPiece(encoded.codec, dict(encoded.parameters), digests, encoded.nbytes, error)


def packed_tensor(
    pair: Pair, coded: PackedPiece | None, added: PackedPiece | None, digest: str
) -> PackedTensor:
    """A tensor's entry; where it is the same as an earlier one there are no pieces."""
    dtype, shape = pair.target.dtype, pair.target.shape
    if pair.same_as is not None:
        return PackedTensor(dtype, shape, digest, same_as=pair.same_as)
    alone = coded is None or coded.codec == WHOLE
    return PackedTensor(
        dtype,
        shape,
        digest,
        None if alone else pair.base_name,
        None if alone else pair.base_digest,
        None if added is None else pair.shared_rows,
        coded,
        added,
    )


def stored_bytes(pair: Pair, coded: Encoded | None, added: Encoded | None = None) -> int:
    """Bytes that a tensor takes in both files, or a few more: streams, their names, and the header's entry."""
    pieces: list[PackedPiece | None] = []
    total = 0
    for encoded in (coded, added):
        if encoded is None:
            pieces.append(None)
            continue
        names = {
            part: stream_name(pair.name, encoded.codec, part, added=encoded is added)
            for part in encoded.parts
        }
        total += encoded.nbytes + sum(
            len(json.dumps(name, ensure_ascii=False).encode()) + _STREAM_BYTES
            for name in names.values()
        )
        pieces.append(piece(encoded, dict.fromkeys(names, _DIGEST), _ERROR))
    entry = tensor_json(packed_tensor(pair, pieces[0], pieces[1], _DIGEST))
    return total + len(json.dumps({"tensors": {pair.name: entry}}, indent=1))
