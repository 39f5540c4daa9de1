"""Gathering rows while streaming is indexing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from weightsmith.errors import UsageError
from weightsmith.tensors.gathered import GatheredRows
from weightsmith.tensors.safetensors_header import read_header
from weightsmith.tensors.stored import StoredTensor


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[StoredTensor, np.ndarray]:
    """A table of 50 rows, on disk and in memory."""
    table = np.random.default_rng(0).standard_normal((50, 3, 2)).astype(np.float32)
    path = tmp_path_factory.mktemp("gather") / "table.safetensors"
    save_file({"table": table}, path)
    return read_header(path)[0], table


@given(st.data())
def test_any_range_of_any_index_reads_what_indexing_gives(
    stored: tuple[StoredTensor, np.ndarray], data: st.DataObject
) -> None:
    """Repeated, reversed, neighbouring and missing rows; ranges that cut rows."""
    tensor, table = stored
    runs = data.draw(st.lists(st.tuples(st.integers(-1, 49), st.integers(1, 5)), max_size=8))
    rows = np.array([r if r < 0 else min(r + i, 49) for r, n in runs for i in range(n)], np.int64)
    gathered = GatheredRows(tensor, rows)
    expected = np.where((rows >= 0)[:, None, None], table[rows], 0).astype(np.float32).reshape(-1)
    assert gathered.shape == (len(rows), 3, 2)
    start = data.draw(st.integers(0, gathered.numel))
    stop = data.draw(st.integers(start, gathered.numel))
    buffer = bytearray((stop - start) * 4)
    gathered.read_into(start, stop, memoryview(buffer))
    np.testing.assert_array_equal(np.frombuffer(buffer, np.float32), expected[start:stop])


@pytest.mark.parametrize("rows", [[50], [-2], [0, 7, 99]])
def test_an_index_outside_the_table_is_refused(
    stored: tuple[StoredTensor, np.ndarray], rows: list[int]
) -> None:
    """Before anything is read."""
    with pytest.raises(UsageError, match="50 rows"):
        GatheredRows(stored[0], np.array(rows, np.int64))
