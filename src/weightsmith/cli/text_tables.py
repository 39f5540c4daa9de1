"""Tables that fit where they are shown: names first and whole, intervals and spare columns only where there is room.

A pipe gets every cell in one line per row. A terminal gets, in this order, the first that its width does for: all
cells; cells without their intervals; the same without columns that can be spared, which are named below; and a block
of lines for each row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from weightsmith.cli.terminal_text import abridged, harmless

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

_GAP = 2
_BETWEEN = "   "
_BLANKS = ("", "-")
# No column of names or words is narrower than this unless all its cells are.
_NARROWEST_NAMES = 24
_NARROWEST_WORDS = 16
_PIECES = re.compile(r"(?<=[./])")


@dataclass(frozen=True, slots=True)
class ShownInterval:
    """A number with its interval, such as `0.81` and `[0.79, 0.83]`; alone where there is no room for both."""

    value: str
    bounds: str

    def __str__(self) -> str:
        return f"{self.value} {self.bounds}"


Cell = str | ShownInterval


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table to show, what its rows are called in the first column.

    `right` holds the positions of columns of numbers; `spare` those of columns that a narrow terminal does without, the
    first to go first.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    right: frozenset[int] = frozenset()
    spare: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FittedTable:
    """A table whose rows fit a width: the positions of its columns, their widths, and the text of its cells."""

    columns: tuple[int, ...]
    widths: tuple[int, ...]
    rows: tuple[tuple[str, ...], ...]


def without_blanks(table: TextTable) -> TextTable:
    """The table without columns in which no row has anything."""
    kept = [
        i for i in range(len(table.columns)) if any(row[i] not in _BLANKS for row in table.rows)
    ]
    places = {i: place for place, i in enumerate(kept)}
    return TextTable(
        table.title,
        [table.columns[i] for i in kept],
        [[row[i] for i in kept] for row in table.rows],
        frozenset(places[i] for i in table.right if i in places),
        tuple(places[i] for i in table.spare if i in places),
    )


def with_short_cells(table: TextTable) -> TextTable:
    """The table without the middle of cells that are longer than anybody reads, such as names of a hostile file."""
    rows = [
        [abridged(cell) if isinstance(cell, str) else cell for cell in row] for row in table.rows
    ]
    return replace(table, rows=rows)


def plain_table(table: TextTable) -> str:
    """A table as text: the title, a line of column names (if they have any), and a line for each row."""
    head = [table.columns] if any(table.columns) else []
    lines = [[harmless(str(cell)) for cell in row] for row in (*head, *table.rows)]
    widths = [max((len(line[i]) for line in lines), default=0) for i in range(len(table.columns))]
    aligned = []
    for line in lines:
        cells = [
            cell.rjust(width) if i in table.right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        aligned.append("  ".join(cells).rstrip())
    return "\n".join([table.title, *(f"  {line}" for line in aligned)])


def fitted(table: TextTable, width: int) -> FittedTable | None:
    """The first way to show a table's rows that fits into `width` characters, or None where they need blocks."""
    for columns, with_bounds in _ways(table):
        rows = tuple(_texts(row, columns, with_bounds) for row in table.rows)
        widths = _widths(table, columns, rows, width)
        if widths is not None:
            return FittedTable(columns, widths, rows)
    return None


def _ways(table: TextTable) -> Iterator[tuple[tuple[int, ...], bool]]:
    everything = tuple(range(len(table.columns)))
    yield everything, True
    for dropped in range(len(table.spare) + 1):
        yield tuple(i for i in everything if i not in table.spare[:dropped]), False


def _texts(row: Sequence[Cell], columns: Sequence[int], with_bounds: bool) -> tuple[str, ...]:
    cells = (row[i] for i in columns)
    return tuple(
        harmless(cell.value if isinstance(cell, ShownInterval) and not with_bounds else str(cell))
        for cell in cells
    )


