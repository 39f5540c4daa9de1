"""Aligned tables read what indexing, widening and adding in memory give, from any range and thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightsmith.errors import CompatibilityError, NonFiniteError, UsageError
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.stored import LazyTensor
from weightsmith.vocabularies.aligned_rows import AlignedRows, Fill
from weightsmith.vocabularies.combinations import (
    CombinedRows,
    ConstantRow,
    Copied,
    Zeros,
    borrow,
    mean_over,
)
from weightsmith.vocabularies.token_tables import TokenTable

from .tables_made_here import read, stored, table

FLOATS = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
rng = np.random.default_rng(7)
OWN = torch.as_tensor(rng.standard_normal((40, 6)), dtype=torch.bfloat16)
OTHER = torch.as_tensor(rng.standard_normal((30, 6)), dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(scope="module")
def own(folder: Path) -> LazyTensor:
    return stored(folder, "own", OWN)


@pytest.fixture(scope="module")
def other(folder: Path) -> TokenTable:
    return table(folder, "other", OTHER)


def bits(tensor: torch.Tensor) -> np.ndarray:
    """The bytes, for comparisons to the last bit."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


index_runs = st.lists(st.tuples(st.integers(-1, 39), st.integers(1, 6)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_range_of_any_index_reads_what_indexing_gives(
    own: LazyTensor, data: st.DataObject
) -> None:
    """Repeated, reversed, neighbouring and missing rows; ranges that cut rows."""
    runs = data.draw(index_runs)
    rows = np.array([r if r < 0 else min(r + i, 39) for r, n in runs for i in range(n)], np.int64)
    aligned = AlignedRows(own, rows)
    expected = torch.where(torch.as_tensor(rows >= 0)[:, None], OWN[rows], 0).reshape(-1)
    assert (aligned.shape, aligned.dtype) == ((len(rows), 6), DType.BFLOAT16)
    start = data.draw(st.integers(0, aligned.numel))
    stop = data.draw(st.integers(start, aligned.numel))
    np.testing.assert_array_equal(bits(read(aligned, start, stop)), bits(expected[start:stop]))


@dataclass
class Mixture:
    """An aligned table with rows of every origin, and the same computed in memory."""

    aligned: AlignedRows
    expected: torch.Tensor


@pytest.fixture(scope="module")
def mixture(own: LazyTensor, other: TokenTable) -> Mixture:
    """100 rows: own, zero, copied, combined, constant; the order is shuffled."""
    order = np.random.default_rng(3).permutation(100)
    rows = np.full(100, -1)
    rows[order[:60]] = np.random.default_rng(4).integers(0, 40, 60)
    copied, combined, constant = order[60:70], order[70:80], order[80:90]
    starts = np.arange(0, 31, 3)
    terms, coefficients = np.arange(30), np.random.default_rng(5).standard_normal(30)
    origins = (np.arange(30) % 2).astype(np.int16)
    row = np.arange(6, dtype=np.float32)
    fills = (
        Fill(copied, Copied(other, np.arange(10))),
        Fill(
            combined, CombinedRows((TokenTable(own), other), starts, terms, coefficients, origins)
        ),
        Fill(constant, ConstantRow(row, 10)),
    )
    expected = torch.zeros(100, 6)
    expected[order[:60]] = OWN[rows[order[:60]]].float()
    expected[copied] = OTHER[:10].float()
    both = [OWN.double(), OTHER.double()]
    for i, target in enumerate(combined):
        total = torch.zeros(6, dtype=torch.float64)
        for j in range(3 * i, 3 * i + 3):
            total += coefficients[j] * both[j % 2][j]
        expected[target] = total.float()
    expected[constant] = torch.as_tensor(row)
    return Mixture(AlignedRows(own, rows, fills), expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 600), st.integers(0, 600))
def test_any_range_of_rows_of_every_origin_reads_the_dense_computation(
    mixture: Mixture, a: int, b: int
) -> None:
    start, stop = sorted((a, b))
    assert mixture.aligned.dtype is DType.FLOAT32
    expected = mixture.expected.reshape(-1)[start:stop]
    np.testing.assert_array_equal(bits(read(mixture.aligned, start, stop)), bits(expected))


def test_many_threads_read_the_same(mixture: Mixture) -> None:
    ranges = [(start, min(start + 37, 600)) for start in range(0, 600, 11)] * 5
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda r: read(mixture.aligned, *r), ranges))
    for (start, stop), part in zip(ranges, found, strict=True):
        np.testing.assert_array_equal(part, mixture.expected.reshape(-1)[start:stop])


