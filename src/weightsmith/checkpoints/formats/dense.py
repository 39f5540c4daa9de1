"""Checkpoints as most are: a folder in the layout of Hugging Face, or one file of weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from weightsmith.checkpoints.checkpoint import Checkpoint, assemble
from weightsmith.checkpoints.copied_files import is_inside
from weightsmith.checkpoints.formats.outside_base import Bases
from weightsmith.checkpoints.formats.weights import find_weights, read_weights
from weightsmith.checkpoints.json_files import read_json
from weightsmith.checkpoints.locate import Location
from weightsmith.errors import CheckpointError
from weightsmith.tensors import LazyTensor, shown


def open_located(location: Location, source: str, bases: Bases) -> Checkpoint:
    """The checkpoint whose weights lie there as they are; `bases` are not asked, for nothing is behind it.

    Raises CheckpointError for what is missing, damaged, hostile or unknown.
    """
    del bases
    place = location.path
    is_folder = place.is_dir()
    weights = find_weights(place) if is_folder else place
    config = read_config(place) if is_folder else None
    listed = read_weights(weights)
    tensors: dict[str, LazyTensor] = {tensor.name: tensor for tensor in listed.tensors}
    if not tensors:
        raise CheckpointError(f"{shown(weights)} holds no tensors: give a checkpoint with weights.")
    opened = assemble(
        tensors,
        config,
        path=place,
        source=source,
        hub_id=location.hub_id,
        revision=location.revision,
    )
    return opened if is_folder else replace(opened, metadata=listed.metadata)


def read_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of a folder, None without one; raises CheckpointError for links out of the folder."""
    file = folder / "config.json"
    if not file.exists() and not file.is_symlink():
        return None
    if not is_inside(file, folder):
        raise CheckpointError(
            f"{shown(file)} is a link that leaves the checkpoint's folder or leads nowhere: put "
            "the file itself there."
        )
    return read_json(file)
