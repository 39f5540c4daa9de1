"""The kinds of pictures that reports have: heat maps, estimates with intervals, and points in a plane."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightsmith.reports.drawing import (
    FONT_SIZE,
    SMALL_FONT_SIZE,
    WIDTH,
    axes_with_margins,
    drawing,
    new_figure,
    text_width,
)
from weightsmith.reports.palette import SERIES, STEPS, light, step_of
from weightsmith.reports.report_text import label, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CELL = 13.0
_MOST_CELLS_WITH_NUMBERS = 60
_ROW = 17.0
_LONGEST_LABEL = 22
_LONGEST_AXIS = 40
# Figures are laid out at 100 pixels an inch.
_POINTS_PER_PIXEL = 0.72
_RIGHT_MARGIN = 12.0
_Box = tuple[float, float, float, float]


class ColourScale(enum.Enum):
    """What the colours of a heat map span."""

    SIZE = "from 0 to the largest value"
    SHARE = "from 0 to 1"
    COSINE = "from -1 to 1"


@dataclass(frozen=True, slots=True)
class Grid:
    """Values by row and column; None where there is nothing to measure, infinite where a ratio has no denominator."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    scale: ColourScale
    row_title: str = ""

    @property
    def known(self) -> list[float]:
        """The finite values."""
        return [v for row in self.values for v in row if v is not None and math.isfinite(v)]

    @property
    def top(self) -> float:
        """The value at the end of the colour scale."""
        return (max(self.known, default=0.0) or 1.0) if self.scale is ColourScale.SIZE else 1.0

    def colour(self, value: float) -> str:
        """The name of a value's colour."""
        if self.scale is ColourScale.COSINE:
            return f"signed-{step_of((value + 1) / 2)}"
        return f"size-{step_of(value / self.top if math.isfinite(value) else 1.0)}"


@dataclass(frozen=True, slots=True)
class IntervalBar:
    """An estimate with its interval; rows of one `group` share a label, `series` tells them apart."""

    group: str
    value: float
    low: float
    high: float
    series: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    """A point in a plane with what is known of its uncertainty; points of one `path` are joined in their order."""

    x: float
    y: float
    name: str = ""
    series: str = ""
    path: str = ""
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


def heat_map(grid: Grid) -> Figure:
    """Cells in colours with their scale below; small ones have their numbers in the cells."""
    columns = [label(name, _LONGEST_LABEL) for name in grid.columns]
    rows = [label(name, 14) for name in grid.rows]
    left = max((text_width(r) for r in rows), default=0.0) + 8 + (11 if grid.row_title else 0)
    widest = max((text_width(c) for c in columns), default=0.0)
    upright = widest > (WIDTH - left - 4) / max(1, len(columns))
    top = widest + 8 if upright else SMALL_FONT_SIZE + 8
    with drawing():
        figure = new_figure(top + _CELL * len(rows) + 34)
        axes = axes_with_margins(figure, left=left, right=4, top=top, bottom=34)
        _draw_cells(axes, grid)
        axes.set_xlim(0, len(columns))
        axes.set_ylim(len(rows), 0)
        axes.set_xticks(
            [i + 0.5 for i in range(len(columns))], columns, rotation=90 if upright else 0
        )
        axes.set_yticks([i + 0.5 for i in range(len(rows))], rows)
        axes.tick_params(length=0, labeltop=True, labelbottom=False, top=False, bottom=False)
        if grid.row_title:
            axes.set_ylabel(label(grid.row_title), labelpad=3, fontsize=SMALL_FONT_SIZE)
        for spine in axes.spines.values():
            spine.set_visible(False)
        _draw_scale(figure, grid)
    return figure


def _draw_cells(axes: Axes, grid: Grid) -> None:
    from matplotlib.patches import Rectangle

    with_numbers = len(grid.rows) * len(grid.columns) <= _MOST_CELLS_WITH_NUMBERS
    for y, row in enumerate(grid.values):
        for x, value in enumerate(row):
            name = "absent" if value is None or math.isnan(value) else grid.colour(value)
            cell = Rectangle((x + 0.02, y + 0.03), 0.96, 0.94, facecolor=light(name), linewidth=0)
            axes.add_patch(cell)
            if with_numbers and name != "absent" and len(grid.columns) <= 8:
                axes.text(
                    x + 0.5,
                    y + 0.53,
                    number(value, 2),
                    color=light(f"on-{name}"),
                    ha="center",
                    va="center_baseline",
                    fontsize=SMALL_FONT_SIZE - 0.5,
                )