def _widths(
    table: TextTable, columns: Sequence[int], rows: Sequence[Sequence[str]], width: int
) -> tuple[int, ...] | None:
    """Widths of the columns where the least that each needs fits: names take what is left first, then words."""
    least, most = [], []
    for place, i in enumerate(columns):
        cells = [row[place] for row in rows]
        head = table.columns[i]
        natural = max(map(_length, (head, *cells)))
        if i in table.right:
            needed = max(map(_length, (*head.split(), *cells)), default=0)
        else:
            floor = _NARROWEST_NAMES if place == 0 else _NARROWEST_WORDS
            needed = min(natural, max(floor, *map(_longest_piece, (head, *cells))))
        least.append(needed)
        most.append(natural)
    left = width - sum(least) - _GAP * (len(columns) - 1)
    if left < 0:
        return None
    first = min(left, most[0] - least[0])
    least[0] += first
    return _shared(least, most, left - first)


def _shared(least: Sequence[int], most: Sequence[int], left: int) -> tuple[int, ...]:
    """What is left, shared among columns as they need it."""
    needs = [high - low for low, high in zip(least, most, strict=True)]
    total = sum(needs)
    if total <= left:
        return tuple(most)
    return tuple(low + left * need // total for low, need in zip(least, needs, strict=True))


def _longest_piece(cell: str) -> int:
    """The longest part that no line break divides: a word, or what stands between dots and slashes."""
    pieces = cell.split() if " " in cell else _PIECES.split(cell)
    return max(map(_length, pieces), default=0)


def _length(text: str) -> int:
    """Characters that a terminal takes for a text; those of some scripts take two."""
    from rich.cells import cell_len

    return cell_len(text)


def folded(name: str, width: int) -> str:
    """A name in as many lines as it needs, broken behind dots and slashes: `model.layers.3.`, `mlp.up_proj.weight`."""
    if _length(name) <= width or " " in name:
        return name
    lines = [""]
    for piece in _PIECES.split(name):
        if lines[-1] and _length(lines[-1] + piece) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def draw_table(table: TextTable, console: Console) -> None:
    """Draw a table on a terminal, and an empty line."""
    from rich.text import Text

    console.print(Text(harmless(table.title), "bold"))
    found = fitted(table, console.width)
    if found is None:
        _draw_blocks(table, console)
        return
    console.print(_drawn(table, found))
    spared = [table.columns[i] for i in range(len(table.columns)) if i not in found.columns]
    if spared:
        console.print(Text(f"A wider terminal also shows {', '.join(spared)}.", "dim"))
    console.print()


def _drawn(table: TextTable, found: FittedTable) -> RichTable:
    from rich import box
    from rich.table import Table as Drawn
    from rich.text import Text

    drawn = Drawn(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        show_header=any(table.columns),
    )
    for i, width in zip(found.columns, found.widths, strict=True):
        drawn.add_column(
            Text(table.columns[i]),
            justify="right" if i in table.right else "left",
            overflow="fold",
            width=width,
        )
    for row in found.rows:
        drawn.add_row(
            *(Text(folded(cell, width)) for cell, width in zip(row, found.widths, strict=True))
        )
    return drawn


def _draw_blocks(table: TextTable, console: Console) -> None:
    """A block for each row: its name, and below it the other cells behind the names of their columns."""
    from rich.padding import Padding
    from rich.text import Text

    heads = table.columns[1:]
    for row in table.rows:
        name, *cells = (harmless(str(cell)) for cell in row)
        if name:
            console.print()
            console.print(Text(folded(name, console.width), "bold"))
        facts = [
            Text.assemble((head, "dim"), " " if head else "", cell)
            for head, cell in zip(heads, cells, strict=True)
            if cell not in _BLANKS
        ]
        for line in _packed(facts, console.width - _GAP):
            console.print(Padding(line, (0, 0, 0, _GAP)))
    console.print()


def _packed(facts: Sequence[Text], width: int) -> Iterator[Text]:
    """Facts side by side in as many lines as they need."""
    from rich.text import Text

    line: list[Text] = []
    for fact in facts:
        if line and sum(one.cell_len for one in (*line, fact)) + len(line) * len(_BETWEEN) > width:
            yield Text(_BETWEEN).join(line)
            line = []
        line.append(fact)
    if line:
        yield Text(_BETWEEN).join(line)
