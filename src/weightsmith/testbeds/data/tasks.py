"""Image tasks: what is drawn for each class, in three splits that share neither fonts nor handwriting."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from weightsmith.testbeds.data import images
from weightsmith.testbeds.data.images import Pixels, standardise

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Labels = npt.NDArray[np.int64]

# Every handwritten digit is in one split, and is drawn once for the test.
_HANDWRITTEN: Mapping[Split, tuple[int, int]] = {
    "train": (0, 600),
    "validation": (600, 750),
    "test": (750, 1797),
}


@dataclass(frozen=True, slots=True)
class ImageTask:
    """A task: its classes, and how the n-th image of a class is drawn for a split."""

    name: str
    classes: tuple[str, ...]
    draw: Callable[[np.random.Generator, int, Split], Pixels]

    def images(self, split: Split, count: int, seed: int) -> tuple[Pixels, Labels]:
        """`count` standardised images [N, 24, 24] and their labels, the classes in turn."""
        labels = np.arange(count) % len(self.classes)
        generator = generator_of(self.name, split, seed)
        drawn = [self.draw(generator, int(label), split) for label in labels]
        return standardise(np.stack(drawn)), labels


def generator_of(*parts: str | int) -> np.random.Generator:
    """A generator of its own for any words and numbers."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


def shapes() -> ImageTask:
    """Ten shapes."""
    return ImageTask("shapes", tuple(images.SHAPES), _in_every_split(images.draw_shape))


def gratings() -> ImageTask:
    """Eight directions of waves."""
    names = tuple(f"{180 * k / images.GRATINGS:g} degrees" for k in range(images.GRATINGS))
    return ImageTask("gratings", names, _in_every_split(images.draw_grating))


def dots() -> ImageTask:
    """How many dots there are."""
    names = tuple(str(k + 1) for k in range(images.MOST_DOTS))
    return ImageTask("dots", names, _in_every_split(images.draw_dots))


def _in_every_split(
    drawer: images.Drawer,
) -> Callable[[np.random.Generator, int, Split], Pixels]:
    def draw(generator: np.random.Generator, kind: int, _split: Split) -> Pixels:
        return drawer(generator, kind)

    return draw


@dataclass(frozen=True, slots=True)
class Handwriting:
    """scikit-learn's handwritten digits: a task like an ImageTask, of as many images as there are digits."""

    name: str = "digits"
    classes: tuple[str, ...] = tuple("0123456789")

    def images(self, split: Split, count: int, seed: int) -> tuple[Pixels, Labels]:
        """Images of the split's digits, each once before any is drawn again; the test has each once at most."""
        first, end = _HANDWRITTEN[split]
        generator = generator_of(self.name, split, seed)
        order = generator.permutation(np.arange(first, end))
        if split == "test":
            count = min(count, len(order))
        chosen = np.resize(order, count)
        drawn = [images.draw_handwritten(generator, int(index)) for index in chosen]
        _, digits = images.handwritten()
        return standardise(np.stack(drawn)), digits[chosen]


def write_items(path: Path, inputs: Pixels, labels: Labels) -> None:
    """Write `inputs` (float16 [N, 1, 24, 24]: what the model takes) and `labels` as npz."""
    np.savez_compressed(path, inputs=inputs[:, None].astype(np.float16), labels=labels)


def read_items(path: Path) -> tuple[Pixels, Labels]:
    """Images [N, 24, 24] as float32 and labels."""
    with np.load(path) as stored:
        return stored["inputs"][:, 0].astype(np.float32), stored["labels"]
