"""An optimiser's state in shards, as torch.distributed.checkpoint writes it for FSDP.

    .metadata       a pickle: for each entry of the flattened state its shape and pieces, and where each piece is
    __R_N.distcp    pieces of rank R one after another, each as torch.save writes it

Entries are called `optimizer.state.NAME.exp_avg_sq`, `optimizer.param_groups.0.betas`, with or without `optimizer.`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import CheckpointError
from weightsmith.tensors import (
    PickledRecord,
    read_pickled_records,
    read_saved_object,
    shown,
)

METADATA = ".metadata"
_STATE = re.compile(r"(?:[^.]+\.)??state\.(?P<name>.+)\.(?P<key>exp_avg_sq|step)")
_GROUP = re.compile(r"(?:[^.]+\.)??param_groups\.(?P<group>.+)\.(?P<key>betas|params|param_names)")
_GROUPS = re.compile(r"(?:[^.]+\.)??param_groups")


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """A part of an entry: where it begins and how long it is along each axis, and its bytes in a file."""

    begin: tuple[int, ...]
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    def read(self) -> Any:
        """What was saved there."""
        what = f"The piece at byte {self.offset} of {shown(self.file)}"
        try:
            with self.file.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.nbytes)
        except OSError as error:
            raise CheckpointError(f"{what} cannot be read ({error.strerror}).") from error
        if len(data) < self.nbytes:
            raise CheckpointError(f"{what} is cut off: fetch the file again.")
        return read_saved_object(data, what)


@dataclass(frozen=True, slots=True, eq=False)
class ShardedTensor:
    """A tensor whose pieces lie in several files."""

    shape: tuple[int, ...]
    pieces: Sequence[_Piece]

    def read(self) -> NDArray[np.float32]:
        """The tensor in one piece."""
        found, is_there = np.zeros(self.shape, np.float32), np.zeros(self.shape, np.bool_)
        for piece in self.pieces:
            own = piece.read()
            if not isinstance(own, np.ndarray) or own.shape != piece.shape:
                raise CheckpointError(
                    f"{shown(piece.file)} has no tensor of shape {list(piece.shape)} at byte {piece.offset}, where "
                    f"{METADATA} says that there is one: fetch both again."
                )
            places = zip(piece.begin, piece.shape, strict=True)
            box = tuple(slice(start, start + length) for start, length in places)
            found[box], is_there[box] = own, True
        if not is_there.all():
            raise CheckpointError(
                f"The pieces of a tensor in {shown(self.pieces[0].file.parent)} overlap: save it again."
            )
        return found


def sharded_folder(place: Path) -> Path | None:
    """The folder of sharded states: the place itself, or that of the optimiser in it."""
    if not place.is_dir():
        return None
    folders = (place, *sorted(place.glob("optimizer*")))
    return next((folder for folder in folders if (folder / METADATA).is_file()), None)


def read_sharded_state(folder: Path) -> tuple[dict[Any, dict[str, Any]], list[dict[str, Any]]]:
    """The state of an optimiser by parameters, and its groups; tensors are read later.

    Raises CheckpointError for metadata that are none of torch.distributed.checkpoint, and pieces that are no whole.
    """
    try:
        entries = dict(_entries(folder))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{shown(folder / METADATA)} is no metadata of torch.distributed.checkpoint that is known here "
            f"({type(error).__name__})."
        ) from None
    state: dict[Any, dict[str, Any]] = {}
    groups: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        if own := _STATE.fullmatch(name):
            key = int(own["name"]) if own["name"].isdecimal() else own["name"]
            state.setdefault(key, {})[own["key"]] = entry
        elif (own := _GROUP.fullmatch(name)) and isinstance(entry, _Piece):
            groups.setdefault(own["group"], {})[own["key"]] = entry.read()
        elif _GROUPS.fullmatch(name) and isinstance(entry, _Piece):
            return state, list(entry.read())
    return state, list(groups.values())


def _entries(folder: Path) -> list[tuple[str, ShardedTensor | _Piece]]:
    """Every entry by its flattened name."""
    root = _attributes(read_pickled_records(folder / METADATA))
    places = {}
    for index, info in root["storage_data"].items():
        own, place = _attributes(index), _attributes(info)
        if place.get("transform_descriptors"):
            raise CheckpointError(
                f"{shown(folder)} is compressed, which is not read here; save it without."
            )
        file = folder / _plain_name(place["relative_path"])
        at = _extent(own.get("offset") or ())
        places[own["fqn"], at] = file, int(place["offset"]), int(place["length"])
    found: list[tuple[str, ShardedTensor | _Piece]] = []
    for name, described in root["state_dict_metadata"].items():
        own = _attributes(described)
        if "chunks" not in own:
            found.append((name, _Piece((), (), *places[name, ()])))
            continue
        chunks = [_attributes(chunk) for chunk in own["chunks"]]
        pieces = [
            _Piece(at, _extent(chunk["sizes"]), *places[name, at])
            for chunk in chunks
            for at in [_extent(chunk["offsets"])]
        ]
        found.append((name, ShardedTensor(_covered(folder, name, own["size"], pieces), pieces)))
    return found


def _covered(folder: Path, name: str, size: Any, pieces: Sequence[_Piece]) -> tuple[int, ...]:
    """The shape that pieces make up; raises CheckpointError where they are too many, too few or outside of it."""
    shape = _extent(size)
    inside = all(
        begin + length <= whole
        for piece in pieces
        for begin, length, whole in zip(piece.begin, piece.shape, shape, strict=True)
    )
    if not inside or sum(math.prod(piece.shape) for piece in pieces) != math.prod(shape):
        raise CheckpointError(
            f"{shown(folder)} does not have all of {shown(name)} {list(shape)} once: fetch it again."
        )
    return shape


def _attributes(record: Any) -> Mapping[str, Any]:
    if not isinstance(record, PickledRecord):
        raise TypeError
    return record.attributes


def _extent(value: Any) -> tuple[int, ...]:
    if type(value) is not tuple or not all(type(n) is int and n >= 0 for n in value):
        raise TypeError
    return value


def _plain_name(value: Any) -> str:
    """The name of a file in the folder itself."""
    if not isinstance(value, str) or Path(value).name != value:
        raise ValueError
    return value
