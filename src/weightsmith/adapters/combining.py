"""Several adapters of one base made into one, by what they change and never by their factors.

With D_i the change of adapter i and w_i its weight:

    cat               sum_i w_i D_i exactly, of rank sum_i r_i
    task_arithmetic   the same, cut to the rank, energy or error that is asked for
    linear            the same with weights divided by their sum, as in recipes
    svd               the sum, cut to the largest of the ranks unless something else is asked for
    lego              rank-one units of all adapters clustered (see `lego`)

and with a rule for changes as elements (TIES, DARE, ...) in one of the `spaces`: `combine_in`. Ranks may differ,
weights may be negative, and a tensor that an adapter leaves alone has the change 0. Biases are summed with the weights;
tensors that adapters replace are combined as changes of the base's, see `alignment.whole_tensors`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from weightsmith.adapters.algebra import concatenated, norm, spectrum, zeros
from weightsmith.adapters.alignment import Rows, absences, aligned, labels_of, whole_tensors
from weightsmith.adapters.bounds import Bound, CutChange, cut_spectrum
from weightsmith.adapters.lego import Lego, clustered
from weightsmith.adapters.low_rank import Factors, LowRankAdapter
from weightsmith.adapters.spaces import Entered, Space
from weightsmith.checkpoints.checkpoint import Checkpoint
from weightsmith.deltas.changes import LowRank, Matrix
from weightsmith.errors import CompatibilityError, NonFiniteError, UsageError
from weightsmith.findings import Finding, Severity
from weightsmith.tensors.blas import use_one_thread
from weightsmith.tensors.dtypes import promote
from weightsmith.tensors.messages import shown

# Methods of which an adapter takes part with all that it changes unless a weight says otherwise.
_WHOLE_WEIGHTS = ("task_arithmetic", "lego")
FACTORED_METHODS = ("cat", "linear", "task_arithmetic", "svd", "lego")

# What merges changes seen in a space: for each adapter its coordinates by key, in; the merged ones by key, out. All
# keys of the model come at once, or one at a time.
Rule = Callable[[Sequence[Mapping[str, Matrix]]], Mapping[str, Matrix]]


@dataclass(frozen=True, slots=True)
class CombinedTensor:
    """What became of one tensor: ranks of the adapters (0 for none) and of the result.

    `lost` is the share of the combined change's norm that its truncation took, `size` that norm.
    """

    key: str
    ranks: tuple[int, ...]
    rank: int
    lost: float
    size: float


@dataclass(frozen=True, slots=True)
class CombinationReport:
    """How adapters were combined, tensor by tensor."""

    method: str
    weights: tuple[float, ...]
    tensors: tuple[CombinedTensor, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def lost(self) -> float:
        """The share of the norm of all combined changes together that truncation took."""
        whole = math.hypot(*(t.size for t in self.tensors))
        return math.hypot(*(t.size * t.lost for t in self.tensors)) / whole if whole else 0.0


def combine(
    adapters: Sequence[LowRankAdapter],
    method: str = "linear",
    weights: Sequence[float] | None = None,
    *,
    bound: Bound | None = None,
    lego: Lego | None = None,
    base: Checkpoint | None = None,
    labels: Sequence[str] = (),
) -> tuple[LowRankAdapter, CombinationReport]:
    """Combine adapters by one of `FACTORED_METHODS`; no change is held dense.

    Weights default to 1 for task_arithmetic and lego and to 1 / N otherwise; only linear divides them by their sum.
    Without a bound nothing is cut, but that svd keeps the largest of the adapters' ranks. For lego the rank is the
    number of clusters, unless `lego` has one. Raises UsageError for an unknown method, weights that are no N finite
    numbers, a bound on `cat`, which is exact, and a rank that no tensor can have; CompatibilityError for adapters of
    different bases; NonFiniteError for NaN or infinities.
    """
    if method not in FACTORED_METHODS:
        listed = ", ".join(FACTORED_METHODS)
        raise UsageError(
            f"{shown(method)} does not combine adapters in factored form: use one of {listed}."
        )
    if method == "cat" and bound is not None and not bound.is_open:
        raise UsageError("cat is exact and keeps every rank; use linear or svd to cut them.")
    use_one_thread()
    names = labels_of(adapters, labels)
    bound = bound or Bound()
    shares = _weights(weights, len(adapters), 1.0 if method in _WHOLE_WEIGHTS else None)
    if method == "linear":
        shares = _normalized(shares)
    rows = _checked(adapters, names, bound)
    replaced, added = whole_tensors(adapters, shares, base, names)
    factors, tensors = {}, []
    for key, row in rows.items():
        present = [(w, f) for w, f in zip(shares, row, strict=True) if f is not None]
        if present[0][1].target in replaced:
            continue
        made = _merged(method, present, bound, lego)
        factors[key] = replace(present[0][1], change=made.change)
        tensors.append(_told(key, row, made))
    combined = _adapter(adapters, factors, replaced, added)
    return combined, CombinationReport(
        method, tuple(shares), tuple(tensors), _findings(adapters, rows, names)
    )


def combine_in(
    adapters: Sequence[LowRankAdapter],
    space: Space,
    rule: Rule,
    weights: Sequence[float] | None = None,
    *,
    method: str = "rule",
    bound: Bound | None = None,
    one_by_one: bool = False,
    base: Checkpoint | None = None,
    labels: Sequence[str] = (),
) -> tuple[LowRankAdapter, CombinationReport]:
    """Combine adapters by a rule for changes as numbers, such as TIES, in a space.

    The rule gets the coordinates of every tensor at once, for those that count over the whole model, or with
    `one_by_one` of one tensor at a time, so that only that is held. It applies weights itself; `weights` (default
    1 / N) are those of biases and replaced tensors. Without a bound the result is exact in factored spaces. In the
    dense space a rule can make any rank: give one. Raises as `combine` does, and UsageError for a rule that
    gives a matrix of another shape.
    """
    use_one_thread()
    names = labels_of(adapters, labels)
    bound = bound or Bound()
    shares = _weights(weights, len(adapters), None)
    rows = _checked(adapters, names, bound)
    replaced, added = whole_tensors(adapters, shares, base, names)
    rows = {key: row for key, row in rows.items() if _first(row).target not in replaced}
    factors: dict[str, Factors] = {}
    tensors = []
    groups = [[key] for key in rows] if one_by_one else [list(rows)]
    for keys in groups:
        entered = {key: _entered(space, rows[key]) for key in keys}
        known = {key: found for key, found in entered.items() if found is not None}
        merged = (
            rule(
                [{key: e.coordinates[i] for key, e in known.items()} for i in range(len(adapters))]
            )
            if known
            else {}
        )
        for key in keys:
            made = _left(entered[key], merged.get(key), rows[key], bound)
            factors[key] = replace(_first(rows[key]), change=made.change)
            tensors.append(_told(key, rows[key], made))
    combined = _adapter(adapters, factors, replaced, added)
    return combined, CombinationReport(
        method, tuple(shares), tuple(tensors), _findings(adapters, rows, names)
    )


def _merged(
    method: str, present: Sequence[tuple[float, Factors]], bound: Bound, lego: Lego | None
) -> CutChange:
    counted = [(weight, f.change) for weight, f in present if weight]
    if not counted:
        return CutChange(zeros(*present[0][1].change.shape), 0.0, 0.0)
    if method == "lego":
        change = clustered(counted, lego or Lego(rank=bound.rank))
        bound = replace(bound, rank=None) if lego is None else bound
    else:
        change = concatenated(counted)
    if method == "svd" and bound.is_open:
        # Of those of weight 0, too: the result is to have no jump where a weight vanishes.
        bound = Bound(rank=max(f.change.rank for _, f in present))
    # More directions than the matrix has say nothing more, but `cat` promises the factors themselves.
    if bound.is_open and (method == "cat" or change.rank <= min(change.shape)):
        return CutChange(change, 0.0, norm(change))
    return cut_spectrum(spectrum(change), bound)


def _entered(space: Space, row: Sequence[Factors | None]) -> Entered | None:
    """Coordinates of the tensor's changes; None where all of them are zero."""
    first = _first(row)
    rows, columns = first.change.shape
    changes = [zeros(rows, columns) if f is None else f.change for f in row]
    if all(norm(change) == 0.0 for change in changes):
        return None
    return space.enter(changes, input_first=first.input_first)