def _draw_scale(figure: Figure, grid: Grid) -> None:
    from matplotlib.patches import Rectangle

    axes = axes_with_margins(
        figure,
        left=60,
        right=60,
        top=figure.get_figheight() * 72 - 26,
        bottom=18,
    )
    family = "signed" if grid.scale is ColourScale.COSINE else "size"
    for step in range(STEPS):
        axes.add_patch(Rectangle((step, 0), 1, 1, facecolor=light(f"{family}-{step}"), linewidth=0))
    axes.set_xlim(0, STEPS)
    axes.set_ylim(0, 1)
    low = -1.0 if grid.scale is ColourScale.COSINE else 0.0
    ends = (low, (low + grid.top) / 2, grid.top)
    axes.set_xticks([0, STEPS / 2, STEPS], [number(end, 2) for end in ends])
    axes.set_yticks([])
    axes.tick_params(length=2)
    for spine in axes.spines.values():
        spine.set_visible(False)


def estimates(
    bars: Sequence[IntervalBar],
    axis: str,
    *,
    reference: float | None = None,
    order: Sequence[str] = (),
) -> Figure:
    """A dot with its interval for every bar, a line of its own for each.

    `reference` is drawn as a vertical line; `order` is that of the series (default: as they come).
    """
    series = _ordered((bar.series for bar in bars), order)
    labels = [label(bar.group, _LONGEST_LABEL) for bar in bars]
    shown = [
        text if i == 0 or bars[i - 1].group != bars[i].group else ""
        for i, text in enumerate(labels)
    ]
    left = max((text_width(text) for text in shown), default=0.0) + 8
    named = [name for name in series if name]
    top = 6 + 12.0 * len(named)
    places = _places(bars)
    with drawing():
        figure = new_figure(top + _ROW * (places[-1] + 1 if places else 1) + 32)
        axes = axes_with_margins(figure, left=left, right=8, top=top, bottom=32)
        if reference is not None:
            axes.axvline(reference, color=light("quiet"), linewidth=1, linestyle=(0, (4, 3)))
        for bar, y in zip(bars, places, strict=True):
            colour = light(_series_colour(series, bar.series))
            axes.plot(
                [bar.low, bar.high], [y, y], color=colour, linewidth=1.8, solid_capstyle="butt"
            )
            axes.plot([bar.value], [y], "o", color=colour, markersize=4.5)
        axes.set_ylim((places[-1] if places else 0) + 0.7, -0.7)
        axes.set_yticks([y for y, text in zip(places, shown, strict=True) if text])
        axes.set_yticklabels([text for text in shown if text])
        axes.tick_params(axis="y", length=0)
        _finish(axes, axis, "x")
        axes.spines["left"].set_visible(False)
        _legend(figure, series)
    return figure


def _places(bars: Sequence[IntervalBar]) -> list[float]:
    """Rows of one group lie closer together than those of two."""
    places: list[float] = []
    for position, bar in enumerate(bars):
        if not places:
            places.append(0.0)
        else:
            places.append(places[-1] + (0.62 if bars[position - 1].group == bar.group else 1.0))
    return places


def plane(
    points: Sequence[Point],
    x_axis: str,
    y_axis: str,
    *,
    logarithmic_x: bool = False,
    order: Sequence[str] = (),
) -> Figure:
    """Points with their names and intervals; the points of a path are joined in their order.

    `order` is that of the series (default: as they come).
    """
    series = _ordered((point.series for point in points), order)
    named = [name for name in series if name]
    top = 6 + 12.0 * len(named)
    with drawing():
        figure = new_figure(205 + top)
        axes = axes_with_margins(figure, left=46, right=_RIGHT_MARGIN, top=top, bottom=34)
        if logarithmic_x:
            axes.set_xscale("log")
        for own in _paths(points).values():
            colour = light(_series_colour(series, own[0].series))
            axes.plot([p.x for p in own], [p.y for p in own], color=colour, linewidth=1.1)
        for point in points:
            _draw_point(axes, point, light(_series_colour(series, point.series)))
        axes.margins(0.1, 0.12)
        _write_names(axes, points)
        axes.set_ylabel(label(y_axis, _LONGEST_AXIS))
        _finish(axes, x_axis, "both", counts=all(point.x.is_integer() for point in points))
        _legend(figure, series)
    return figure


