"""A tensor that is a base plus an encoded change: what is stored of it, and how it is read as a dense tensor.

Tensors here are views: renamed, rounded, joined, changed by adapters, decoded from streams. `codecs` has one file for
each encoding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.deltas.bits import MASK as MASK
    from weightsmith.deltas.bits import BitPacker as BitPacker
    from weightsmith.deltas.bits import PackedBits as PackedBits
    from weightsmith.deltas.bits import packed_bytes as packed_bytes
    from weightsmith.deltas.changed import BLOCK_BYTES as BLOCK_BYTES
    from weightsmith.deltas.changed import MOST_HELD as MOST_HELD
    from weightsmith.deltas.changed import ChangedTensor as ChangedTensor
    from weightsmith.deltas.changed import Rewritten as Rewritten
    from weightsmith.deltas.changed import Towards as Towards
    from weightsmith.deltas.changed import column_factors as column_factors
    from weightsmith.deltas.changed import over_norms as over_norms
    from weightsmith.deltas.changed import read_elements as read_elements
    from weightsmith.deltas.changed import read_matrix as read_matrix
    from weightsmith.deltas.changes import Change as Change
    from weightsmith.deltas.changes import Full as Full
    from weightsmith.deltas.changes import Hadamard as Hadamard
    from weightsmith.deltas.changes import Kronecker as Kronecker
    from weightsmith.deltas.changes import LowRankChange as LowRankChange
    from weightsmith.deltas.changes import Matrix as Matrix
    from weightsmith.deltas.changes import SparseChange as SparseChange
    from weightsmith.deltas.changes import Stacked as Stacked
    from weightsmith.deltas.changes import Weighted as Weighted
    from weightsmith.deltas.changes import transposed as transposed
    from weightsmith.deltas.codecs import LOSSY as LOSSY
    from weightsmith.deltas.codecs import CodecChoice as CodecChoice
    from weightsmith.deltas.codecs import Delta as Delta
    from weightsmith.deltas.codecs import Encoded as Encoded
    from weightsmith.deltas.codecs import choices as choices
    from weightsmith.deltas.codecs import decoded as decoded
    from weightsmith.deltas.codecs import encode as encode
    from weightsmith.deltas.codecs import encode_exactly as encode_exactly
    from weightsmith.deltas.codecs import in_memory as in_memory
    from weightsmith.deltas.codecs import measured_error as measured_error
    from weightsmith.deltas.codecs.codec import part_in_memory as part_in_memory
    from weightsmith.deltas.codecs.lossless import WHOLE as WHOLE
    from weightsmith.deltas.decoded_tensors import DecodedTensor as DecodedTensor
    from weightsmith.deltas.matrix_difference import MatrixDifference as MatrixDifference
    from weightsmith.deltas.matrix_difference import Measure as Measure
    from weightsmith.deltas.matrix_difference import is_same as is_same
    from weightsmith.deltas.rearranged import JoinedColumns as JoinedColumns
    from weightsmith.deltas.rearranged import StridedView as StridedView
    from weightsmith.deltas.rearranged import reshaped as reshaped
    from weightsmith.deltas.rearranged import turned as turned
    from weightsmith.deltas.renamed_tensors import renamed as renamed
    from weightsmith.deltas.rewritings import BlockAffine as BlockAffine
    from weightsmith.deltas.rewritings import BlockRotation as BlockRotation
    from weightsmith.deltas.rewritings import Modulated as Modulated
    from weightsmith.deltas.rewritings import Rewriting as Rewriting
    from weightsmith.deltas.rewritings import Rotated as Rotated
    from weightsmith.deltas.rewritings import Scaled as Scaled
    from weightsmith.deltas.rounded import RoundedTensor as RoundedTensor
    from weightsmith.deltas.row_views import JoinedRows as JoinedRows
    from weightsmith.deltas.row_views import ReplacedRows as ReplacedRows
    from weightsmith.deltas.row_views import SomeRows as SomeRows
    from weightsmith.deltas.row_views import StackedTensors as StackedTensors
    from weightsmith.deltas.row_views import Stretch as Stretch
    from weightsmith.deltas.verified import VerifiedTensor as VerifiedTensor
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "BLOCK_BYTES": "weightsmith.deltas.changed",
            "BitPacker": "weightsmith.deltas.bits",
            "BlockAffine": "weightsmith.deltas.rewritings",
            "BlockRotation": "weightsmith.deltas.rewritings",
            "Change": "weightsmith.deltas.changes",
            "ChangedTensor": "weightsmith.deltas.changed",
            "CodecChoice": "weightsmith.deltas.codecs",
            "DecodedTensor": "weightsmith.deltas.decoded_tensors",
            "Delta": "weightsmith.deltas.codecs",
            "Encoded": "weightsmith.deltas.codecs",
            "Full": "weightsmith.deltas.changes",
            "Hadamard": "weightsmith.deltas.changes",
            "JoinedColumns": "weightsmith.deltas.rearranged",
            "JoinedRows": "weightsmith.deltas.row_views",
            "Kronecker": "weightsmith.deltas.changes",
            "LOSSY": "weightsmith.deltas.codecs",
            "LowRankChange": "weightsmith.deltas.changes",
            "MASK": "weightsmith.deltas.bits",
            "MOST_HELD": "weightsmith.deltas.changed",
            "Matrix": "weightsmith.deltas.changes",
            "MatrixDifference": "weightsmith.deltas.matrix_difference",
            "Measure": "weightsmith.deltas.matrix_difference",
            "Modulated": "weightsmith.deltas.rewritings",
            "PackedBits": "weightsmith.deltas.bits",
            "ReplacedRows": "weightsmith.deltas.row_views",
            "Rewriting": "weightsmith.deltas.rewritings",
            "Rewritten": "weightsmith.deltas.changed",
            "Rotated": "weightsmith.deltas.rewritings",
            "RoundedTensor": "weightsmith.deltas.rounded",
            "Scaled": "weightsmith.deltas.rewritings",
            "SomeRows": "weightsmith.deltas.row_views",
            "SparseChange": "weightsmith.deltas.changes",
            "Stacked": "weightsmith.deltas.changes",
            "StackedTensors": "weightsmith.deltas.row_views",
            "Stretch": "weightsmith.deltas.row_views",
            "StridedView": "weightsmith.deltas.rearranged",
            "Towards": "weightsmith.deltas.changed",
            "VerifiedTensor": "weightsmith.deltas.verified",
            "WHOLE": "weightsmith.deltas.codecs.lossless",
            "Weighted": "weightsmith.deltas.changes",
            "choices": "weightsmith.deltas.codecs",
            "column_factors": "weightsmith.deltas.changed",
            "decoded": "weightsmith.deltas.codecs",
            "encode": "weightsmith.deltas.codecs",
            "encode_exactly": "weightsmith.deltas.codecs",
            "in_memory": "weightsmith.deltas.codecs",
            "is_same": "weightsmith.deltas.matrix_difference",
            "measured_error": "weightsmith.deltas.codecs",
            "over_norms": "weightsmith.deltas.changed",
            "packed_bytes": "weightsmith.deltas.bits",
            "part_in_memory": "weightsmith.deltas.codecs.codec",
            "read_elements": "weightsmith.deltas.changed",
            "read_matrix": "weightsmith.deltas.changed",
            "renamed": "weightsmith.deltas.renamed_tensors",
            "reshaped": "weightsmith.deltas.rearranged",
            "transposed": "weightsmith.deltas.changes",
            "turned": "weightsmith.deltas.rearranged",
        },
    )
