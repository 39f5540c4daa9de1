"""Frozen heads: a task's classes in the feature space of a family, kept beside the models.

A frozen head is a safetensors file. Either

    logits = scale * cosine(feature - mean, direction of each class)    `directions` [C, D], `mean` [D], `scale`

or, with `weight` [C, D] and `bias` [C] (optional), logits = weight feature + bias. Its metadata has `classes` (a JSON
list of C names) and `pooling` (what the feature is made of; see POOLINGS).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weightsmith.errors import CheckpointError, Malformed, UsageError
from weightsmith.live import as_torch
from weightsmith.tensors import loads_json, parse_file
from weightsmith.wording import fault

if TYPE_CHECKING:
    from torch import Tensor

POOLINGS: Mapping[str, str] = {
    "mean_patch_tokens": "the mean of the last hidden states without the first token",
    "mean_tokens": "the mean of the last hidden states",
    "first_token": "the last hidden state of the first token",
    "pooled": "the network's own pooled output, flattened",
}


@dataclass(frozen=True, slots=True, eq=False)
class FrozenHead:
    """A head with `width` features in; `classes` are the names of what comes out."""

    logits: Callable[[Tensor], Tensor]
    width: int
    pooling: str
    classes: tuple[str, ...]


def read_head(path: Path, device: str = "cpu") -> FrozenHead:
    """A frozen head; raises UsageError for a file that is none."""
    try:
        file = parse_file(path)
        tensors = {t.name: as_torch(t).float().to(device) for t in file.tensors}
        classes = tuple(map(str, loads_json(file.metadata["classes"].encode())))
        return _head(tensors, file.metadata, classes)
    except (CheckpointError, KeyError, ValueError, TypeError) as error:
        raise UsageError(
            f"{str(path)!r} is no head ({fault(error)}); it needs weight, or directions, mean and scale, and "
            "`classes` in its metadata."
        ) from error


def _head(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], classes: tuple[str, ...]
) -> FrozenHead:
    from torch.nn import functional

    pooling = metadata.get("pooling", "pooled")
    if pooling not in POOLINGS:
        raise Malformed(f"there is no pooling {pooling!r}, only {', '.join(POOLINGS)}")
    if "directions" in tensors:
        mean, directions, scale = (tensors[n] for n in ("mean", "directions", "scale"))
        directions = functional.normalize(directions, dim=1)

        def cosines(features: Tensor) -> Tensor:
            centred = functional.normalize(features - mean, dim=1)
            return scale * centred @ directions.T

        logits: Callable[[Tensor], Tensor] = cosines
        matrix = directions
    else:
        matrix, bias = tensors["weight"], tensors.get("bias")

        def linear(features: Tensor) -> Tensor:
            return functional.linear(features, matrix, bias)

        logits = linear
    if matrix.ndim != 2 or len(matrix) != len(classes):
        raise Malformed(f"its matrix is {tuple(matrix.shape)}, and it names {len(classes)} classes")
    return FrozenHead(logits, matrix.shape[1], pooling, classes)
