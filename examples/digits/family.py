"""A real family of classifiers, trained in seconds: a base that can draw, two experts that read.

The base is a denoising autoencoder of scikit-learn's 8 x 8 handwritten digits whose classifier is
still zero, so it reads nothing. Each expert starts from the base and learns to tell five digits
apart by cross-entropy over those five, with a small step in the body and a large one in the
classifier, as is usual when a pretrained model is tuned. Everything is saved as Hugging Face style
folders, and beside them a suite of two tasks, the held-out images of either half of the digits.

    x [B, 64] -> embed [B, H] -> L residual blocks h + relu(W h + c) -> classifier [B, 10]
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

WIDTH, LAYERS, PIXELS, CLASSES = 512, 2, 64, 10
BATCH = 64
EXPERTS = {"expert-low": (0, 1, 2, 3, 4), "expert-high": (5, 6, 7, 8, 9)}
CONFIG = {
    "architectures": ["DigitsClassifier"],
    "model_type": "digits-mlp",
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_labels": CLASSES,
    "dtype": "float32",
}
SUITE = """\
# The images that no model was trained on, by the half of the digits that they show.
suite: digits
tasks:
  - {name: low, kind: classification, data: low.npz, slice: digit}
  - {name: high, kind: classification, data: high.npz, slice: digit}
"""
PREPROCESSOR = {"image_size": [8, 8], "rescale_factor": 1 / 16}


@dataclass(frozen=True, slots=True)
class Images:
    """Pixels in [0, 1] of shape [N, 64] and the digits they show, of shape [N]."""

    pixels: torch.Tensor
    digits: torch.Tensor

    def showing(self, digits: tuple[int, ...]) -> Images:
        """Only the images of some digits."""
        chosen = torch.isin(self.digits, torch.tensor(digits))
        return Images(self.pixels[chosen], self.digits[chosen])


class Classifier(nn.Module):
    """A residual multilayer perceptron with the tensor names of a Hugging Face model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {
                "embed": nn.Linear(PIXELS, WIDTH),
                "layers": nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)),
            }
        )
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Hidden state of shape [B, H] for pixels of shape [B, 64]."""
        hidden = torch.relu(self.model["embed"](pixels))
        for layer in self.model["layers"]:
            hidden = hidden + torch.relu(layer(hidden))
        return hidden

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits of shape [B, 10]."""
        return self.classifier(self.features(pixels))


def load_images() -> tuple[Images, Images]:
    """The training images and the held-out ones (30 %), always the same split."""
    pixels, digits = load_digits(return_X_y=True)
    split = train_test_split(pixels / 16, digits, test_size=0.3, random_state=0, stratify=digits)
    train_pixels, test_pixels, train_digits, test_digits = split

    def images(pixels: np.ndarray, digits: np.ndarray) -> Images:
        return Images(torch.tensor(pixels, dtype=torch.float32), torch.tensor(digits))

    return images(train_pixels, train_digits), images(test_pixels, test_digits)


def train_base(images: Images, *, steps: int = 600, learning_rate: float = 1e-3) -> Classifier:
    """Learn to restore images of which 40 % of the pixels are missing; no digit is told."""
    torch.manual_seed(0)
    network, decoder = Classifier(), nn.Linear(WIDTH, PIXELS)
    optimizer = torch.optim.Adam([*network.parameters(), *decoder.parameters()], learning_rate)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        batch = torch.randint(len(images.pixels), (BATCH,), generator=generator)
        pixels = images.pixels[batch]
        seen = pixels * (torch.rand(pixels.shape, generator=generator) > 0.4)
        loss = functional.mse_loss(decoder(network.features(seen)), pixels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    nn.init.zeros_(network.classifier.weight)
    nn.init.zeros_(network.classifier.bias)
    return network


def train_expert(
    base: Classifier, images: Images, own: tuple[int, ...], *, steps: int = 200
) -> Classifier:
    """Tune a copy of the base to tell its own digits apart; it never sees another."""
    network = copy.deepcopy(base)
    images = images.showing(own)
    others = torch.full((CLASSES,), float("-inf")).index_fill(0, torch.tensor(own), 0.0)
    optimizer = torch.optim.Adam(
        [
            {"params": network.model.parameters(), "lr": 3e-5},
            {"params": network.classifier.parameters(), "lr": 3e-3},
        ]
    )
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        batch = torch.randint(len(images.pixels), (BATCH,), generator=generator)
        logits = network(images.pixels[batch]) + others
        loss = functional.cross_entropy(logits, images.digits[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def save(network: Classifier, folder: Path) -> None:
    """Write a checkpoint folder: config, preprocessor and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")
    save_file(network.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})


def write_suite(folder: Path, images: Images) -> None:
    """Write suite.yaml and its data, one task for each expert's digits."""
    for name, digits in EXPERTS.items():
        own = images.showing(digits)
        np.savez(
            folder / f"{name.removeprefix('expert-')}.npz",
            inputs=own.pixels.numpy(),
            labels=own.digits.numpy(),
            digit=own.digits.numpy(),
        )
    (folder / "suite.yaml").write_text(SUITE)


def build(folder: Path) -> list[Path]:
    """Train the base and its experts into `folder`, and write a suite; returns the checkpoints, the base first."""
    torch.set_num_threads(1)
    images, held_out = load_images()
    base = train_base(images)
    save(base, folder / "base")
    for name, digits in EXPERTS.items():
        save(train_expert(base, images, digits), folder / name)
    write_suite(folder, held_out)
    return [folder / name for name in ("base", *EXPERTS)]


def read_digits(folder: Path) -> list[float]:
    """Share of the held-out images of each digit 0..9 that a checkpoint folder reads right."""
    state = {}
    for file in sorted(folder.glob("*.safetensors")):
        state.update(load_file(file))
    return score(state)


def score(state: dict[str, torch.Tensor]) -> list[float]:
    """Share of the held-out images of each digit 0..9 that a state dict reads right."""
    network = Classifier()
    network.load_state_dict(state)
    _, images = load_images()
    with torch.no_grad():
        right = network(images.pixels).argmax(1) == images.digits
    return [right[images.digits == digit].float().mean().item() for digit in range(CLASSES)]
