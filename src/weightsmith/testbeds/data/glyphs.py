"""Letters drawn with fonts from packages, distorted at random; fonts are split by their families."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from weightsmith.testbeds.data.images import Pixels, finish, shrink
from weightsmith.testbeds.data.sources import Archive, fetch, members, read_member

_CANVAS = 96
_SIZES = (42, 60)

LOWER = "abcdefghijklmnopqrstuvwxyz"
UPPER = LOWER.upper()
CYRILLIC = "БГДЖЗИЛПФЦЧШЩЪЫЭЮЯ"
GREEK = "ΓΔΘΛΞΠΣΦΨΩαβγδεζηθλμξπφψω"
GEORGIAN = "აბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰ"
HEBREW = "אבגדהוזחטילמנסעפצקרש"
SIGNS = "0123456789!?&@#%$€£+=<>{}[]/*§¶†‡©®∞∫∑√≈≠≤≥♠♣♥♦♪★☎☀☂☺⚡✂✈✓"


@dataclass(frozen=True, slots=True)
class Typeface:
    """A family of fonts in an archive: the members whose file names begin with `prefix`, save those of `without`."""

    source: Archive
    prefix: str
    without: tuple[str, ...] = ()

    def files(self) -> dict[str, bytes]:
        """The fonts by file name."""
        archive = fetch(self.source)
        found = {}
        for member in members(archive):
            name = member.rpartition("/")[2]
            is_font = name.endswith((".ttf", ".otf")) and name.startswith(self.prefix)
            if is_font and not any(word in name for word in self.without):
                found[name] = read_member(archive, member)
        return found


@dataclass(slots=True)
class Fonts:
    """Fonts of some typefaces, ready to draw with."""

    files: dict[str, bytes]
    _opened: dict[tuple[str, int], ImageFont.FreeTypeFont] = field(default_factory=dict)
    _drawable: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, typefaces: Sequence[Typeface]) -> Fonts:
        """All fonts of the typefaces."""
        files: dict[str, bytes] = {}
        for typeface in typefaces:
            files.update(typeface.files())
        return cls(dict(sorted(files.items())))

    def drawing(self, letter: str) -> tuple[str, ...]:
        """The names of the fonts that have a letter."""
        if not self._drawable:
            self._drawable = self._by_letter()
        return self._drawable.get(letter, ())

    def _by_letter(self) -> dict[str, tuple[str, ...]]:
        from fontTools.ttLib import TTFont

        having: dict[str, list[str]] = {}
        for name, content in self.files.items():
            for point in TTFont(io.BytesIO(content), lazy=True).getBestCmap():
                having.setdefault(chr(point), []).append(name)
        return {letter: tuple(names) for letter, names in having.items()}

    def open(self, name: str, size: int) -> ImageFont.FreeTypeFont:
        """A font at a size in pixels."""
        key = (name, size)
        if key not in self._opened:
            layout = ImageFont.Layout.BASIC
            content = io.BytesIO(self.files[name])
            self._opened[key] = ImageFont.truetype(content, size, layout_engine=layout)
        return self._opened[key]


def draw_letter(
    generator: np.random.Generator,
    fonts: Fonts,
    letter: str,
    *,
    turn: float = 0.0,
    invert: bool = False,
) -> Pixels:
    """A letter in a random font, turned by `turn` degrees and a little more, sheared, stretched and moved."""
    names = fonts.drawing(letter)
    font = fonts.open(names[int(generator.integers(len(names)))], int(generator.integers(*_SIZES)))
    canvas = Image.new("L", (_CANVAS, _CANVAS), 0)
    middle = _CANVAS // 2
    ImageDraw.Draw(canvas).text((middle, middle), letter, fill=255, font=font, anchor="mm")
    angle = math.radians(turn + generator.uniform(-10, 10))
    shear = np.array([[1, generator.uniform(-0.15, 0.15)], [0, 1]])
    turned = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    map_ = turned @ shear @ np.diag(generator.uniform(0.85, 1.15, 2))
    centre = np.array([middle, middle])
    offset = centre - map_ @ (centre + generator.uniform(-4, 4, 2))
    rows = (*map_[0], offset[0], *map_[1], offset[1])
    moved = canvas.transform(canvas.size, Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)
    quarter = _CANVAS // 4
    cropped = moved.crop((quarter, quarter, 3 * quarter, 3 * quarter))
    return finish(generator, shrink(cropped), invert=invert)
