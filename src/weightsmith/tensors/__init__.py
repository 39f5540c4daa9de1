"""Bytes: tensors as files hold them, read and written without running anything.

Dtypes, sizes, digests, and numbers widened and narrowed live here; `files` reads and writes safetensors, indexes and
JSON strictly, `pickles` reads torch's files with a machine that executes no code. A `LazyTensor` is whatever can be
read by elements: it names the stored parts behind it and what one reading costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.tensors.blas import one_blas_thread as one_blas_thread
    from weightsmith.tensors.blas import start_blas_on_one_thread as start_blas_on_one_thread
    from weightsmith.tensors.compressed import STATISTIC_DTYPES as STATISTIC_DTYPES
    from weightsmith.tensors.compressed import BlockConstant as BlockConstant
    from weightsmith.tensors.compressed import Broadcast as Broadcast
    from weightsmith.tensors.compressed import ByChannel as ByChannel
    from weightsmith.tensors.compressed import Checked as Checked
    from weightsmith.tensors.compressed import LowRankProduct as LowRankProduct
    from weightsmith.tensors.compressed import OuterProduct as OuterProduct
    from weightsmith.tensors.compressed import UpperTriangle as UpperTriangle
    from weightsmith.tensors.compressed import fits_by_broadcasting as fits_by_broadcasting
    from weightsmith.tensors.compressed import read_array as read_array
    from weightsmith.tensors.compressed import read_range as read_range
    from weightsmith.tensors.digest_pieces import piece_elements as piece_elements
    from weightsmith.tensors.digest_pieces import pieces as pieces
    from weightsmith.tensors.digests import checkpoint_digest as checkpoint_digest
    from weightsmith.tensors.digests import digest_tensor as digest_tensor
    from weightsmith.tensors.digests import piece_digest as piece_digest
    from weightsmith.tensors.digests import tensor_digest as tensor_digest
    from weightsmith.tensors.dtypes import DType as DType
    from weightsmith.tensors.dtypes import promote as promote
    from weightsmith.tensors.fast_records import record as record
    from weightsmith.tensors.files.layout import SINGLE_FILE as SINGLE_FILE
    from weightsmith.tensors.files.layout import Placement as Placement
    from weightsmith.tensors.files.layout import ShardLayout as ShardLayout
    from weightsmith.tensors.files.layout import plan_layout as plan_layout
    from weightsmith.tensors.files.links import may_lead_to as may_lead_to
    from weightsmith.tensors.files.links import way_out as way_out
    from weightsmith.tensors.files.open_files import OPEN_FILES as OPEN_FILES
    from weightsmith.tensors.files.open_files import read_at as read_at
    from weightsmith.tensors.files.paths import expanded as expanded
    from weightsmith.tensors.files.paths import real as real
    from weightsmith.tensors.files.safetensors_header import DEFAULT_METADATA as DEFAULT_METADATA
    from weightsmith.tensors.files.safetensors_header import (
        LARGEST_HEADER_BYTES as LARGEST_HEADER_BYTES,
    )
    from weightsmith.tensors.files.safetensors_header import encode_header as encode_header
    from weightsmith.tensors.files.safetensors_header import parse_file as parse_file
    from weightsmith.tensors.files.safetensors_header import read_header as read_header
    from weightsmith.tensors.files.shard_index import read_index as read_index
    from weightsmith.tensors.files.shard_index import read_weight_map as read_weight_map
    from weightsmith.tensors.files.small_files import read_small as read_small
    from weightsmith.tensors.files.strict_json import NotJson as NotJson
    from weightsmith.tensors.files.strict_json import collection_paused as collection_paused
    from weightsmith.tensors.files.strict_json import count_in as count_in
    from weightsmith.tensors.files.strict_json import counts_in as counts_in
    from weightsmith.tensors.files.strict_json import listed_in as listed_in
    from weightsmith.tensors.files.strict_json import loads_json as loads_json
    from weightsmith.tensors.files.strict_json import optional_text_in as optional_text_in
    from weightsmith.tensors.files.strict_json import parse_json as parse_json
    from weightsmith.tensors.files.strict_json import text_in as text_in
    from weightsmith.tensors.files.strict_json import texts_in as texts_in
    from weightsmith.tensors.files.writer import ShardWriter as ShardWriter
    from weightsmith.tensors.files.writer import allocate as allocate
    from weightsmith.tensors.files.writer import failure as failure
    from weightsmith.tensors.files.writer import free_bytes as free_bytes
    from weightsmith.tensors.files.writer import pwrite_all as pwrite_all
    from weightsmith.tensors.files.writer import sync_file as sync_file
    from weightsmith.tensors.files.writer import sync_folder as sync_folder
    from weightsmith.tensors.grid import gaps as gaps
    from weightsmith.tensors.grid import roundoff as roundoff
    from weightsmith.tensors.matrix_shapes import kernel_shape as kernel_shape
    from weightsmith.tensors.matrix_shapes import matrix_shape as matrix_shape
    from weightsmith.tensors.matrix_shapes import matrix_stack as matrix_stack
    from weightsmith.tensors.memory import MemorySink as MemorySink
    from weightsmith.tensors.memory import MemoryTensor as MemoryTensor
    from weightsmith.tensors.messages import is_printable_name as is_printable_name
    from weightsmith.tensors.messages import shown as shown
    from weightsmith.tensors.narrowing import NARROW as NARROW
    from weightsmith.tensors.narrowing import fits as fits
    from weightsmith.tensors.narrowing import narrow as narrow
    from weightsmith.tensors.native_library import NativeLibrary as NativeLibrary
    from weightsmith.tensors.native_library import address_of as address_of
    from weightsmith.tensors.native_library import open_library as open_library
    from weightsmith.tensors.pickles.pickle_reader import parse_torch_file as parse_torch_file
    from weightsmith.tensors.pickles.pickle_reader import read_torch_file as read_torch_file
    from weightsmith.tensors.pickles.pickle_reader import read_trainer_file as read_trainer_file
    from weightsmith.tensors.pickles.pickled_records import PickledRecord as PickledRecord
    from weightsmith.tensors.pickles.pickled_records import (
        read_pickled_records as read_pickled_records,
    )
    from weightsmith.tensors.pickles.saved_objects import read_saved_object as read_saved_object
    from weightsmith.tensors.pickles.strided import gather as gather
    from weightsmith.tensors.pickles.strided import row_runs as row_runs
    from weightsmith.tensors.pickles.torch_writer import check_torch_dtype as check_torch_dtype
    from weightsmith.tensors.pickles.torch_writer import write_torch_file as write_torch_file
    from weightsmith.tensors.place import Kind as Kind
    from weightsmith.tensors.place import Place as Place
    from weightsmith.tensors.place import depth_of as depth_of
    from weightsmith.tensors.sizes import format_size as format_size
    from weightsmith.tensors.sizes import parse_size as parse_size
    from weightsmith.tensors.standing_in import ConstantTensor as ConstantTensor
    from weightsmith.tensors.standing_in import StandIn as StandIn
    from weightsmith.tensors.stored import FromSources as FromSources
    from weightsmith.tensors.stored import FromStored as FromStored
    from weightsmith.tensors.stored import LazyTensor as LazyTensor
    from weightsmith.tensors.stored import ReadingCost as ReadingCost
    from weightsmith.tensors.stored import Shaped as Shaped
    from weightsmith.tensors.stored import StoredTensor as StoredTensor
    from weightsmith.tensors.stored import behind as behind
    from weightsmith.tensors.stored import chunks_of as chunks_of
    from weightsmith.tensors.stored import read_bytes as read_bytes
    from weightsmith.tensors.stored import read_runs as read_runs
    from weightsmith.tensors.stored import stored_in as stored_in
    from weightsmith.tensors.threads import MOST_THREADS as MOST_THREADS
    from weightsmith.tensors.threads import in_order as in_order
    from weightsmith.tensors.threads import in_parallel as in_parallel
    from weightsmith.tensors.threads import thread_count as thread_count
    from weightsmith.tensors.widening import WORDS as WORDS
    from weightsmith.tensors.widening import widen as widen
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "BlockConstant": "weightsmith.tensors.compressed",
            "Broadcast": "weightsmith.tensors.compressed",
            "ConstantTensor": "weightsmith.tensors.standing_in",
            "StandIn": "weightsmith.tensors.standing_in",
            "fits_by_broadcasting": "weightsmith.tensors.compressed",
            "ByChannel": "weightsmith.tensors.compressed",
            "Checked": "weightsmith.tensors.compressed",
            "DType": "weightsmith.tensors.dtypes",
            "FromSources": "weightsmith.tensors.stored",
            "FromStored": "weightsmith.tensors.stored",
            "Kind": "weightsmith.tensors.place",
            "LARGEST_HEADER_BYTES": "weightsmith.tensors.files.safetensors_header",
            "LazyTensor": "weightsmith.tensors.stored",
            "LowRankProduct": "weightsmith.tensors.compressed",
            "MOST_THREADS": "weightsmith.tensors.threads",
            "MemorySink": "weightsmith.tensors.memory",
            "MemoryTensor": "weightsmith.tensors.memory",
            "NARROW": "weightsmith.tensors.narrowing",
            "NativeLibrary": "weightsmith.tensors.native_library",
            "NotJson": "weightsmith.tensors.files.strict_json",
            "OPEN_FILES": "weightsmith.tensors.files.open_files",
            "OuterProduct": "weightsmith.tensors.compressed",
            "Place": "weightsmith.tensors.place",
            "UpperTriangle": "weightsmith.tensors.compressed",
            "Placement": "weightsmith.tensors.files.layout",
            "ReadingCost": "weightsmith.tensors.stored",
            "STATISTIC_DTYPES": "weightsmith.tensors.compressed",
            "Shaped": "weightsmith.tensors.stored",
            "ShardLayout": "weightsmith.tensors.files.layout",
            "ShardWriter": "weightsmith.tensors.files.writer",
            "StoredTensor": "weightsmith.tensors.stored",
            "WORDS": "weightsmith.tensors.widening",
            "allocate": "weightsmith.tensors.files.writer",
            "address_of": "weightsmith.tensors.native_library",
            "behind": "weightsmith.tensors.stored",
            "checkpoint_digest": "weightsmith.tensors.digests",
            "collection_paused": "weightsmith.tensors.files.strict_json",
            "count_in": "weightsmith.tensors.files.strict_json",
            "counts_in": "weightsmith.tensors.files.strict_json",
            "depth_of": "weightsmith.tensors.place",
            "digest_tensor": "weightsmith.tensors.digests",
            "DEFAULT_METADATA": "weightsmith.tensors.files.safetensors_header",
            "SINGLE_FILE": "weightsmith.tensors.files.layout",
            "encode_header": "weightsmith.tensors.files.safetensors_header",
            "expanded": "weightsmith.tensors.files.paths",
            "failure": "weightsmith.tensors.files.writer",
            "fits": "weightsmith.tensors.narrowing",
            "format_size": "weightsmith.tensors.sizes",
            "free_bytes": "weightsmith.tensors.files.writer",
            "gaps": "weightsmith.tensors.grid",
            "in_order": "weightsmith.tensors.threads",
            "in_parallel": "weightsmith.tensors.threads",
            "is_printable_name": "weightsmith.tensors.messages",
            "kernel_shape": "weightsmith.tensors.matrix_shapes",
            "listed_in": "weightsmith.tensors.files.strict_json",
            "loads_json": "weightsmith.tensors.files.strict_json",
            "may_lead_to": "weightsmith.tensors.files.links",
            "matrix_shape": "weightsmith.tensors.matrix_shapes",
            "matrix_stack": "weightsmith.tensors.matrix_shapes",
            "narrow": "weightsmith.tensors.narrowing",
            "one_blas_thread": "weightsmith.tensors.blas",
            "open_library": "weightsmith.tensors.native_library",
            "optional_text_in": "weightsmith.tensors.files.strict_json",
            "parse_file": "weightsmith.tensors.files.safetensors_header",
            "parse_json": "weightsmith.tensors.files.strict_json",
            "parse_size": "weightsmith.tensors.sizes",
            "piece_digest": "weightsmith.tensors.digests",
            "piece_elements": "weightsmith.tensors.digest_pieces",
            "pieces": "weightsmith.tensors.digest_pieces",
            "plan_layout": "weightsmith.tensors.files.layout",
            "promote": "weightsmith.tensors.dtypes",
            "pwrite_all": "weightsmith.tensors.files.writer",
            "read_array": "weightsmith.tensors.compressed",
            "read_range": "weightsmith.tensors.compressed",
            "read_at": "weightsmith.tensors.files.open_files",
            "read_bytes": "weightsmith.tensors.stored",
            "chunks_of": "weightsmith.tensors.stored",
            "read_header": "weightsmith.tensors.files.safetensors_header",
            "read_index": "weightsmith.tensors.files.shard_index",
            "read_runs": "weightsmith.tensors.stored",
            "PickledRecord": "weightsmith.tensors.pickles.pickled_records",
            "read_pickled_records": "weightsmith.tensors.pickles.pickled_records",
            "read_saved_object": "weightsmith.tensors.pickles.saved_objects",
            "read_small": "weightsmith.tensors.files.small_files",
            "parse_torch_file": "weightsmith.tensors.pickles.pickle_reader",
            "read_torch_file": "weightsmith.tensors.pickles.pickle_reader",
            "read_trainer_file": "weightsmith.tensors.pickles.pickle_reader",
            "read_weight_map": "weightsmith.tensors.files.shard_index",
            "real": "weightsmith.tensors.files.paths",
            "record": "weightsmith.tensors.fast_records",
            "roundoff": "weightsmith.tensors.grid",
            "check_torch_dtype": "weightsmith.tensors.pickles.torch_writer",
            "write_torch_file": "weightsmith.tensors.pickles.torch_writer",
            "gather": "weightsmith.tensors.pickles.strided",
            "row_runs": "weightsmith.tensors.pickles.strided",
            "shown": "weightsmith.tensors.messages",
            "start_blas_on_one_thread": "weightsmith.tensors.blas",
            "stored_in": "weightsmith.tensors.stored",
            "sync_file": "weightsmith.tensors.files.writer",
            "sync_folder": "weightsmith.tensors.files.writer",
            "tensor_digest": "weightsmith.tensors.digests",
            "text_in": "weightsmith.tensors.files.strict_json",
            "texts_in": "weightsmith.tensors.files.strict_json",
            "thread_count": "weightsmith.tensors.threads",
            "widen": "weightsmith.tensors.widening",
            "way_out": "weightsmith.tensors.files.links",
        },
    )
