"""Files of masks: a safetensors file with numbers in [0, 1] for the weights of one checkpoint.

Its metadata has one entry, `weightsmith_mask`, a JSON object:

    schema         1
    kind           mask, or mask_gradient: dL/dm of a loss L
    of             {name, digest}: the checkpoint whose task vector is masked, and its fingerprint
    weightsmith    the version that wrote it

Tensors have the names of the checkpoint's weights. Each has its weight's shape, or axes of length 1 in places of the
weight's, over which it is the same; or it is a single number. Weights without one are not masked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.checkpoints import (
    Checkpoint,
    Statistics,
    StatisticsHeader,
    checkpoint_fingerprint,
    open_checkpoint,
)
from weightsmith.errors import CheckpointError, CompatibilityError, UsageError
from weightsmith.publishing import check_file, staged_file, write_sealed_tensors
from weightsmith.recipes.masks.mask_tensors import StoredMask, require_fit
from weightsmith.tensors import DType, LazyTensor, expanded, parse_json, shown
from weightsmith.wording import fault

METADATA_ENTRY = "weightsmith_mask"
MASK, GRADIENT = "mask", "mask_gradient"
# What the file is sealed as.
SEAL = "mask"
_DTYPES = {np.dtype(t.value): t for t in (DType.BOOL, DType.FLOAT16, DType.FLOAT32)}
_Array = NDArray[Any]


def write_masks(
    path: str | Path, masks: Mapping[str, Any], *, of: Checkpoint | str | Path
) -> None:
    """Write masks of the weights of `of`: arrays (numpy, or torch) of booleans or of numbers in [0, 1] by name.

    float16 and float32 keep their dtype, bfloat16 becomes float32. A mask has the shape of its weight, or axes of length 1
    over which it is the same, or is a single number. The file appears whole or not at all, and replaces only masks that this
    function wrote and nobody changed. Raises UsageError for what is no mask of the checkpoint, and OutputError where the
    file may not or cannot be written.
    """
    checkpoint = of if isinstance(of, Checkpoint) else open_checkpoint(of)
    arrays = {name: _array(name, given) for name, given in masks.items()}
    for name, array in arrays.items():
        weight = checkpoint.tensors.get(name)
        if weight is None:
            raise UsageError(f"{checkpoint.identity} has no tensor {shown(name)} to be masked.")
        if not ((array >= 0) & (array <= 1)).all():
            raise UsageError(f"The mask of {shown(name)} has numbers outside of [0, 1].")
        try:
            require_fit(
                f"The mask of {shown(name)}", _DTYPES[array.dtype], array.shape, weight.shape
            )
        except CompatibilityError as problem:
            raise UsageError(str(problem)) from None
    entries = [(n, _DTYPES[array.dtype], array.shape) for n, array in arrays.items()]
    metadata = mask_metadata(MASK, checkpoint.name, checkpoint_fingerprint(checkpoint))
    earlier = check_file(Path(path), SEAL, checkpoint.inputs)
    with staged_file(expanded(Path(path)).absolute()) as staged:
        data = (array.reshape(-1).view(np.uint8).data for array in arrays.values())
        write_sealed_tensors(staged.descriptor, staged.place, entries, data, metadata, SEAL)
        staged.publish(earlier)


def mask_metadata(kind: str, name: str, digest: str) -> dict[str, str]:
    """The metadata of a file of masks, or of their gradients, of a checkpoint."""
    from weightsmith.version import __version__

    of = {"name": name, "digest": digest}
    content = {"schema": 1, "kind": kind, "of": of, "weightsmith": __version__}
    return {METADATA_ENTRY: json.dumps(content, sort_keys=True)}


def is_mask_file(opened: Checkpoint) -> bool:
    """Whether a file says that it holds masks."""
    return METADATA_ENTRY in opened.metadata


def masks_of(opened: Checkpoint) -> Statistics:
    """The masks in a file that was opened as a checkpoint, as they are stored.

    They are statistics of kind `mask`; see `spread`. Raises CheckpointError where the header says otherwise.
    """
    text = opened.metadata[METADATA_ENTRY]
    content = parse_json(text.encode(), f"{opened.identity}: {METADATA_ENTRY}")
    try:
        known = content["schema"] == 1 and content["kind"] == MASK
        name, digest = str(content["of"]["name"]), str(content["of"]["digest"])
    except (KeyError, TypeError) as problem:
        raise CheckpointError(
            f"{opened.identity} has a header of masks that cannot be read ({fault(problem)}): write it again."
        ) from None
    if not known:
        raise CheckpointError(
            f"{opened.identity} holds no masks of schema 1 (its kind is {shown(str(content['kind']))}); give a file that "
            "`write_masks` made."
        )
    header = StatisticsHeader(MASK, name, digest, data="", samples=1)
    return Statistics(header, opened, {name: (name,) for name in opened.tensors})


def spread(masks: Statistics, checkpoint: Checkpoint) -> Statistics:
    """Masks of `checkpoint`, each in the shape of its weight; raises CompatibilityError where one does not fit."""
    tensors: dict[str, LazyTensor] = {}
    for name, stored in masks.checkpoint.tensors.items():
        shape = checkpoint.tensors[name].shape
        require_fit(stored.location, stored.dtype, stored.shape, shape)
        tensors[name] = StoredMask(name, shape, stored)
    return replace(masks, checkpoint=replace(masks.checkpoint, tensors=tensors))


def _array(name: str, given: Any) -> _Array:
    if hasattr(given, "detach"):
        given = given.detach().cpu()
        given = given.float() if str(given.dtype) == "torch.bfloat16" else given
        given = given.numpy()
    array: _Array = np.ascontiguousarray(given).reshape(np.shape(given))
    if array.dtype not in _DTYPES:
        raise UsageError(
            f"The mask of {shown(name)} holds {array.dtype}, not booleans or numbers of 16 or 32 bits."
        )
    return array