def _left(
    entered: Entered | None, merged: Matrix | None, row: Sequence[Factors | None], bound: Bound
) -> CutChange:
    first = _first(row)
    if entered is None:
        return CutChange(zeros(*first.change.shape), 0.0, 0.0)
    expected = entered.coordinates[0].shape
    if merged is None or merged.shape != expected:
        shape = None if merged is None else merged.shape
        raise UsageError(f"A rule made {shape} of matrices of {expected} at {shown(first.key)}.")
    if not np.isfinite(merged).all():
        raise NonFiniteError(f"The combined change of {shown(first.key)} holds NaN or infinities.")
    return entered.leave(np.asarray(merged, np.float64), bound)


def _told(key: str, row: Sequence[Factors | None], made: CutChange) -> CombinedTensor:
    ranks = tuple(0 if f is None else f.change.rank for f in row)
    return CombinedTensor(key, ranks, made.change.rank, made.lost, made.size)


def _checked(adapters: Sequence[LowRankAdapter], labels: Sequence[str], bound: Bound) -> Rows:
    """The adapters' tensors side by side, and every check that needs no arithmetic."""
    bound.kept(np.ones(1))
    rows = aligned(adapters, labels)
    for row in rows.values():
        for factors, label in zip(row, labels, strict=True):
            if factors is not None and not _is_finite(factors.change):
                raise NonFiniteError(
                    f"{shown(factors.key)} of {label} holds NaN or infinities: the adapter is damaged."
                )
    largest = max((min(_first(row).change.shape) for row in rows.values()), default=0)
    if rows and bound.rank is not None and bound.rank > largest:
        raise UsageError(
            f"No tensor of these adapters can have rank {bound.rank}: the largest possible is {largest}."
        )
    return rows


