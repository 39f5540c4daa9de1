"""What the numbers per column of a tile take before they are added up."""

from __future__ import annotations

import pytest

from weightsmith.graph.columns import Columns
from weightsmith.tensors.digest_pieces import PIECE_TARGET


@pytest.mark.parametrize(
    ("columns", "shape", "elements", "runs"),
    [
        # Stacks of matrices, each shorter than a piece of 2^18 elements.
        (Columns(8, 16), (4096, 8, 16), 2 * PIECE_TARGET, 2 + 4096),
        # One matrix of several pieces; and a tile that ends inside both.
        (Columns(4096, 256), (4096, 256), 2 * PIECE_TARGET, 2 + 1),
        (Columns(4096, 256), (4096, 256), 2 * PIECE_TARGET + 1, 3 + 1),
        (Columns(4096, 256), (4096, 256), 5 * PIECE_TARGET, 5 + 2),
        # Every element a matrix of its own.
        (Columns(1, 1), (300, 1), 300, 1 + 300),
        # A matrix without elements: nothing to divide by.
        (Columns(0, 3), (0, 3), 0, 0),
    ],
)
def test_a_tile_holds_a_number_per_column_for_every_piece_and_matrix_that_begin_in_it(
    columns: Columns, shape: tuple[int, ...], elements: int, runs: int
) -> None:
    assert columns.tile_bytes(elements, shape) == runs * columns.width * 8


@pytest.mark.parametrize(("start", "count"), [(0, 24), (6, 18), (18, 6), (3, 2), (5, 13)])
def test_runs_begin_where_a_piece_or_a_matrix_begins(start: int, count: int) -> None:
    """Matrices of 2 x 4 and pieces of 6, counted element by element; a tile begins with one of its own."""
    stop = start + count
    begins = [i for i in range(start, stop) if i % 8 == 0 or (i - start) % 6 == 0]
    assert Columns(2, 4).bounds(start, count, 6).tolist() == [*begins, stop]
