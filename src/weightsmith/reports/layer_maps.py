"""Heat maps by layer and role."""

from __future__ import annotations

from collections.abc import Callable, Collection

from weightsmith.inspection import Place, place_order
from weightsmith.reports.figures import ColourScale, Grid, heat_map
from weightsmith.reports.page import DataTable, Picture
from weightsmith.reports.report_text import number

_OUTSIDE = "outside"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Places:
    """Rows (layers) and columns (roles) of the heat maps of one model, from the places that it has."""

    def __init__(self, groups: Collection[Place]) -> None:
        self._places = frozenset(groups)
        self.blocks = list(dict.fromkeys(p[0] for p in groups if p[0] is not None))
        self.rows = sorted({(block, layer) for block, layer, _ in groups}, key=_row_order)
        within_first = sorted(groups, key=lambda place: place[0] is None)
        self.roles = tuple(dict.fromkeys(role for _, _, role in within_first))

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the rows: numbers of layers, with a letter where there are several stacks of them."""
        return tuple(self._label(block, layer) for block, layer in self.rows)

    def _label(self, block: str | None, layer: int | None) -> str:
        if block is None or layer is None:
            return _OUTSIDE
        if len(self.blocks) == 1:
            return str(layer)
        return f"{_LETTERS[self.blocks.index(block) % len(_LETTERS)]}{layer}"

    @property
    def legend(self) -> str:
        """What the letters before the numbers of layers mean."""
        if len(self.blocks) < 2:
            return ""
        pairs = (f"{_LETTERS[i % len(_LETTERS)]} = {b}" for i, b in enumerate(self.blocks))
        return f"Layers: {', '.join(pairs)}."

    def grid(self, figure: Callable[[Place], float | None], scale: ColourScale) -> Grid:
        """What a figure says of every place; None where the model has no such tensor."""
        values = tuple(
            tuple(
                figure((block, layer, role)) if (block, layer, role) in self._places else None
                for role in self.roles
            )
            for block, layer in self.rows
        )
        return Grid(self.labels, self.roles, values, scale, "layer")


def _row_order(row: tuple[str | None, int | None]) -> tuple[object, ...]:
    return place_order((row[0], row[1], ""))


def map_pictures(
    key: str, title: str, description: str, grid: Grid, *, first: str = "layer", caution: str = ""
) -> list[Picture]:
    """A heat map with the table of its numbers, or none if there are no values.

    Rows and columns without any are left out.
    """
    kept = _without_empty(grid)
    if not kept.rows:
        return []
    table = DataTable(
        title,
        (first, *kept.columns),
        tuple(
            (name, *(number(value) for value in row))
            for name, row in zip(kept.rows, kept.values, strict=True)
        ),
        frozenset(range(1, len(kept.columns) + 1)),
    )
    return [Picture(key, title, description, heat_map(kept), table, caution)]


def _without_empty(grid: Grid) -> Grid:
    rows = [i for i, row in enumerate(grid.values) if any(v is not None for v in row)]
    columns = [
        j for j in range(len(grid.columns)) if any(row[j] is not None for row in grid.values)
    ]
    return Grid(
        tuple(grid.rows[i] for i in rows),
        tuple(grid.columns[j] for j in columns),
        tuple(tuple(grid.values[i][j] for j in columns) for i in rows),
        grid.scale,
        grid.row_title,
    )
