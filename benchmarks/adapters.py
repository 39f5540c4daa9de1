"""Adapters combined in factored form against the same arithmetic on dense changes, done by LAPACK alone.

    python adapters.py [--size 2048] [--adapters 4] [--rank 16] [--runs 5] [--dense-runs 3] [--out FILE]

One process, one thread, CPU seconds, medians: the rank-r approximation of a weighted sum; TIES in the joint basis of
KnOTS; TIES in the core space. Dense and factored begin with the same factors and end with factors of the same rank. The
difference is that of the two results, relative to the dense one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from report import machine

from weightsmith.deltas.changes import LowRankChange
from weightsmith.lora.algebra import concatenated, truncated
from weightsmith.lora.bounds import RankBound
from weightsmith.lora.spaces import CoreSpace, KnotsSpace, Space
from weightsmith.tensors.blas import one_blas_thread

Matrix = np.ndarray[Any, np.dtype[np.float64]]
Work = Callable[[], LowRankChange]


def make_adapters(size: int, count: int, rank: int) -> list[LowRankChange]:
    """Factors as a fine-tune leaves them: spectra that fall."""
    rng = np.random.default_rng(0)
    falling = 1.0 / (1.0 + np.arange(rank))
    return [
        LowRankChange(rng.normal(size=(size, rank)) * falling, rng.normal(size=(rank, size)))
        for _ in range(count)
    ]


def ties(vectors: Sequence[Matrix], density: float = 0.2) -> Matrix:
    """Trim, elect signs, mean of what agrees."""
    trimmed = []
    for vector in vectors:
        cut = np.quantile(abs(vector), 1.0 - density)
        trimmed.append(np.where(abs(vector) >= cut, vector, 0.0))
    elected = np.sign(sum(trimmed))
    agree = [np.sign(v) == elected for v in trimmed]
    total = sum(np.where(a, v, 0.0) for a, v in zip(agree, trimmed, strict=True))
    count = sum((a & (v != 0.0)).astype(float) for a, v in zip(agree, trimmed, strict=True))
    return total / np.maximum(count, 1.0)


def _dense(changes: Sequence[LowRankChange]) -> list[Matrix]:
    return [c.rows(0, c.shape[0]) for c in changes]


def _cut(matrix: Matrix, rank: int) -> LowRankChange:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return LowRankChange(left[:, :rank] * values[:rank], right[:rank])


def dense_sum(changes: Sequence[LowRankChange], rank: int) -> LowRankChange:
    """The best approximation of the sum of dense changes."""
    return _cut(sum(_dense(changes)[1:], _dense(changes)[0]) / len(changes), rank)


def dense_knots(changes: Sequence[LowRankChange], rank: int) -> LowRankChange:
    """Joint decomposition of the dense changes beside each other, TIES on their coefficients."""
    found = _dense(changes)
    left, values, right = np.linalg.svd(np.concatenate(found, 1), full_matrices=False)
    kept = values > 1e-5 * values[0]
    width = found[0].shape[1]
    blocks = [right[kept, i * width : (i + 1) * width] for i in range(len(found))]
    merged = ties([values[kept, None] * block for block in blocks])
    return _cut(left[:, kept] @ merged, rank)


def dense_core(changes: Sequence[LowRankChange], rank: int) -> LowRankChange:
    """Each dense change decomposed, bases of all of their directions, TIES on what lies between them."""
    found, lefts, rights = _dense(changes), [], []
    for one, change in zip(found, changes, strict=True):
        left, values, right = np.linalg.svd(one, full_matrices=False)
        root = np.sqrt(values[: change.rank])
        lefts.append(left[:, : change.rank] * root)
        rights.append(root[:, None] * right[: change.rank])
    left = np.linalg.svd(np.concatenate(lefts, 1), full_matrices=False)[0]
    right = np.linalg.svd(np.concatenate(rights, 0), full_matrices=False)[2]
    merged = ties([left.T @ one @ right.T for one in found])
    return _cut(left @ merged @ right, rank)


def factored_sum(changes: Sequence[LowRankChange], rank: int) -> LowRankChange:
    """The same from the factors."""
    return truncated(concatenated([(1.0 / len(changes), c) for c in changes]), rank=rank)[0]


def factored_in(space: Space) -> Callable[[Sequence[LowRankChange], int], LowRankChange]:
    """TIES in a space that is found from the factors."""

    def merged(changes: Sequence[LowRankChange], rank: int) -> LowRankChange:
        entered = space.enter(changes)
        return entered.leave(ties(entered.coordinates), RankBound(rank=rank)).change

    return merged


CASES = {
    "sum and truncation": (dense_sum, factored_sum),
    "KnOTS, TIES": (dense_knots, factored_in(KnotsSpace())),
    "core space, TIES": (dense_core, factored_in(CoreSpace())),
}


def measured(work: Work, runs: int) -> tuple[float, LowRankChange]:
    """Median CPU seconds of this process, and the result."""
    seconds = []
    for _ in range(runs):
        began = time.process_time()
        found = work()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds), found


def difference(found: LowRankChange, expected: LowRankChange) -> float:
    """||found - expected|| / ||expected||, dense."""
    whole = expected.rows(0, expected.shape[0])
    return float(np.linalg.norm(found.rows(0, found.shape[0]) - whole) / np.linalg.norm(whole))


@one_blas_thread()
def main() -> None:
    """Measure every case and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dense-runs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    facts = machine()
    changes = make_adapters(options.size, options.adapters, options.rank)
    rows = []
    print(f"{'case':<22}{'dense':>9}{'factored':>10}{'ratio':>8}{'difference':>12}")
    for name, (dense, factored) in CASES.items():
        ours, found = measured(lambda f=factored: f(changes, options.rank), options.runs)
        theirs, expected = measured(lambda f=dense: f(changes, options.rank), options.dense_runs)
        rows.append(
            {
                "case": name,
                "dense_s": round(theirs, 3),
                "factored_s": round(ours, 4),
                "ratio": round(theirs / ours, 1),
                "difference": difference(found, expected),
            }
        )
        last = rows[-1]
        print(
            f"{name:<22}{theirs:>9.2f}{ours:>10.4f}{last['ratio']:>8}{last['difference']:>12.1e}",
            flush=True,
        )
    if options.out:
        setup = {
            key: getattr(options, key) for key in ("size", "adapters", "rank", "runs", "dense_runs")
        }
        text = json.dumps({"machine": facts, **setup, "cases": rows}, indent=1)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
