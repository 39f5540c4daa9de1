"""Checkpoints as most are: a folder in the layout of Hugging Face, or one file of weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from weightsmith.checkpoints.checkpoint import Checkpoint, assemble
from weightsmith.checkpoints.copied_files import is_inside
from weightsmith.checkpoints.formats.outside_base import Bases
from weightsmith.checkpoints.formats.side_files import find_side_files
from weightsmith.checkpoints.formats.weights import (
    ListedWeights,
    find_weights,
    has_weights,
    read_weights,
)
from weightsmith.checkpoints.json_files import read_json
from weightsmith.checkpoints.locate import Location
from weightsmith.checkpoints.module_folders import module_folders
from weightsmith.errors import CheckpointError
from weightsmith.naming import beside
from weightsmith.tensors import LazyTensor, shown, way_out


def open_located(location: Location, source: str, bases: Bases) -> Checkpoint:
    """The checkpoint whose weights lie there as they are; `bases` are not asked, for nothing is behind it.

    Raises CheckpointError for what is missing, damaged, hostile or unknown.
    """
    del bases
    place = location.path
    is_folder = place.is_dir()
    if not is_folder:
        listed = read_weights(place)
        opened = assemble(_by_name(listed, place), None, path=place, source=source)
        return replace(opened, metadata=listed.metadata)
    # A sentence encoder may have all its weights in folders of its modules.
    parts = module_folders(place)
    weights = None if parts and not has_weights(place) else find_weights(place)
    config = read_config(place)
    tensors = {} if weights is None else _by_name(read_weights(weights), weights)
    sides = find_side_files(place, weights, parts, tensors.keys(), shown(source))
    if not tensors and not sides.tensors:
        raise CheckpointError(f"{shown(place)} holds no tensors: give a checkpoint with weights.")
    opened = assemble(
        {**tensors, **sides.tensors},
        config,
        path=place,
        source=source,
        hub_id=location.hub_id,
        revision=location.revision,
    )
    return replace(opened, about_files=sides.findings) if sides.findings else opened


def _by_name(listed: ListedWeights, weights: Path) -> dict[str, LazyTensor]:
    tensors: dict[str, LazyTensor] = {tensor.name: tensor for tensor in listed.tensors}
    if not tensors:
        raise CheckpointError(f"{shown(weights)} holds no tensors: give a checkpoint with weights.")
    odd = next((name for name in tensors if beside(name) is not None), None)
    if odd is not None:
        raise CheckpointError(
            f"{shown(weights)} has a tensor {shown(odd)}, whose name is that of a tensor in another file: rename it."
        )
    return tensors


def read_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of a folder, None without one; raises CheckpointError for links out of the folder."""
    file = folder / "config.json"
    if not file.exists() and not file.is_symlink():
        return None
    if not is_inside(file, folder):
        raise CheckpointError(f"{shown(file)} {way_out(file)}.")
    return read_json(file)
