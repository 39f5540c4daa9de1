"""An adapter from a fine-tune and its base: the differences of their tensors as products of low rank.

    D = W_finetune - W_base  in float64, whatever the files' types are
    B A, the best approximation of D by few directions (Eckart and Young, 1936); ||D - B A||_F is measured afterwards on
    the factors as they are stored

No tensor is ever held dense, but for those that are stored whole, and for matrices whose smaller axis is at most 1024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from weightsmith.checkpoints import Checkpoint, respelled
from weightsmith.deltas import MatrixDifference, Measure, is_same, read_elements
from weightsmith.errors import CompatibilityError, NonFiniteError, UsageError
from weightsmith.graph import row_blocks
from weightsmith.lora.bounds import RankBound
from weightsmith.lora.decomposing import decompositions
from weightsmith.lora.expert_writing import left_out_by_peft
from weightsmith.lora.extraction_report import (
    ExtractedTensor,
    ExtractionReport,
    findings_of,
    signal_rank,
)
from weightsmith.lora.factor_fitting import fit, nearest
from weightsmith.lora.low_rank_adapters import Array, Factors, LowRankAdapter
from weightsmith.lora.rank_allocation import spread
from weightsmith.lora.saved_modules import stored, tied_head
from weightsmith.lora.treatments import (
    Choices,
    TreatedTensor,
    Treatment,
    parts_of,
    placeless,
)
from weightsmith.progress import Progress, Silence, heard
from weightsmith.tensors import DType, format_size, in_order, one_blas_thread

FACTOR_DTYPES = (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16)
_SPENT = "the budget is spent on changes that gain more"
Item = TypeVar("Item")
Result = TypeVar("Result")


@one_blas_thread()
def extract(
    finetune: Checkpoint,
    base: Checkpoint,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    budget_bytes: int | None = None,
    choices: Choices | None = None,
    dtype: DType = DType.FLOAT32,
    threads: int = 1,
    progress: Progress | None = None,
) -> tuple[LowRankAdapter, ExtractionReport]:
    """The adapter that makes `base` into `finetune` as nearly as it is asked to, and what it loses by tensor.

        rank          that many directions of every matrix
        energy        the fewest that hold that share of ||D||^2, of every matrix
        error         the fewest with ||D - B A|| <= error ||D||, of every matrix
        budget_bytes  bytes of all tensors that are written, spent where they gain most (see `allocation`)

    One of them is needed, and `rank` may be given with any as a limit. A tensor that is the same in both is not in the
    adapter. A fine-tune that names the network otherwise is read in the base's spelling. `choices` are for tables,
    heads, biases and norms; fused experts are factored one by one. Factors are stored in `dtype`, whole tensors so that
    nothing is lost. The result does not depend on `threads`. `progress` counts tensors.

    Raises UsageError for bounds that mean nothing, CompatibilityError for models that do not fit together, that are
    equal, or that cannot be held to the bound in `dtype`, and NonFiniteError for NaN or infinities in a changed tensor.
    """
    bound = RankBound(rank, energy, error)
    _check(bound, budget_bytes, dtype)
    parts = parts_of(respelled(finetune, base), base, choices or Choices())
    doubled = tied_head(base) or ()
    workers = _Workers(threads, progress or Silence())
    measures = workers.all("comparing", _measure, parts)
    changed = [
        _Changed(part, found, 2 if part.name in doubled else 1)
        for part, found in zip(parts, measures, strict=True)
        if found is None or found.squares > 0.0
    ]
    lacking = placeless([c.part for c in changed])
    changed = [c.left_out(lacking[c.part.key]) if c.part.key in lacking else c for c in changed]
    saved_modules = [_whole(c, dtype) for c in changed if c.is_whole]
    matrices = [c for c in changed if c.part.treatment is Treatment.FACTORED]
    _check_rank(rank, matrices)
    bounds: list[RankBound | None] = [bound] * len(matrices)
    if budget_bytes is not None:
        bounds = _spent(workers, matrices, saved_modules, budget_bytes, bound, dtype)
    pairs = list(zip(matrices, bounds, strict=True))
    fits = workers.all("factoring", lambda pair: _fitted(*pair, dtype), pairs)
    adapter = LowRankAdapter(
        {factors.key: factors for factors, _ in fits if factors is not None},
        {w.entry.key: w.values for w in saved_modules if w.entry.treatment is Treatment.REPLACED},
        {w.entry.key: w.values for w in saved_modules if w.entry.treatment is Treatment.ADDED},
        base.hub_id or base.source,
        dtype,
    )
    lost = [_lost(c) for c in changed if c.part.treatment is Treatment.LEFT_OUT]
    entries = (*(entry for _, entry in fits), *(w.entry for w in saved_modules), *lost)
    if not (adapter.factors or adapter.replaced or adapter.added):
        raise CompatibilityError(_nothing(finetune, base, entries))
    resized = [c.part.name for c in changed if c.is_whole and c.measure is None]
    tied = [f.target for f in adapter.factors.values() if f.target in doubled]
    dense = [factors.target for factors in adapter.factors.values() if factors.part is None]
    ignored = left_out_by_peft((base.config or {}).get("model_type"), dense)
    findings = tuple(findings_of(entries, resized, tied, ignored))
    return adapter, ExtractionReport(entries, len(parts) - len(changed), dtype, findings)


@dataclass(frozen=True, slots=True, eq=False)
class _Changed:
    """A part that differs; `copies` tells how many times a file holds what is stored of it."""

    part: TreatedTensor
    measure: Measure | None
    copies: int

    @property
    def is_whole(self) -> bool:
        """Whether it is stored whole."""
        return self.part.treatment in (Treatment.REPLACED, Treatment.ADDED)

    def left_out(self, why: str) -> _Changed:
        """The same as a change that is lost."""
        return replace(self, part=replace(self.part, treatment=Treatment.LEFT_OUT, why=why))

    @property
    def difference(self) -> MatrixDifference:
        """What is read of it."""
        assert self.part.base is not None
        return MatrixDifference(
            self.part.finetune, self.part.base, self.part.shape, self.part.first
        )

    def bytes_of(self, rank: int, dtype: DType) -> int:
        """Bytes of its factors."""
        return rank * sum(self.part.shape) * dtype.itemsize * self.copies

    def entry(self) -> ExtractedTensor:
        """Its line in the report, with everything lost."""
        shape = self.part.finetune.shape if self.part.part is None else self.part.shape
        change = None if self.measure is None else math.sqrt(self.measure.squares)
        return ExtractedTensor(
            self.part.key,
            self.part.treatment,
            shape,
            self.part.finetune.dtype,
            change,
            change,
            0.0 if self.measure is None else math.sqrt(self.measure.noise),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Whole:
    values: Array
    entry: ExtractedTensor


@dataclass(frozen=True, slots=True)
class _Workers:
    """Work on tensors in threads."""

    threads: int
    progress: Progress

    def all(
        self, what: str, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> list[Result]:
        """The results for all items; progress counts them."""
        return heard(self.progress.begin(what, len(items), "tensor"), self.map(function, items))

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterable[Result]:
        """The results for all items, in their order."""
        return in_order(function, items, self.threads)


def _check(bound: RankBound, budget_bytes: int | None, dtype: DType) -> None:
    bound.kept(np.zeros(0))
    others = (bound.energy, bound.error, budget_bytes)
    if bound.is_open and budget_bytes is None:
        raise UsageError(
            "Say how much to keep: give a rank, an energy, an error or a budget of bytes."
        )
    if sum(value is not None for value in others) > 1:
        raise UsageError("Energy, error and budget exclude each other: give one of them.")
    if budget_bytes is not None and budget_bytes <= 0:
        raise UsageError(f"A budget of {budget_bytes} bytes holds nothing: give more.")
    if dtype not in FACTOR_DTYPES:
        listed = ", ".join(str(d) for d in FACTOR_DTYPES)
        raise UsageError(f"Factors are not stored in {dtype}: take one of {listed}.")


def _check_rank(rank: int | None, matrices: Sequence[_Changed]) -> None:
    largest = max((min(c.part.shape) for c in matrices), default=0)
    if rank is not None and matrices and rank > largest:
        raise UsageError(
            f"No changed matrix can have rank {rank}: the largest possible is {largest}."
        )


def _measure(part: TreatedTensor) -> Measure | None:
    """Sums over the change of a part; None where there is nothing to subtract, or no numbers that could be."""
    if part.base is None:
        return None
    if part.finetune.dtype.is_float and part.base.dtype.is_float:
        try:
            return MatrixDifference(part.finetune, part.base, part.shape, part.first).measure()
        except NonFiniteError:
            # Infinities are no damage in a mask, and nothing to tell where they are in both.
            if part.treatment is not Treatment.LEFT_OUT and not is_same(part.finetune, part.base):
                raise
    return Measure(0.0, 0.0) if is_same(part.finetune, part.base) else None


def _spent(
    workers: _Workers,
    matrices: Sequence[_Changed],
    saved_modules: Sequence[_Whole],
    budget_bytes: int,
    bound: RankBound,
    dtype: DType,
) -> list[RankBound | None]:
    """The rank of every matrix under a budget, None for those that get nothing."""
    taken = sum(w.entry.nbytes for w in saved_modules)
    if taken > budget_bytes:
        raise UsageError(
            f"The tensors that are stored whole take {format_size(taken)} of a budget of {format_size(budget_bytes)}: "
            "give more, or have tables and heads factored (lora) or skipped."
        )
    searches = [decompositions(c.difference, c.part.key, None) for c in matrices]
    costs = [c.bytes_of(1, dtype) for c in matrices]
    ranks = spread(searches, costs, budget_bytes - taken, bound.rank, workers.map)
    return [RankBound(rank) if rank else None for rank in ranks]


def _fitted(
    changed: _Changed, bound: RankBound | None, dtype: DType
) -> tuple[Factors | None, ExtractedTensor]:
    part, measure = changed.part, changed.measure
    entry = changed.entry()
    if bound is None:
        return None, replace(entry, treatment=Treatment.LEFT_OUT, why=_SPENT)
    assert measure is not None
    found = fit(changed.difference, measure.squares, bound, dtype, part.key)
    factors = Factors(
        part.name, found.change, part.finetune.shape, part.kind, part.input_first, part.part
    )
    rank = found.change.rank
    return factors, replace(
        entry,
        error=found.error,
        rank=rank,
        signal=signal_rank(found.values, entry.noise, part.shape),
        nbytes=changed.bytes_of(rank, dtype),
    )


def _whole(changed: _Changed, dtype: DType) -> _Whole:
    """What is stored of a whole tensor, and by how much that misses it."""
    part, is_added = changed.part, changed.part.treatment is Treatment.ADDED
    flat = np.empty(part.finetune.numel, np.float32)
    squares = 0.0
    for start, stop in row_blocks((part.finetune.numel, 1)):
        exact = read_elements(part.finetune, start, stop)
        if is_added:
            assert part.base is not None
            exact = exact - read_elements(part.base, start, stop)
        flat[start:stop] = nearest(exact, dtype if is_added else DType.FLOAT32)
        squares += float(np.square(exact - flat[start:stop]).sum())
    values: Array = flat.reshape(part.finetune.shape)
    kept = dtype
    if not is_added:
        wanted = (dtype,) if part.base is None else (dtype, part.base.dtype)
        kept = stored(part.name, values, wanted).dtype
    nbytes = values.size * kept.itemsize * changed.copies
    error = None if changed.measure is None else math.sqrt(squares)
    return _Whole(values, replace(changed.entry(), error=error, nbytes=nbytes))


def _lost(changed: _Changed) -> ExtractedTensor:
    return replace(changed.entry(), why=changed.part.why)


def _nothing(finetune: Checkpoint, base: Checkpoint, entries: Sequence[ExtractedTensor]) -> str:
    if not entries:
        return f"{finetune.identity} has the same weights as {base.identity}: there is nothing to extract."
    return (
        f"Nothing of what {finetune.identity} changes can go into an adapter: {entries[0].why} "
        f"({entries[0].key!r} and {len(entries) - 1} more)."
    )
