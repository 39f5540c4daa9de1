"""The small ViT of the vision families: how it begins, what its features are, how it is written.

The network is transformers' ViTModel. It works on images of shape [B, 1, 24, 24], standardised one by one; its feature
is the mean of the last hidden states of the patches, [B, D].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weightsmith.errors import VerificationError
from weightsmith.testbeds.data.images import SIDE


@dataclass(frozen=True, slots=True)
class VitSize:
    """The size of a ViT: width, layers, attention heads, and pixels of a patch's side."""

    width: int
    layers: int
    heads: int
    patch: int = 6


def new_model(size: VitSize, seed: int) -> Any:
    """A ViT with random weights and position embeddings that begin as sines and cosines of the place.

    The usual deviation of 0.02 of the weights is too small for a network this narrow: it would not learn.
    """
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=SIDE,
        patch_size=size.patch,
        num_channels=1,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=3 * size.width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.08,
    )
    model = ViTModel(config, add_pooling_layer=False)
    with torch.no_grad():
        model.embeddings.position_embeddings[0, 1:] = _places(SIDE // size.patch, size.width)
    return model


def _places(side: int, width: int) -> torch.Tensor:
    """Sines and cosines of column and row at a quarter of `width` frequencies each, [side * side, width]."""
    quarter = width // 4
    frequencies = 100.0 ** (-torch.arange(quarter) / quarter)
    rows, columns = torch.meshgrid(
        torch.arange(side).float(), torch.arange(side).float(), indexing="ij"
    )
    waves = [place.flatten()[:, None] * frequencies for place in (columns, rows)]
    return 0.5 * torch.cat([f(wave) for wave in waves for f in (torch.sin, torch.cos)], dim=1)


def features(model: Any, images: torch.Tensor) -> torch.Tensor:
    """Mean of the last hidden states of the patches, [B, D], for images [B, 1, 24, 24]."""
    states: torch.Tensor = model(pixel_values=images).last_hidden_state
    return states[:, 1:].mean(1)


def all_features(model: Any, images: torch.Tensor, batch: int = 250) -> torch.Tensor:
    """Features of many images, in batches, without gradients."""
    with torch.no_grad():
        firsts = range(0, len(images), batch)
        return torch.cat([features(model, images[i : i + batch]) for i in firsts])


def write_model(model: Any, folder: Path, read: Callable[[Path], Any] | None = None) -> None:
    """Save a checkpoint folder and read it again, with `read` (default: `read_model`).

    transformers 5 renames most tensors of a ViT between memory and disk, and a wrong name would be filled with random
    numbers without an error, so every tensor is compared. Raises VerificationError if one does not come back as it was.
    """
    with quiet_library():
        model.save_pretrained(folder)
    again = (read or read_model)(folder).state_dict()
    state = model.state_dict()
    differ = [n for n in state if n not in again or not torch.equal(state[n], again[n])]
    if differ or len(again) != len(state):
        raise VerificationError(
            f"The checkpoint {str(folder)!r} does not read back as it was written ({len(differ)} tensors differ, "
            f"such as {differ[:1]!r}): use a version of transformers that constraints.txt names."
        )


def read_model(folder: Path) -> Any:
    """A checkpoint folder as a model in float32."""
    from transformers import ViTModel

    with quiet_library():
        return ViTModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32)


@contextmanager
def quiet_library() -> Iterator[None]:
    """No progress bars of transformers: a build has one of its own."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def as_tensor(images: np.ndarray[Any, Any]) -> torch.Tensor:
    """Images [N, 24, 24] as a float32 tensor [N, 1, 24, 24]."""
    return torch.from_numpy(np.ascontiguousarray(images, np.float32))[:, None]
