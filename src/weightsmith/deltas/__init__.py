"""A tensor that is a base plus an encoded change: what is stored of it, and how it is read as a dense tensor."""

from __future__ import annotations

from weightsmith.deltas.bits import BitPacker as BitPacker
from weightsmith.deltas.bits import PackedBits as PackedBits
from weightsmith.deltas.bits import packed_bytes as packed_bytes
from weightsmith.deltas.changed import ChangedTensor as ChangedTensor
from weightsmith.deltas.changed import Towards as Towards
from weightsmith.deltas.changed import read_matrix as read_matrix
from weightsmith.deltas.constant import Repeated as Repeated
from weightsmith.deltas.decoded_tensors import DecodedTensor as DecodedTensor
from weightsmith.deltas.verified import VerifiedTensor as VerifiedTensor
