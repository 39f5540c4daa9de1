"""Images drawn from nothing but numbers: shapes, gratings, dots, and scikit-learn's handwritten digits.

An image is float32 of shape [24, 24] in [0, 1], light on dark. Every drawer takes a numpy generator and a class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Pixels = npt.NDArray[np.float32]
Drawer = Callable[[np.random.Generator, int], Pixels]

SIDE = 24
_CANVAS = 4 * SIDE
_NOISE = 0.04

SHAPES = "circle triangle square pentagon hexagon five-star four-star cross ellipse arc".split()
GRATINGS = 8
MOST_DOTS = 6


def finish(generator: np.random.Generator, image: Pixels, *, invert: bool = False) -> Pixels:
    """A drawn image with a random contrast and noise, inverted if asked."""
    high, low = generator.uniform(0.7, 1), generator.uniform(0, 0.2)
    image = np.asarray(low + (high - low) * image, np.float32)
    if invert:
        image = 1 - image
    noisy = image + generator.normal(0, _NOISE, image.shape)
    return np.asarray(np.clip(noisy, 0, 1), np.float32)


def grain(generator: np.random.Generator, image: Pixels, strength: float) -> Pixels:
    """An image under smooth random light and fine noise: what tasks have and pretraining has not.

    The light is a 5 x 5 field of deviation `strength` drawn out to the whole image, the noise has half of it.
    """
    field = generator.normal(0, strength, (5, 5)).astype(np.float32)
    stretched = Image.fromarray(field).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    noise = generator.normal(0, strength / 2, image.shape)
    return np.asarray(image + np.asarray(stretched) + noise, np.float32)


def shrink(canvas: Image.Image) -> Pixels:
    """A drawing of any size as an image, by the mean of its pixels."""
    pixels: Pixels = np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    scaled: Pixels = pixels / np.float32(255)
    return scaled


def standardise(images: Pixels) -> Pixels:
    """Each image [..., 24, 24] with mean 0 and deviation 1 of its own; an even image becomes zeros."""
    axes = (-2, -1)
    centred = images.astype(np.float64)
    centred -= centred.mean(axes, keepdims=True)
    deviation = centred.std(axes, keepdims=True)
    return np.asarray(centred / np.where(deviation > 0, deviation, 1), np.float32)


def draw_shape(generator: np.random.Generator, kind: int) -> Pixels:
    """One of SHAPES, filled or in outline, at a random place, size and turn."""
    canvas = Image.new("L", (_CANVAS, _CANVAS), 0)
    pen = ImageDraw.Draw(canvas)
    x, y = generator.uniform(38, 58, 2)
    radius, turn = generator.uniform(20, 34), generator.uniform(0, 2 * math.pi)
    is_filled, width = bool(generator.random() < 0.5), int(generator.integers(4, 8))
    box = (x - radius, y - radius, x + radius, y + radius)
    name = SHAPES[kind]
    if name == "circle":
        pen.ellipse(box, fill=255 if is_filled else None, outline=255, width=width)
    elif name == "ellipse":
        flat = (box[0], y - radius / 2, box[2], y + radius / 2)
        pen.ellipse(flat, fill=255 if is_filled else None, outline=255, width=width)
    elif name == "cross":
        for angle in (turn, turn + math.pi / 2):
            across, down = radius * math.cos(angle), radius * math.sin(angle)
            pen.line((x - across, y - down, x + across, y + down), fill=255, width=width + 3)
    elif name == "arc":
        begin = math.degrees(turn)
        pen.arc(box, begin, begin + 200, fill=255, width=width + 2)
    else:
        corners = _corners(name, x, y, radius, turn)
        if is_filled:
            pen.polygon(corners, fill=255)
        else:
            pen.line([*corners, *corners[:2]], fill=255, width=width, joint="curve")
    return finish(generator, shrink(canvas))


def _corners(
    name: str, x: float, y: float, radius: float, turn: float
) -> list[tuple[float, float]]:
    points, inner = {
        "triangle": (3, 1.0),
        "square": (4, 1.0),
        "pentagon": (5, 1.0),
        "hexagon": (6, 1.0),
        "five-star": (10, 0.45),
        "four-star": (8, 0.4),
    }[name]
    corners = []
    for i in range(points):
        far, angle = radius * (inner if i % 2 else 1), turn + 2 * math.pi * i / points
        corners.append((x + far * math.cos(angle), y + far * math.sin(angle)))
    return corners


def draw_grating(generator: np.random.Generator, kind: int) -> Pixels:
    """A patch of waves in the direction kind / GRATINGS of half a turn, with a random frequency, phase and place."""
    down, across = np.mgrid[0:SIDE, 0:SIDE]
    angle = math.pi * kind / GRATINGS + generator.uniform(-0.12, 0.12)
    frequency, phase = generator.uniform(0.5, 1.3), generator.uniform(0, 2 * math.pi)
    wave = 0.5 + 0.5 * np.sin(
        frequency * (across * math.cos(angle) + down * math.sin(angle)) + phase
    )
    x, y = generator.uniform(7, 17, 2)
    patch = np.exp(-((across - x) ** 2 + (down - y) ** 2) / generator.uniform(40, 160))
    return finish(generator, np.asarray(wave * patch * generator.uniform(0.6, 1), np.float32))


def draw_dots(generator: np.random.Generator, kind: int) -> Pixels:
    """kind + 1 dots that do not touch."""
    canvas = Image.new("L", (_CANVAS, _CANVAS), 0)
    pen = ImageDraw.Draw(canvas)
    dots: list[tuple[float, float, float]] = []
    while len(dots) <= kind:
        x, y = generator.uniform(12, 84, 2)
        radius = generator.uniform(5, 10)
        if all(math.hypot(x - a, y - b) > radius + r + 4 for a, b, r in dots):
            dots.append((x, y, radius))
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return finish(generator, shrink(canvas))


@lru_cache(maxsize=1)
def handwritten() -> tuple[Pixels, npt.NDArray[np.int64]]:
    """scikit-learn's 1,797 digits: pixels [N, 8, 8] in [0, 1], and which digit each is."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.asarray(bunch.images / 16, np.float32), np.asarray(bunch.target, np.int64)


def draw_handwritten(generator: np.random.Generator, index: int) -> Pixels:
    """The handwritten digit of an index, enlarged, at a random place."""
    pixels, _ = handwritten()
    side = SIDE - 4
    small = Image.fromarray((pixels[index] * 255).astype(np.uint8))
    large = np.asarray(small.resize((side, side), Image.Resampling.BILINEAR), np.float32) / 255
    image = np.zeros((SIDE, SIDE), np.float32)
    x, y = generator.integers(0, SIDE - side + 1, 2)
    image[y : y + side, x : x + side] = large
    return finish(generator, image)
