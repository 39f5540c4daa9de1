"""Decoded blocks: computed once, kept within a limit, forgotten when they fail."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from tests.deltas.stored_arrays import floats, read, stored

from weightsmith.deltas.codecs.held import BlockTensor, KeptBlocks, fitted
from weightsmith.tensors.dtypes import DType


def test_what_is_kept_is_not_computed_again_and_cannot_be_written_to():
    kept, calls = KeptBlocks(1000), []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.ones(10, np.uint8)

    owner = object()
    first = kept.get(owner, 0, compute)
    assert kept.get(owner, 0, compute) is first
    assert len(calls) == 1
    assert kept.get(object(), 0, compute) is not first
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 2


def test_beyond_the_limit_the_least_recently_used_is_let_go_of():
    kept, calls, owner = KeptBlocks(250), [], object()

    def get(number: int) -> None:
        kept.get(owner, number, lambda: (calls.append(number), np.zeros(100, np.uint8))[1])

    for number in (0, 1, 0, 2, 0, 1):
        get(number)
    assert calls == [0, 1, 2, 1]
    # One that is larger than the limit is handed out, and pushes out all others.
    big = kept.get(owner, 9, lambda: np.zeros(1000, np.uint8))
    assert big.size == 1000
    get(0)
    assert calls[-1] == 0


def test_threads_that_want_one_block_compute_it_once():
    kept, calls, owner = KeptBlocks(1000), [], object()

    def compute() -> np.ndarray:
        calls.append(1)
        time.sleep(0.02)
        return np.zeros(10, np.uint8)

    threads = [threading.Thread(target=kept.get, args=(owner, 0, compute)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_a_failure_is_not_kept():
    kept, owner = KeptBlocks(1000), object()

    def fail() -> np.ndarray:
        raise ValueError("broken")

    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            kept.get(owner, 0, fail)
    assert kept.get(owner, 0, lambda: np.ones(3, np.uint8)).sum() == 3


def test_blocks_of_any_length_make_up_the_tensor():
    values = np.arange(103, dtype=np.float32)
    tensor = BlockTensor("x", DType.FLOAT32, (103,), (), lambda i: values[10 * i : 10 * i + 10], 10)
    for start, stop in ((0, 103), (9, 11), (10, 20), (37, 37), (99, 103)):
        assert read(tensor, start, stop) == values[start:stop].tobytes()


def test_a_base_with_other_rows_is_cut_or_continued_with_zeros():
    base = stored(np.arange(12, dtype=np.float32).reshape(4, 3), name="old")
    assert fitted(base, "old", (4, 3)) is base
    shorter, longer = fitted(base, "x", (2, 3)), fitted(base, "x", (6, 3))
    assert floats(shorter).reshape(-1).tolist() == [*range(6)]
    assert floats(longer).reshape(-1).tolist() == [*range(12), *[0] * 6]
    assert read(longer, 11, 14) == np.array([11, 0, 0], np.float32).tobytes()
    assert read(longer, 13, 18) == bytes(20)
    for shape in ((4, 4), (12,), (4, 3, 1)):
        assert fitted(base, "x", shape) is None