def _is_finite(change: LowRank) -> bool:
    parts = (change.left, change.right, np.asarray(change.scale))
    return all(bool(np.isfinite(part).all()) for part in parts)


def _weights(given: Sequence[float] | None, count: int, default: float | None) -> list[float]:
    if given is None:
        return [1.0 / count if default is None else default] * count
    weights = [float(w) for w in given]
    if len(weights) != count:
        raise UsageError(f"{len(weights)} weights do not fit {count} adapters; give one for each.")
    if not all(math.isfinite(w) for w in weights):
        raise UsageError(f"The weights {weights} are not all finite numbers.")
    return weights


def _normalized(weights: Sequence[float]) -> list[float]:
    total = math.fsum(weights)
    if total == 0.0:
        raise UsageError(
            f"The weights {list(weights)} sum to 0, by which linear divides; use task_arithmetic for a plain sum."
        )
    return [weight / total for weight in weights]


def _adapter(
    adapters: Sequence[LowRankAdapter],
    factors: Mapping[str, Factors],
    replaced: Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]],
    added: Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]],
) -> LowRankAdapter:
    references = [a.base_reference for a in adapters if a.base_reference is not None]
    if not factors and not replaced and not added:
        raise CompatibilityError("The adapters change nothing: there is nothing to combine.")
    base = references[0] if references else None
    return LowRankAdapter(factors, replaced, added, base, promote(a.dtype for a in adapters))


def _findings(
    adapters: Sequence[LowRankAdapter], rows: Rows, labels: Sequence[str]
) -> tuple[Finding, ...]:
    found = absences(rows, labels)
    named = {a.base_reference: label for a, label in zip(adapters, labels, strict=True)}
    named.pop(None, None)
    if len(named) > 1:
        listed = ", ".join(f"{label} {shown(reference)}" for reference, label in named.items())
        found.append(
            Finding(
                Severity.WARNING,
                "other-base",
                "adapters",
                f"The adapters name different bases ({listed})",
                "make sure that these are the same weights",
            )
        )
    return tuple(found)


def _first(row: Sequence[Factors | None]) -> Factors:
    return next(f for f in row if f is not None)