def _draw_point(axes: Axes, point: Point, colour: str) -> None:
    for ends, along_x in ((point.x_interval, True), (point.y_interval, False)):
        if ends is not None:
            fixed = [point.y if along_x else point.x] * 2
            line = (list(ends), fixed) if along_x else (fixed, list(ends))
            axes.plot(*line, color=colour, linewidth=0.9, alpha=0.4)
    axes.plot([point.x], [point.y], "o", color=colour, markersize=4)


def _names_by_place(points: Sequence[Point]) -> dict[tuple[float, float], list[str]]:
    """What is written where: points that lie on each other share one text."""
    found: dict[tuple[float, float], list[str]] = {}
    for point in points:
        names = found.setdefault((point.x, point.y), [])
        if point.name and point.name not in names:
            names.append(point.name)
    return found


def _write_names(axes: Axes, points: Sequence[Point]) -> None:
    """Names beside their points, within the axes; one that would hide a point or a name wherever it stood is left out.

    The ends of paths go first, then the points in their order.
    """
    # Limits are set when the figure is drawn, unless asked for.
    axes.autoscale_view()
    named = _names_by_place(points)
    ends = [own[end] for own in _paths(points).values() for end in (0, -1)]
    room = axes.get_window_extent()
    dots = [axes.transData.transform(place) * _POINTS_PER_PIXEL for place in named]
    written: list[_Box] = [(x - 2.0, y - 2.0, 4.0, 4.0) for x, y in dots]
    for place in dict.fromkeys([*((p.x, p.y) for p in ends), *named]):
        text = ", ".join(label(name, 18) for name in named[place])
        x, y = axes.transData.transform(place) * _POINTS_PER_PIXEL
        width, height = text_width(text), SMALL_FONT_SIZE + 1
        for across, up in ((4, 3), (-4, 3), (4, -10), (-4, -10)):
            box = (x + (across if across > 0 else across - width), y + up, width, height)
            is_inside = (
                room.x0 * _POINTS_PER_PIXEL <= box[0]
                and box[0] + width <= room.x1 * _POINTS_PER_PIXEL + _RIGHT_MARGIN
            )
            if text and is_inside and not any(_overlap(box, other) for other in written):
                written.append(box)
                axes.annotate(
                    text,
                    place,
                    xytext=(across, up),
                    textcoords="offset points",
                    ha="left" if across > 0 else "right",
                    fontsize=SMALL_FONT_SIZE,
                )
                break


def _overlap(one: _Box, other: _Box) -> bool:
    """Whether two boxes (left, bottom, width, height) share a place."""
    return all(
        one[side] < other[side] + other[side + 2] and other[side] < one[side] + one[side + 2]
        for side in (0, 1)
    )


def _paths(points: Sequence[Point]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in points:
        if point.path:
            found.setdefault(point.path, []).append(point)
    return found


def _ordered(series: Iterable[str], order: Sequence[str]) -> list[str]:
    found = list(dict.fromkeys(series))
    return [name for name in order if name in found] + [n for n in found if n not in order]


def _series_colour(series: Sequence[str], name: str) -> str:
    return SERIES[series.index(name) % len(SERIES)]


def _finish(axes: Axes, x_axis: str, grid: str, *, counts: bool = False) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    axes.set_xlabel(label(x_axis, _LONGEST_AXIS), fontsize=FONT_SIZE)
    axes.grid(visible=True, axis=grid)  # type: ignore[arg-type]
    if axes.get_xscale() == "log":
        low, high = axes.get_xlim()
        within = (1.0,) if high / low > 50 else (1.0, 2.0, 5.0)
        axes.xaxis.set_major_locator(LogLocator(subs=within, numticks=6))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=counts))
    axes.tick_params(length=2)


def _legend(figure: Figure, series: Sequence[str]) -> None:
    """The series by their colours, one a line above the axes; nothing if there is but one without a name."""
    height = figure.get_figheight() * 72
    for position, name in enumerate(name for name in series if name):
        y = 1 - (9 + 12.0 * position) / height
        colour = light(_series_colour(series, name))
        figure.text(8 / WIDTH, y, "●", color=colour, fontsize=FONT_SIZE, va="center")
        figure.text(20 / WIDTH, y, label(name, 40), fontsize=SMALL_FONT_SIZE, va="center")
