"""Where every tensor of an output will lie, known before the first byte is written."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from weightsmith.errors import OutputError, UsageError
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.fast_records import record
from weightsmith.tensors.files.safetensors_header import DEFAULT_METADATA, encode_header
from weightsmith.tensors.files.shard_index import encode_index
from weightsmith.tensors.messages import shown
from weightsmith.tensors.stored import Shaped

Entry = tuple[str, DType, tuple[int, ...]]

DEFAULT_SHARD_BYTES = 5_000_000_000
SINGLE_FILE = "model.safetensors"
_ENDING, _INDEX = ".safetensors", ".index.json"


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

    `is_beside`: it is none of the main set of weights, and its name may have folders in it.
    """

    file_name: str
    header: bytes
    size: int
    placements: tuple[Placement, ...]
    is_beside: bool = False


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """All output files; `total_size` is the bytes of the tensors without headers.

    `indices` has the content of each index by its name: `model.safetensors.index.json` where the main set has several
    files, and those of files beside it that are sharded.
    """

    shards: tuple[Shard, ...]
    total_size: int
    indices: Mapping[str, bytes]
    _by_name: dict[str, Placement] = field(repr=False, compare=False)

    def placement(self, name: str) -> Placement:
        """The place of the tensor `name`; raises `KeyError` for a name that is not in the layout."""
        return self._by_name[name]

    @property
    def file_bytes(self) -> int:
        """Bytes of all shards on disk, headers included."""
        return sum(shard.size for shard in self.shards)


def plan_layout(
    entries: Sequence[Entry],
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    *,
    beside: Mapping[str, Mapping[str, Entry]] | None = None,
    sharded_beside: Collection[str] = (),
    metadata: Mapping[str, str] = DEFAULT_METADATA,
    single_file: str = SINGLE_FILE,
) -> ShardLayout:
    """Distribute (name, dtype, shape) over shards, greedily and in the given order.

    `beside` are files of their own, by name, of which each has entries by the tensors' names in it; the index does not
    list them. Where there are such and no `entries`, there are no shards but these. Those in `sharded_beside` are
    sharded as the main set is, each with an index of its own. `metadata` is that of the files of the main set,
    and `single_file` its name where it is one (default: transformers'), from which names of shards are made.

    A shard is closed when the next tensor would take its tensor bytes above `shard_bytes` (default
    5 GB, as on the Hugging Face Hub); a larger tensor gets a shard of its own. Within a shard wider
    dtypes come first, so that every tensor is aligned to its element size; the given order is kept
    otherwise. Raises `UsageError` for a shard size below 1 and `OutputError` for names that cannot
    be written.
    """
    if shard_bytes < 1:
        raise UsageError(f"a shard size of {shard_bytes} bytes is not possible: choose at least 1.")
    beside = beside or {}
    _check_unique([*entries, *(entry for own in beside.values() for entry in own.values())])
    groups = _fill_shards(entries, shard_bytes) if entries or not beside else []
    shards = [
        _shard(group, _file_name(single_file, i, len(groups)), i, metadata)
        for i, group in enumerate(groups)
    ]
    indices = _index_of(shards, single_file, {name: name for name, _, _ in entries})
    for file_name, own in beside.items():
        if any(shard.file_name == file_name for shard in shards):
            raise OutputError(
                f"the file {shown(file_name)} would be written twice: rename or drop one of them."
            )
        limit = shard_bytes if file_name in sharded_beside else None
        files = _files_beside(file_name, own, len(shards), limit)
        indices |= _index_of(files, file_name, {own[stored][0]: stored for stored in own})
        shards += files
    placements = {p.name: p for shard in shards for p in shard.placements}
    total_size = sum(p.nbytes for p in placements.values())
    return ShardLayout(tuple(shards), total_size, indices, placements)


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


def _shard(
    group: Sequence[Entry], file_name: str, position: int, metadata: Mapping[str, str]
) -> Shard:
    aligned = sorted(group, key=lambda entry: -entry[1].itemsize)
    header = encode_header(aligned, metadata)
    placements, size = _placed(aligned, position, len(header))
    return Shard(file_name, header, size, placements)


def _files_beside(
    file_name: str, own: Mapping[str, Entry], first: int, shard_bytes: int | None
) -> list[Shard]:
    """A file beside the main set, or its shards; `first` is the position of the first one in the layout."""
    names = {entry[0]: stored for stored, entry in own.items()}
    groups = (
        [list(own.values())] if shard_bytes is None else _fill_shards([*own.values()], shard_bytes)
    )
    return [
        _beside(
            _file_name(file_name, i, len(groups)),
            {names[entry[0]]: entry for entry in group},
            first + i,
        )
        for i, group in enumerate(groups)
    ]


def _beside(file_name: str, own: Mapping[str, Entry], position: int) -> Shard:
    """A file beside the main set, in whose header tensors have other names than in the layout."""
    aligned = sorted(own.items(), key=lambda named: -named[1][1].itemsize)
    header = encode_header([(stored, dtype, shape) for stored, (_, dtype, shape) in aligned])
    placements, size = _placed([entry for _, entry in aligned], position, len(header))
    return Shard(file_name, header, size, placements, is_beside=True)


def _index_of(
    shards: Sequence[Shard], file_name: str, names: Mapping[str, str]
) -> dict[str, bytes]:
    """The index of several shards by its name, of the tensors in the order of `names`, which has their stored names."""
    if len(shards) < 2:
        return {}
    folder = file_name.rpartition("/")[0]
    files = {
        p.name: shard.file_name.removeprefix(f"{folder}/")
        for shard in shards
        for p in shard.placements
    }
    size = sum(p.nbytes for shard in shards for p in shard.placements)
    weight_map = {stored: files[name] for name, stored in names.items()}
    return {file_name + _INDEX: encode_index(weight_map, size)}


def _placed(
    entries: Sequence[Entry], position: int, offset: int
) -> tuple[tuple[Placement, ...], int]:
    """The places of tensors one after the other from a byte on, and the byte after the last."""
    placements: list[Placement] = []
    for name, dtype, shape in entries:
        placements.append(Placement(name, dtype, shape, position, offset))
        offset += placements[-1].nbytes
    return tuple(placements), offset


def _file_name(whole: str, position: int, count: int) -> str:
    """The name of a shard of the set that would be called `whole` in one file."""
    if count == 1:
        return whole
    return f"{whole.removesuffix(_ENDING)}-{position + 1:05d}-of-{count:05d}{_ENDING}"
