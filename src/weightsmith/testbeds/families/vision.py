"""The family `vision`: letters of several scripts, turned letters, shapes, gratings, dots and handwriting."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from weightsmith.testbeds.data import glyphs, images, tasks
from weightsmith.testbeds.data.glyphs import Fonts, Typeface, draw_letter
from weightsmith.testbeds.data.images import Pixels, standardise
from weightsmith.testbeds.data.sources import Archive
from weightsmith.testbeds.data.tasks import ImageTask, Labels, Split, generator_of
from weightsmith.testbeds.families.contrast import Contrast, FamilyTask
from weightsmith.testbeds.family_registry import Blueprint
from weightsmith.testbeds.models import vit
from weightsmith.testbeds.models.training import Schedule

_TURNED = "ABCDEFGHJKLMPQRT2345679"
_PRETRAINING_IMAGES = 40_000

_CALADEA = Archive(
    "font-caladea",
    "0.0.2",
    "font_caladea-0.0.2-py3-none-any.whl",
    "sha256:eab5b77f1da830226524f419d16d4bc4cb5b68d2de0f47ef83760a8b202e94bc",
    "Apache-2.0",
)
_HANKEN = Archive(
    "font-hanken-grotesk",
    "0.0.2",
    "font_hanken_grotesk-0.0.2-py3-none-any.whl",
    "sha256:7c3609e9bcdc2c9550b2a3baaed937eb7598fc1034e7df1ebcc4eb5489fa86f9",
    "OFL-1.1",
)
_LATO = Archive(
    "font-lato",
    "0.1.0",
    "font_lato-0.1.0-py3-none-any.whl",
    "sha256:ff74f2d4647187bac4b853ab8215e6b2afe124fcd01c809629aadd8f4356e959",
    "OFL-1.1",
)
_MANROPE = Archive(
    "font-manrope",
    "0.0.2",
    "font_manrope-0.0.2-py3-none-any.whl",
    "sha256:2ca9192f3602a3459323dfd7447c8c5ffa0795696c62fac465ef7c9b0521d292",
    "OFL-1.1",
)
_SOURCE_SANS = Archive(
    "font-source-sans-pro",
    "0.0.1",
    "font_source_sans_pro-0.0.1-py3-none-any.whl",
    "sha256:2250396f565a0fea35726e56059216d1d5d75071d64d075ebdfec183b4b85765",
    "OFL-1.1",
)
_SOURCE_SERIF = Archive(
    "font-source-serif-pro",
    "0.0.1",
    "font_source_serif_pro-0.0.1-py3-none-any.whl",
    "sha256:38dd9a8d8027d22aa8ef2d10d27d7c558701b32772ff9f3790f509577e91dca4",
    "OFL-1.1",
)
_MATPLOTLIB = Archive(
    "matplotlib",
    "3.10.0",
    "matplotlib-3.10.0-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "sha256:5439f4c5a3e2e8eab18e2f8c3ef929772fd5641876db71f08127eed95ab64683",
    "Bitstream-Vera AND OFL-1.1",
)
SOURCES = (_CALADEA, _HANKEN, _LATO, _MANROPE, _SOURCE_SANS, _SOURCE_SERIF, _MATPLOTLIB)

_TYPEFACES: dict[Split, tuple[Typeface, ...]] = {
    "train": (
        Typeface(_MATPLOTLIB, "DejaVuSans", ("Display",)),
        Typeface(_MATPLOTLIB, "STIXGeneral"),
        Typeface(_CALADEA, "Caladea"),
        Typeface(_HANKEN, "HankenGrotesk"),
        Typeface(_LATO, "Lato", ("Thin",)),
        Typeface(_SOURCE_SERIF, "SourceSerifPro", (".otf",)),
    ),
    "validation": (Typeface(_MANROPE, "Manrope", ("Variable", "ExtraLight")),),
    "test": (
        Typeface(_MATPLOTLIB, "DejaVuSerif", ("Display",)),
        Typeface(_SOURCE_SANS, "SourceSansPro", (".otf", "ExtraLight")),
    ),
}


def vision() -> Blueprint:
    """The steps of the family."""
    return Contrast(
        name="vision",
        tasks=_tasks,
        task_names=("upper", "cyrillic", "greek", "turned", "shapes", "gratings", "dots", "digits"),
        pretraining=_pretraining,
        sources=SOURCES,
        size=vit.VitSize(width=128, layers=3, heads=4),
        base=Schedule(3000, 2e-3, warm_up=100, decay=0.05, second_beta=0.98, seed=1),
        expert=Schedule(250, 1.5e-4, seed=3),
        counts={"train": 3000, "validation": 400, "test": 1040},
        grain=0.5,
        per_class=8,
        scale=16.0,
        seed=0,
        factors=(0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5),
        costs=(20, 170, 14),
    ).blueprint()


@lru_cache(maxsize=3)
def _fonts(split: Split) -> Fonts:
    return Fonts.of(_TYPEFACES[split])


def _tasks() -> tuple[FamilyTask, ...]:
    return (
        _letters("upper", glyphs.UPPER),
        _letters("cyrillic", glyphs.CYRILLIC),
        _letters("greek", glyphs.GREEK),
        _letters("turned", _TURNED, turn=90, invert=True),
        tasks.shapes(),
        tasks.gratings(),
        tasks.dots(),
        tasks.Handwriting(),
    )


def _letters(name: str, alphabet: str, *, turn: float = 0, invert: bool = False) -> ImageTask:
    def draw(generator: np.random.Generator, k: int, split: Split) -> Pixels:
        return draw_letter(generator, _fonts(split), alphabet[k], turn=turn, invert=invert)

    return ImageTask(name, tuple(alphabet), draw)


def _pretraining() -> tuple[Pixels, Labels, int]:
    """Lower-case and foreign letters and signs, upright and upside down, with coarse kinds of the other images.

    Every kind of image occurs, as in the data of a large pretrained model, but other letters, printed digits instead of
    handwritten ones, and shapes, directions and counts in coarser classes.
    """
    fonts = _fonts("train")
    alphabet = glyphs.LOWER + glyphs.GEORGIAN + glyphs.HEBREW + glyphs.SIGNS
    letters = [letter for letter in alphabet if fonts.drawing(letter)]
    drawers = [_pretraining_letter(fonts, letter) for letter in letters]
    drawers += [_either(images.draw_shape, 2 * k, 2 * k + 1) for k in range(5)]
    drawers += [_either(images.draw_shape, k) for k in (0, 2, 9)]
    drawers += [_either(images.draw_grating, 2 * k) for k in range(4)]
    drawers += [_either(images.draw_dots, 2 * k, 2 * k + 1) for k in range(3)]
    generator = generator_of("pretraining", 0)
    labels = np.arange(_PRETRAINING_IMAGES) % len(drawers)
    drawn = [drawers[label](generator) for label in labels]
    return standardise(np.stack(drawn)), labels, len(drawers)


def _pretraining_letter(fonts: Fonts, letter: str) -> Callable[[np.random.Generator], Pixels]:
    def draw(generator: np.random.Generator) -> Pixels:
        turn, invert = float(generator.choice((0, 0, 0, 180))), bool(generator.random() < 0.2)
        return draw_letter(generator, fonts, letter, turn=turn, invert=invert)

    return draw


def _either(drawer: images.Drawer, *kinds: int) -> Callable[[np.random.Generator], Pixels]:
    def draw(generator: np.random.Generator) -> Pixels:
        return drawer(generator, kinds[int(generator.integers(len(kinds)))])

    return draw