@pytest.mark.parametrize("width", [1, 3, 500])
def test_scattered_rows_are_read_together_or_one_by_one(tmp_path: Path, width: int) -> None:
    """Narrow rows in spans, wide ones singly, with gaps; reversed, repeated and missing ones."""
    values = torch.as_tensor(rng.standard_normal((5000, width)), dtype=torch.float32)
    tensor = stored(tmp_path, "t", values)
    rows = np.random.default_rng(1).integers(-1, 5000, 3000)
    rows[:500] = np.arange(0, 5000, 10)[::-1]
    expected = torch.where(torch.as_tensor(rows >= 0)[:, None], values[rows], 0)
    assert torch.equal(read(AlignedRows(tensor, rows)), expected)
    permuted = np.random.default_rng(2).permutation(5000)
    assert torch.equal(read(AlignedRows(tensor, permuted)), values[permuted])


def test_a_tensor_that_is_not_a_plain_range_of_a_file_is_gathered_too(own: LazyTensor) -> None:
    """An aligned table of an aligned table."""
    inner = AlignedRows(own, np.arange(39, -1, -1))
    rows = np.random.default_rng(1).permutation(40)
    outer = AlignedRows(inner, rows)
    assert torch.equal(read(outer), OWN.flip(0)[rows])
    assert outer.identity != AlignedRows(AlignedRows(own, np.arange(40)), rows).identity


