"""From a graph to passes: what a backend is asked to compute on each tile, and what it answers.

A *pass* streams the inputs of one tensor once. It computes reductions (whose results later passes
use as numbers) or outputs. `reduction_levels` reads from the graph how many passes there are.
Backends implement `Backend`; the engine and the in-memory interface drive them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from weightsmith.graph.equal_graphs import walked
from weightsmith.graph.graph import Node, Scalar, Scope, Threshold, Value, is_reduction
from weightsmith.graph.shares import floor_of_share
from weightsmith.graph.singular import without_gradient
from weightsmith.tensors import DType

HISTOGRAM_BINS = 1 << 16
# Roots and known nodes of which it is remembered what follows from them.
_REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class ThresholdPoint:
    """A known cut: elements with |x| above `key` are selected, and some of those equal to it.

    Keys are the bits of |x| in work precision, read as an integer; they order like the magnitudes. Of equals those with
    flat index <= `last_index` are selected, or, with a `last_rank`, those whose rank (see `equal_magnitudes`, under
    the tensor's `rank_key`) is lower, or is that at such an index. `magnitude` is a torch scalar where gradients are
    recorded.
    """

    key: int
    last_index: int
    magnitude: Any
    last_rank: int | None = None
    rank_key: int = 0


Known = Mapping[Node, float | ThresholdPoint | Any]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Ask for the number of keys in bins [low + (i << shift), low + ((i + 1) << shift)), and above.

    There are 65536 bins.
    """

    low: int
    shift: int


@dataclass(frozen=True, slots=True)
class Collect:
    """Ask for every key in [low, high] with its flat index (at most `limit` per tile), and the number of keys above.

    With `only_part`, just the tile of that ordinal is asked.
    """

    low: int
    high: int
    limit: int
    only_part: int | None = None


@dataclass(frozen=True, slots=True)
class Equal:
    """Ask for every element of magnitude `key` whose rank lies in [low, high] (at most `limit` per tile).

    The answer has ranks for keys, counts those of a lower rank as above, and says how many keys are larger and how many
    equal. `rank_key` is the tensor's (see `equal_magnitudes`).
    """

    key: int
    low: int
    high: int
    limit: int
    rank_key: int = 0


Request = Histogram | Collect | Equal


@dataclass(frozen=True, slots=True)
class HistogramPart:
    """One tile's answer to `Histogram`; keys below `low` are not counted."""

    counts: NDArray[np.uint64]
    above: int


@dataclass(frozen=True, slots=True)
class CollectPart:
    """One tile's answer to `Collect`, or to `Equal`.

    `inside` counts the keys in range, also where lists are cut, and `nonzero` all keys but 0. Answers to `Equal` say
    instead how many are `larger` and how many `equal`.
    """

    keys: NDArray[np.uint64]
    indices: NDArray[np.int64]
    inside: int
    above: int
    nonzero: int
    larger: int = 0
    equal: int = 0


@dataclass(frozen=True, slots=True)
class PassSpec:
    """One pass over one tensor.

    `outputs` are the values that are written, each with the dtype that it is rounded to; all are computed in one work
    precision. `reductions` pairs each reduction to measure with its request (None for total, dot and peak).
    `known` holds the results of earlier passes by node. `source_dtypes[i]` is the stored dtype of
    source i. `wide` computes in float64 though no source is. `kept` are row reductions of the pass whose numbers the
    tiles give back, for later passes to know them.
    """

    shape: tuple[int, ...]
    source_dtypes: tuple[DType, ...]
    outputs: tuple[tuple[Value, DType], ...] = ()
    reductions: tuple[tuple[Scalar | Threshold, Request | None], ...] = ()
    known: Known = field(default_factory=dict)
    wide: bool = False
    kept: tuple[Scalar, ...] = ()

    @property
    def work(self) -> DType:
        """The dtype that the pass computes in."""
        return DType.FLOAT64 if self.wide else work_dtype(self.source_dtypes)


@dataclass(slots=True)
class TileResult:
    """What one tile gave: for each reduction of the spec, float64 partials per piece or a part of an order statistic.

    `nonfinite_outputs` and `nonfinite_sources` give (number of NaN or infinite elements, flat index
    of the first or -1); they are filled in passes that write outputs. `kept` has one number per row of the tile for
    each row reduction that the spec keeps.
    """

    partials: list[Any]
    nonfinite_outputs: list[tuple[int, int]] = field(default_factory=list)
    nonfinite_sources: list[tuple[int, int]] = field(default_factory=list)
    kept: list[NDArray[np.float64]] = field(default_factory=list)


class TilePass(Protocol):
    """A compiled pass; `run` may be called from several threads at once."""

    def run(
        self,
        buffers: Sequence[memoryview | None],
        start: int,
        count: int,
        outs: Sequence[memoryview] = (),
    ) -> TileResult:
        """Compute elements [start, start + count) - whole pieces, except at the end of the tensor.

        `buffers[i]` holds the raw little-endian bytes of source i for those elements (None if this
        pass does not use it); `outs` take those of the outputs.
        """
        ...


class Backend(Protocol):
    """Compiles passes; `name` is recorded in the manifest."""

    name: str

    def compile(self, spec: PassSpec) -> TilePass:
        """Prepare a pass."""
        ...

    def linalg(self) -> Any:
        """The array namespace that `whole` nodes compute with."""
        ...


def work_dtype(source_dtypes: Iterable[DType]) -> DType:
    """float64 if any source is float64, else float32."""
    return DType.FLOAT64 if DType.FLOAT64 in source_dtypes else DType.FLOAT32


def reduction_levels(
    roots: Sequence[Node], known: Known | None = None
) -> tuple[tuple[Scalar | Threshold, ...], ...]:
    """Reductions (tensor and model scope) grouped by the pass in which they can be measured, in graph order.

    Row reductions are resolved inside a tile and start no pass of their own.
    """
    return _levels(tuple(roots), frozenset(known or ()))


@functools.lru_cache(maxsize=_REMEMBERED)
def _levels(
    roots: tuple[Node, ...], known: frozenset[Node]
) -> tuple[tuple[Scalar | Threshold, ...], ...]:
    level: dict[Node, int] = {}
    groups: list[list[Scalar | Threshold]] = []
    for node in walked(roots, known):
        if node in known:
            continue
        below = max((level.get(child, 0) for child in node.inputs), default=0)
        if (
            isinstance(node, (Scalar, Threshold))
            and is_reduction(node)
            and node.scope is not Scope.ROW
        ):
            level[node] = below + 1
            while len(groups) < below + 1:
                groups.append([])
            groups[below].append(node)
        else:
            level[node] = below
    return tuple(map(tuple, groups))


def used_sources(roots: Iterable[Node], known: Known) -> frozenset[int]:
    """Indices of the sources that a pass over these roots reads."""
    return _sources(tuple(roots), frozenset(known))


@functools.lru_cache(maxsize=_REMEMBERED)
def _sources(roots: tuple[Node, ...], known: frozenset[Node]) -> frozenset[int]:
    return frozenset(node.attributes[0] for node in walked(roots, known) if node.op == "source")


def matrix_nodes(roots: Iterable[Node]) -> tuple[Node, ...]:
    """The matrix methods of graphs, known ones too, inputs before users."""
    return _matrix_nodes(tuple(roots))


@functools.lru_cache(maxsize=_REMEMBERED)
def _matrix_nodes(roots: tuple[Node, ...]) -> tuple[Node, ...]:
    return tuple(node for node in walked(roots) if node.op == "whole")


def pass_roots(spec: PassSpec) -> list[Node]:
    """The values a pass computes: the outputs and what its reductions reduce."""
    roots: list[Node] = [value for value, _ in spec.outputs]
    for reduction, _ in spec.reductions:
        inputs = reduction.inputs[:1] if isinstance(reduction, Threshold) else reduction.inputs
        roots.extend(inputs)
    return roots


def has_row_nodes(roots: Iterable[Node], known: Known) -> bool:
    """True if a pass needs whole rows at once."""
    return _has_rows(tuple(roots), frozenset(known))


@functools.lru_cache(maxsize=_REMEMBERED)
def _has_rows(roots: tuple[Node, ...], known: frozenset[Node]) -> bool:
    return any(
        node.op == "row_rank" or (isinstance(node, (Scalar, Threshold)) and node.scope is Scope.ROW)
        for node in walked(roots, known)
    )


# Rows are kept between passes where a vector of them is small against the tensor, and small at all (2 MiB).
_KEPT_ROW_LENGTH, _KEPT_ROWS = 16, 1 << 18


def rows_to_keep(
    outputs: Iterable[Node],
    measured: Iterable[Scalar | Threshold],
    known: Known,
    shape: Sequence[int],
) -> tuple[Scalar, ...]:
    """Row reductions that a pass over `measured` computes and the passes after it need: each is computed once.

    Of reductions in each other's inputs, the outer ones; none where rows are short or very many.
    """
    row_length = shape[-1] if shape else 1
    if row_length < _KEPT_ROW_LENGTH or not 0 < math.prod(shape) <= _KEPT_ROWS * row_length:
        return ()
    return _kept_rows(tuple(outputs), tuple(measured), frozenset(known))


@functools.lru_cache(maxsize=_REMEMBERED)
def _kept_rows(
    outputs: tuple[Node, ...], measured: tuple[Scalar | Threshold, ...], known: frozenset[Node]
) -> tuple[Scalar, ...]:
    roots = [i for r in measured for i in (r.inputs[:1] if isinstance(r, Threshold) else r.inputs)]
    rows = {node for node in walked(roots, known) if is_row_reduction(node)} - known
    later = walked(outputs, known | rows | {r for r in measured if not isinstance(r, Threshold)})
    return tuple(n for n in later if isinstance(n, Scalar) and n in rows)


def is_row_reduction(node: Node) -> bool:
    """True for a reduction that has one result per row."""
    return isinstance(node, Scalar) and is_reduction(node) and node.scope is Scope.ROW


def rows_of_tile(
    known: Mapping[Node, Any], start: int, count: int, row_length: int
) -> dict[Node, Any]:
    """The numbers of a tile's rows, of row reductions that are known for the whole tensor."""
    first, rows = (start // row_length, count // row_length) if row_length else (0, 0)
    return {n: k[first : first + rows] for n, k in known.items() if is_row_reduction(n)}


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "neg": lambda a: -a,
}


@dataclass(frozen=True, slots=True)
class ShareOf:
    """The rule k = floor(share * n)."""

    share: float

    def __call__(self, n: int) -> int:
        """k."""
        return floor_of_share(self.share, n)


def selected_count(threshold: Threshold, known: Known, population: int) -> int | ShareOf:
    """k of a cut over `population` elements, its scalars being known; for shares of what is not zero, their rule."""
    rule = threshold.attributes[0]
    if callable(rule):
        return int(rule(population))
    # Nothing flows back through a count.
    number = float(without_gradient(evaluate_scalar(threshold.inputs[1], dict(known))))
    if rule == "k":
        return int(number)
    return ShareOf(number) if rule == "nonzero" else ShareOf(number)(population)


def evaluate_scalar(node: Node, memo: dict[Node, Any]) -> Any:
    """The number of a scalar whose reductions are in `memo`, which is extended.

    Numbers are floats, float64 arrays (one per row) or torch scalars.
    """
    if node in memo:
        found = memo[node]
        if isinstance(found, ThresholdPoint):
            return found.magnitude
        # numpy's floats divide by zero as the hardware does; Python's raise.
        return np.float64(found) if type(found) is float else found
    for child in node.inputs:
        evaluate_scalar(child, memo)
    memo[node] = _compute(node, memo)
    return memo[node]


def _compute(node: Node, memo: dict[Node, Any]) -> Any:
    if node.op == "literal":
        return np.float64(node.attributes[0])
    if node.op == "cut_value":
        threshold = memo[node.inputs[0]]
        if not isinstance(threshold, ThresholdPoint):
            return threshold
        return (
            np.float64(threshold.magnitude)
            if isinstance(threshold.magnitude, float)
            else threshold.magnitude
        )
    arguments = [evaluate_scalar(child, memo) for child in node.inputs]
    with np.errstate(all="ignore"):
        if node.op == "div":
            return arguments[0] / arguments[1]
        if node.op == "apply":
            return node.attributes[0](*arguments)
        if node.op == "item":
            return arguments[0][node.attributes[0]]
        return _ARITHMETIC[node.op](*arguments)
