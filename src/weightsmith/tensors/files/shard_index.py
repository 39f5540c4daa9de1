"""The index of a sharded checkpoint: which file holds which tensor."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from weightsmith.errors import CheckpointError
from weightsmith.tensors.files.open_files import OPEN_FILES, read_bytes
from weightsmith.tensors.files.parsed_once import ParsedOnce
from weightsmith.tensors.files.safetensors_header import read_header
from weightsmith.tensors.files.shard_paths import resolve_inside
from weightsmith.tensors.files.strict_json import collection_paused, parse_json
from weightsmith.tensors.messages import is_printable_name, shown
from weightsmith.tensors.stored import StoredTensor

LARGEST_INDEX_BYTES = 100_000_000

SAFETENSORS_SUFFIXES = (".safetensors",)
TORCH_SUFFIXES = (".bin", ".pt", ".pth")

_INDEX_ENDINGS = {
    ".safetensors.index.json": SAFETENSORS_SUFFIXES,
    **{f"{suffix}.index.json": TORCH_SUFFIXES for suffix in TORCH_SUFFIXES},
}
_WEIGHT_MAPS: ParsedOnce[Mapping[str, str]] = ParsedOnce(most_bytes=1 << 25)


def read_index(path: Path) -> list[StoredTensor]:
    """The tensors of all shards that the index at `path` names: shards by name, tensors in file
    order.

    The index must be named `*.safetensors.index.json` or `*.bin.index.json`, and the names of
    tensors in it and in its shards must be the same, each in the shard it is said to be in. Only
    headers are read. Raises `CheckpointError`.
    """
    suffixes = _suffixes_of(path)
    weight_map = read_weight_map(path)
    shards = {
        shard: resolve_inside(path.parent, shard, path, suffixes)
        for shard in sorted(set(weight_map.values()))
    }
    read = read_header if suffixes == SAFETENSORS_SUFFIXES else _torch_reader()
    found = {shard: read(file) for shard, file in shards.items()}
    tensors = [tensor for own in found.values() for tensor in own]
    home = {tensor.name: shard for shard, own in found.items() for tensor in own}
    if len(home) < len(tensors) or home != weight_map:
        _refuse(found, weight_map, path)
    return tensors


def _torch_reader() -> Callable[[Path], list[StoredTensor]]:
    # Imported here because few checkpoints are pickled and the interpreter is large.
    from weightsmith.tensors.pickles.pickle_reader import read_torch_file

    return read_torch_file


def _suffixes_of(path: Path) -> tuple[str, ...]:
    for ending, suffixes in _INDEX_ENDINGS.items():
        if path.name.endswith(ending):
            return suffixes
    known = ", ".join(f"*{ending}" for ending in _INDEX_ENDINGS)
    raise CheckpointError(
        f"{shown(path)} is not named like an index of shards ({known}): rename it."
    )


def read_weight_map(path: Path) -> Mapping[str, str]:
    """The map from tensor name to shard name that an index states, with no file of it checked yet.

    Raises `CheckpointError` for an index that is too large, not strict JSON, or has no such map.
    """
    with OPEN_FILES.opened(path) as (descriptor, identity):
        if identity.size > LARGEST_INDEX_BYTES:
            raise CheckpointError(
                f"{shown(path)} has {identity.size} bytes, above the limit of {LARGEST_INDEX_BYTES} for an "
                "index: the file is damaged or hostile, fetch it again."
            )
        data = read_bytes(descriptor, path, 0, identity.size, "the index")
    return _WEIGHT_MAPS.of(data, lambda: _weight_map(data, path))


def _weight_map(data: bytes, path: Path) -> Mapping[str, str]:
    with collection_paused():
        document = parse_json(data, f"{shown(path)}: the index")
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{shown(path)} has no weight_map: it is not an index of shards.")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not is_printable_name(name):
            raise CheckpointError(
                f"{shown(path)}: the weight_map entry {shown(name)} is not a tensor's name with a file's name."
            )
    return weight_map


def _refuse(
    found: Mapping[str, list[StoredTensor]], weight_map: Mapping[str, str], path: Path
) -> None:
    """Raise what an index and its shards do not agree in."""
    home: dict[str, str] = {}
    for shard, tensors in found.items():
        for tensor in tensors:
            _check_home(tensor.name, shard, weight_map, home, path)
    _check_all_found(weight_map, home, path)


def _check_home(
    name: str, shard: str, weight_map: Mapping[str, str], home: dict[str, str], path: Path
) -> None:
    if name in home:
        raise CheckpointError(
            f"{shown(path)}: tensor {shown(name)} lies in two shards, {shown(home[name])} and {shown(shard)}: "
            "remove one of them."
        )
    stated = weight_map.get(name)
    if stated is None:
        raise CheckpointError(
            f"{shown(path)} has no entry for tensor {shown(name)} of {shown(shard)}: add it, or remove the tensor."
        )
    if stated != shard:
        raise CheckpointError(
            f"{shown(path)} places tensor {shown(name)} in {shown(stated)}, but it lies in {shown(shard)}: "
            "correct the index."
        )
    home[name] = shard


def _check_all_found(weight_map: Mapping[str, str], home: Mapping[str, str], path: Path) -> None:
    missing = [name for name in weight_map if name not in home]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{shown(path)} lists tensor {shown(missing[0])}{others} in {shown(weight_map[missing[0]])}, which "
            "does not hold it: fetch that file again."
        )


def encode_index(weight_map: Mapping[str, str], total_size: int) -> bytes:
    """The bytes of an index file: tensor name to shard name, and the bytes of all tensors together."""
    # As `indent=2` has it, which the encoder in C does not know.
    separators = (",\n    ", ": ")
    entries = json.dumps(dict(weight_map), ensure_ascii=False, separators=separators)[1:-1]
    return (
        f'{{\n  "metadata": {{\n    "total_size": {total_size}\n  }},\n'
        f'  "weight_map": {{\n    {entries}\n  }}\n}}\n'
    ).encode()