@pytest.mark.parametrize("name", FLOATS)
def test_copied_rows_are_widened_exactly_beside_computed_ones(tmp_path: Path, name: str) -> None:
    dtype = getattr(torch, name)
    values = torch.randn(300, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    tensor = stored(tmp_path, "t", values)
    rows = np.append(np.random.default_rng(0).permutation(300), [-1, -1])
    row = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    aligned = AlignedRows(tensor, rows, (Fill(np.array([301]), ConstantRow(row, 1)),))
    wide = torch.float64 if name == "float64" else torch.float32
    assert str(aligned.dtype) == str(wide).removeprefix("torch.")
    found = read(aligned)
    assert torch.equal(found[:300], values[rows[:300]].to(wide))
    assert torch.equal(found[300:], torch.stack([torch.zeros(4), torch.as_tensor(row)]).to(wide))


@pytest.mark.parametrize(
    ("own_dtype", "other_dtype", "result"),
    [
        ("bfloat16", "bfloat16", "bfloat16"),
        ("bfloat16", "float16", "float32"),
        ("float8_e4m3fn", "bfloat16", "float32"),
        ("float32", "bfloat16", "float32"),
        ("float16", "float64", "float64"),
    ],
)
def test_rows_of_another_dtype_meet_in_one_that_holds_both(
    tmp_path: Path, own_dtype: str, other_dtype: str, result: str
) -> None:
    mine = torch.randn(3, 2).to(getattr(torch, own_dtype))
    theirs = torch.randn(3, 2).to(getattr(torch, other_dtype))
    fill = Fill(np.array([1]), Copied(table(tmp_path, "theirs", theirs), np.array([2])))
    aligned = AlignedRows(stored(tmp_path, "mine", mine), np.array([0, -1, 2]), (fill,))
    assert str(aligned.dtype) == result
    wide = getattr(torch, result)
    assert torch.equal(
        read(aligned), torch.stack([mine[0].to(wide), theirs[2].to(wide), mine[2].to(wide)])
    )


def test_integers_are_gathered_but_never_mixed_with_floats(
    tmp_path: Path, other: TokenTable
) -> None:
    tensor = stored(tmp_path, "t", torch.arange(12).reshape(2, 6))
    assert torch.equal(read(AlignedRows(tensor, np.array([1, -1])))[0], torch.arange(6, 12))
    with pytest.raises(CompatibilityError, match="only floats are widened"):
        AlignedRows(tensor, np.array([-1]), (Fill(np.array([0]), Copied(other, np.array([0]))),))


def test_zero_rows_keep_the_dtype(own: LazyTensor) -> None:
    fill = Fill(np.array([0]), Zeros(TokenTable(own), 1))
    aligned = AlignedRows(own, np.array([-1, 5]), (fill,))
    assert aligned.dtype is DType.BFLOAT16
    assert torch.equal(read(aligned), torch.stack([torch.zeros(6).bfloat16(), OWN[5]]))


def test_biases_of_one_axis_and_along_the_second_axis(tmp_path: Path) -> None:
    """BART's final_logits_bias has shape (1, V)."""
    values = torch.arange(10, dtype=torch.float32)
    rows = np.array([9, 0, -1, 3, 4, -1])
    fill = Fill(np.array([5]), ConstantRow(np.array([0.5], np.float32), 1))
    expected = torch.tensor([9, 0, 0, 3, 4, 0.5])
    flat = AlignedRows(stored(tmp_path, "flat", values), rows, (fill,))
    across = AlignedRows(stored(tmp_path, "across", values[None]), rows, (fill,), axis=1)
    assert torch.equal(read(flat), expected)
    assert across.shape == (1, 6)
    assert torch.equal(read(across), expected[None])
    with pytest.raises(UsageError, match="no rows of tokens along axis 1"):
        AlignedRows(stored(tmp_path, "square", values.reshape(2, 5)), rows, axis=1)


def test_tables_with_more_axes_and_with_no_elements(tmp_path: Path) -> None:
    values = torch.randn(4, 3, 2)
    aligned = AlignedRows(stored(tmp_path, "t", values), np.array([3, -1, 0]))
    assert torch.equal(read(aligned), torch.stack([values[3], torch.zeros(3, 2), values[0]]))
    assert read(AlignedRows(stored(tmp_path, "e", torch.empty(4, 0)), np.array([3]))).shape == (
        1,
        0,
    )
    assert read(AlignedRows(aligned, np.array([], np.int64))).shape == (0, 3, 2)


def test_the_identity_of_rows_is_told_from_any_change(own: LazyTensor, other: TokenTable) -> None:
    def aligned(rows: list[int], borrowed: int = 0, factor: float = 0.5) -> AlignedRows:
        combined = CombinedRows((other,), np.array([0, 1]), np.array([1]), np.array([factor]))
        fills = (
            Fill(np.array([2]), Copied(other, np.array([borrowed]))),
            Fill(np.array([3]), combined),
        )
        return AlignedRows(own, np.array(rows), fills)

    first = aligned([0, 1, -1, -1])
    assert first.identity == aligned([0, 1, -1, -1]).identity
    changed = [aligned([1, 0, -1, -1]), aligned([0, 1, -1, -1], 1), aligned([0, 1, -1, -1], 0, 0.6)]
    assert len({t.identity for t in (first, *changed)}) == 4
    assert first.sources == (own, other.tensor)


def test_the_unchanged_table_is_recognised(own: LazyTensor) -> None:
    assert AlignedRows(own, np.arange(40)).is_unchanged
    assert not AlignedRows(own, np.arange(39)).is_unchanged
    assert not AlignedRows(own, np.append(np.arange(40), -1)).is_unchanged
    assert not AlignedRows(own, np.arange(40)[::-1]).is_unchanged


@pytest.mark.parametrize("rows", [[40], [-2], [0, 7, 99]])
def test_an_index_outside_the_table_is_refused(own: LazyTensor, rows: list[int]) -> None:
    """Before anything is read."""
    with pytest.raises(UsageError, match="40 rows"):
        AlignedRows(own, np.array(rows))


def test_fills_that_do_not_fit_are_refused(
    own: LazyTensor, tmp_path: Path, other: TokenTable
) -> None:
    rows = np.array([0, -1, -1])
    one = Copied(other, np.array([0]))
    with pytest.raises(UsageError, match="more than one origin"):
        AlignedRows(own, rows, (Fill(np.array([0]), one),))
    with pytest.raises(UsageError, match="more than one origin"):
        AlignedRows(own, rows, (Fill(np.array([1]), one), Fill(np.array([1]), one)))
    with pytest.raises(UsageError, match="outside of 3 rows"):
        AlignedRows(own, rows, (Fill(np.array([3]), one),))
    with pytest.raises(UsageError, match="cannot fill 2 places"):
        Fill(np.array([1, 2]), one)
    wider = table(tmp_path, "wider", torch.zeros(2, 7))
    with pytest.raises(CompatibilityError, match="different hidden sizes"):
        AlignedRows(own, rows, (Fill(np.array([1]), Copied(wider, np.array([0]))),))


@pytest.mark.parametrize(
    ("start", "stop", "size"), [(-1, 1, 4), (0, 601, 2404), (5, 4, 0), (0, 4, 15)]
)
def test_a_range_or_buffer_that_does_not_fit_is_a_programming_error(
    mixture: Mixture, start: int, stop: int, size: int
) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        mixture.aligned.read_into(start, stop, memoryview(bytearray(size)))


def test_sums_do_not_depend_on_what_is_read_together(tmp_path: Path) -> None:
    """Terms of very different sizes, where another order gives other bits."""
    values = torch.as_tensor(10.0 ** rng.uniform(-8, 8, (500, 3)), dtype=torch.float32)
    lengths = rng.integers(0, 40, 200)
    starts = np.append(0, np.cumsum(lengths))
    rows, factors = rng.integers(0, 500, starts[-1]), rng.standard_normal(starts[-1])
    combined = CombinedRows((table(tmp_path, "t", values),), starts, rows, factors)
    together = combined.read(np.arange(200))
    alone = np.concatenate([combined.read(np.array([i])) for i in range(200)])
    np.testing.assert_array_equal(together, alone)
    for i in range(200):
        total = np.zeros(3)
        for j in range(starts[i], starts[i + 1]):
            total += factors[j] * values[rows[j]].double().numpy()
        np.testing.assert_array_equal(together[i].view(np.float32), total.astype(np.float32))


def test_a_row_of_nan_that_is_combined_is_an_error_and_one_that_is_copied_is_not(
    tmp_path: Path,
) -> None:
    values = torch.zeros(5, 2)
    values[3, 1] = float("nan")
    broken = table(tmp_path, "broken", values)
    assert read(AlignedRows(broken.tensor, np.array([3]))).isnan().any()
    combined = CombinedRows((broken,), np.array([0, 2]), np.array([2, 3]), np.array([1.0, 0.0]))
    with pytest.raises(NonFiniteError, match=r"Row 3 of tensor 'broken'.*NaN"):
        combined.read(np.array([0]))


def test_large_finite_rows_are_finite(tmp_path: Path) -> None:
    """Their sum overflows, and they are fine."""
    large = table(tmp_path, "large", torch.full((2, 4), 3e38))
    combined = CombinedRows((large,), np.array([0, 1]), np.array([1]), np.array([0.5]))
    assert (combined.read(np.array([0])).view(np.float32) == np.float32(3e38) / 2).all()


def borrowed(
    targets: list[int], tables: list[TokenTable], rows: list[list[int]], base: int | None
) -> torch.Tensor:
    mine = AlignedRows(
        tables[0].tensor,
        np.full(5, -1),
        borrow(np.array(targets), tables, np.array(rows), base),
    )
    return read(mine)


def test_borrowed_rows_follow_mergekits_default(
    own: LazyTensor, other: TokenTable, tmp_path: Path
) -> None:
    """The only model's row; the base's; the mean over those that have it; zero where nobody has one."""
    third_values = torch.randn(10, 6).bfloat16()
    tables = [TokenTable(own), other, table(tmp_path, "third", third_values)]
    rows = [[-1, 3, 4, 5, -1], [7, 8, -1, 9, -1], [-1, 1, 2, 3, -1]]
    with_base = borrowed([0, 1, 2, 3, 4], tables, rows, 1)
    mean_of_two = ((OWN[4].double() + third_values[2].double()) / 2).float()
    assert torch.equal(
        with_base,
        torch.stack(
            [OTHER[7].float(), OTHER[8].float(), mean_of_two, OTHER[9].float(), torch.zeros(6)]
        ),
    )
    without = borrowed([0, 1, 2, 3, 4], tables, rows, None)
    thirds = np.zeros(6)
    for part in (OWN[3], OTHER[8], third_values[1]):
        thirds = thirds + (1 / 3) * part.double().numpy()
    assert torch.equal(without[1], torch.as_tensor(thirds).float())
    assert torch.equal(without[2], mean_of_two)


def test_borrowed_copies_keep_their_dtype(own: LazyTensor, other: TokenTable) -> None:
    """No mean, no float32."""
    fills = borrow(np.array([1]), [TokenTable(own), other], np.array([[-1], [4]]))
    aligned = AlignedRows(own, np.array([0, -1]), fills)
    assert aligned.dtype is DType.BFLOAT16
    assert torch.equal(read(aligned)[1], OTHER[4])


def test_means_over_tables_of_different_widths_are_refused(own: LazyTensor, tmp_path: Path) -> None:
    narrow = table(tmp_path, "narrow", torch.zeros(3, 2))
    with pytest.raises(CompatibilityError, match="hidden sizes"):
        mean_over([TokenTable(own), narrow], np.array([[0], [0]]))
