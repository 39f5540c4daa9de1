"""Where every tensor of an output will lie, known before the first byte is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from weightsmith.errors import OutputError, UsageError
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.fast_records import record
from weightsmith.tensors.files.safetensors_header import encode_header
from weightsmith.tensors.files.shard_index import encode_index
from weightsmith.tensors.messages import shown
from weightsmith.tensors.stored import Shaped

Entry = tuple[str, DType, tuple[int, ...]]

DEFAULT_SHARD_BYTES = 5_000_000_000
SINGLE_FILE = "model.safetensors"


@record
@dataclass(frozen=True, slots=True)
class Placement(Shaped):
    """The place of one output tensor: the shard's position in the layout and the absolute byte in
    its file.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    shard: int
    offset: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One output file: its name, its first bytes, its whole size, and the tensors in the order of
    their bytes.
    """

    file_name: str
    header: bytes
    size: int
    placements: tuple[Placement, ...]


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """All output files; `total_size` is the bytes of the tensors without headers.

    `index` is the content of `model.safetensors.index.json`, or None for a single file.
    """

    shards: tuple[Shard, ...]
    total_size: int
    index: bytes | None
    _by_name: dict[str, Placement] = field(repr=False, compare=False)

    def placement(self, name: str) -> Placement:
        """The place of the tensor `name`; raises `KeyError` for a name that is not in the layout."""
        return self._by_name[name]

    @property
    def file_bytes(self) -> int:
        """Bytes of all shards on disk, headers included."""
        return sum(shard.size for shard in self.shards)


def plan_layout(entries: Sequence[Entry], shard_bytes: int = DEFAULT_SHARD_BYTES) -> ShardLayout:
    """Distribute (name, dtype, shape) over shards, greedily and in the given order.

    A shard is closed when the next tensor would take its tensor bytes above `shard_bytes` (default
    5 GB, as on the Hugging Face Hub); a larger tensor gets a shard of its own. Within a shard wider
    dtypes come first, so that every tensor is aligned to its element size; the given order is kept
    otherwise. Raises `UsageError` for a shard size below 1 and `OutputError` for names that cannot
    be written.
    """
    if shard_bytes < 1:
        raise UsageError(f"a shard size of {shard_bytes} bytes is not possible: choose at least 1.")
    _check_unique(entries)
    groups = _fill_shards(entries, shard_bytes)
    shards = tuple(_shard(group, i, len(groups)) for i, group in enumerate(groups))
    placements = {p.name: p for shard in shards for p in shard.placements}
    total_size = sum(p.nbytes for p in placements.values())
    index = None
    if len(shards) > 1:
        order = [name for name, _, _ in entries]
        index = encode_index({n: shards[placements[n].shard].file_name for n in order}, total_size)
    return ShardLayout(shards, total_size, index, placements)


def _check_unique(entries: Sequence[Entry]) -> None:
    seen: set[str] = set()
    for name, _, _ in entries:
        if name in seen:
            raise OutputError(
                f"tensor {shown(name)} would be written twice: rename or drop one of them."
            )
        seen.add(name)


def _fill_shards(entries: Sequence[Entry], shard_bytes: int) -> list[list[Entry]]:
    groups: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        _, dtype, shape = entry
        nbytes = math.prod(shape) * dtype.itemsize
        if groups[-1] and filled + nbytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(entry)
        filled += nbytes
    return groups


def _shard(group: Sequence[Entry], position: int, count: int) -> Shard:
    aligned = sorted(group, key=lambda entry: -entry[1].itemsize)
    header = encode_header(aligned)
    offset = len(header)
    placements: list[Placement] = []
    for name, dtype, shape in aligned:
        placements.append(Placement(name, dtype, shape, position, offset))
        offset += placements[-1].nbytes
    return Shard(_file_name(position, count), header, offset, tuple(placements))


def _file_name(position: int, count: int) -> str:
    if count == 1:
        return SINGLE_FILE
    return f"model-{position + 1:05d}-of-{count:05d}.safetensors"
