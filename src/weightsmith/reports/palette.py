"""The colours of a report, each for light and for dark surroundings.

Pictures are drawn in the light colours. Within a page every colour becomes a variable of the style sheet, so one
picture serves both; therefore no two names share a light colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

STEPS = 11

_PLAIN = {
    "paper": ("#ffffff", "#14181f"),
    "ink": ("#1a2029", "#e7ebf1"),
    "quiet": ("#55606e", "#a8b2bf"),
    "rule": ("#d5dbe3", "#38414e"),
    "panel": ("#f4f6f9", "#1c222b"),
    "link": ("#0b5cad", "#7db8f5"),
    "error": ("#a81c1c", "#ff9c94"),
    "warning": ("#8a4b00", "#f3b45f"),
    "good": ("#1b6b3a", "#7fd39b"),
    "absent": ("#e9edf2", "#262d37"),
    "series-0": ("#1f6cb0", "#6fb3ef"),
    "series-1": ("#c0530a", "#f2a05c"),
    "series-2": ("#227a55", "#6fcb9f"),
    "series-3": ("#83459c", "#cf9be6"),
    "series-4": ("#7a6500", "#d9c04c"),
    "series-5": ("#b0305f", "#f08fb2"),
}
SERIES = tuple(name for name in _PLAIN if name.startswith("series-"))

# Stops of the colour scales, from the smallest value to the largest; blue and orange differ to every kind of sight.
_SCALES = {
    "size": (("#eff3f9", "#7fb0d8", "#0b3c6f"), ("#1f2834", "#2f6ea8", "#cfe6ff")),
    "signed": (
        ("#8c3b00", "#f0a35e", "#f1f1f2", "#7db1da", "#0a3e72"),
        ("#ffc792", "#a85512", "#252a32", "#2d6ca6", "#cde5ff"),
    ),
}
_BLACK, _WHITE = "#000000", "#ffffff"


def _mixed(stops: Sequence[str], share: float) -> str:
    """The colour at a share of the way along the stops."""
    place = share * (len(stops) - 1)
    index = min(int(place), len(stops) - 2)
    first, second = (_channels(stop) for stop in stops[index : index + 2])
    weight = place - index
    return "#" + "".join(
        f"{round(a + weight * (b - a)):02x}" for a, b in zip(first, second, strict=True)
    )


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _luminance(colour: str) -> float:
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (channel / 255 for channel in _channels(colour))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours by WCAG 2.2, from 1 to 21; text needs 4.5."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _readable_on(colour: str) -> str:
    return max(_BLACK, _WHITE, key=lambda ink: contrast(ink, colour))


def _all_colours() -> dict[str, tuple[str, str]]:
    colours = dict(_PLAIN)
    order = 0
    for scale, both in _SCALES.items():
        for step in range(STEPS):
            light, dark = (_mixed(stops, step / (STEPS - 1)) for stops in both)
            colours[f"{scale}-{step}"] = (light, dark)
            # The same ink on many steps, told apart in the last bits of blue, which nobody sees.
            ink = _channels(_readable_on(light))
            order += 1
            blue = ink[2] + order if ink[2] < 128 else ink[2] - order
            distinguishable = f"#{ink[0]:02x}{ink[1]:02x}{blue:02x}"
            colours[f"on-{scale}-{step}"] = (distinguishable, _readable_on(dark))
    return colours


COLOURS: Mapping[str, tuple[str, str]] = MappingProxyType(_all_colours())


def light(name: str) -> str:
    """The light colour of a name, which pictures are drawn in."""
    return COLOURS[name][0]


def step_of(share: float) -> int:
    """The step of a colour scale for a share of its range; shares outside [0, 1] take the nearest end."""
    return min(STEPS - 1, max(0, round(share * (STEPS - 1))))


def declarations(*, dark: bool) -> str:
    """Every colour as a variable of a style sheet, `--name:#rrggbb;`."""
    return "".join(f"--{name}:{both[dark]};" for name, both in COLOURS.items())
