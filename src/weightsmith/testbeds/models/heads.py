"""Frozen heads: a task's classes as directions in the base's feature space, fixed before any expert is trained.

They stand for the text side of a contrastive model: the base answers a task it was never trained on, every expert
of the family is read through the same heads, and a merged model can be too.

    logits = scale * cosine(feature - mean, direction of each class)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from weightsmith.tensors import DType, encode_header

POOLING = "mean_patch_tokens"


@dataclass(frozen=True, slots=True)
class ContrastHead:
    """mean [D], directions [C, D] of length 1, and a scale; `classes` has the C names."""

    mean: torch.Tensor
    directions: torch.Tensor
    scale: float
    classes: tuple[str, ...]

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [B, C] of features [B, D]."""
        centred = functional.normalize(features - self.mean, dim=1)
        return self.scale * centred @ self.directions.T

    def right(self, features: torch.Tensor, labels: torch.Tensor) -> float:
        """Accuracy: the share of features whose largest logit is at their label."""
        return (self.logits(features).argmax(1) == labels).double().mean().item()


def make_head(
    features: torch.Tensor, labels: torch.Tensor, classes: tuple[str, ...], scale: float
) -> ContrastHead:
    """The head whose directions are the centred means of each class's features."""
    mean = features.mean(0)
    means = torch.stack([features[labels == k].mean(0) for k in range(len(classes))])
    return ContrastHead(mean, functional.normalize(means - mean, dim=1), scale, classes)


def write_head(head: ContrastHead, path: Path) -> None:
    """Write a head as safetensors; class names (a JSON list) and the pooling are in its metadata."""
    tensors = {
        "mean": head.mean,
        "directions": head.directions,
        "scale": torch.tensor([head.scale]),
    }
    metadata = {"classes": json.dumps(head.classes, ensure_ascii=False), "pooling": POOLING}
    # The safetensors library writes metadata in a random order; the same head must be the same file.
    entries = [(name, DType.FLOAT32, tuple(tensor.shape)) for name, tensor in tensors.items()]
    arrays = [np.ascontiguousarray(tensor.numpy(), "<f4") for tensor in tensors.values()]
    header = encode_header(entries, metadata)
    path.write_bytes(header + b"".join(array.tobytes() for array in arrays))


def read_head(path: Path) -> ContrastHead:
    """The head that `write_head` wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        mean, directions, scale = (opened.get_tensor(n) for n in ("mean", "directions", "scale"))
        classes = tuple(json.loads(opened.metadata()["classes"]))
    return ContrastHead(mean, directions, scale.item(), classes)
