"""From the graph of a pass to a listing from which a program is assembled.

A model has thousands of tensors and few different graphs. So `list_pass` writes the graph down as a flat, hashable
list of entries in which equal subexpressions are one and every number that differs from tensor to tensor
(coefficients, keys, cuts) is a place in a table; `instructions.assemble` turns such a list into code, once. Equal
graphs are one object (`equal_graphs`), so the list is remembered too, and only the tables are filled anew.

A pass with arithmetic on row scalars becomes several programs: each computes the row reductions that the next one
needs, Python evaluates the arithmetic on rows between them, and values needed again are computed again. A row
reduction that stands in the elements as it is needs no program of its own.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import UsageError
from weightsmith.graph.columns import Columns, column_view
from weightsmith.graph.graph import Node, Scalar, Scope, Threshold, Value
from weightsmith.graph.passes import (
    Collect,
    Equal,
    Histogram,
    PassSpec,
    Request,
    ThresholdPoint,
    evaluate_scalar,
    is_row_reduction,
)
from weightsmith.tensors import DType

BINARY = frozenset(
    ("add", "sub", "mul", "div", "minimum", "maximum", "lt", "le", "gt", "ge", "eq", "and", "or")
)
MASKS = frozenset(("lt", "le", "gt", "ge", "eq", "and", "or", "not", "above"))
UNARY = frozenset(("neg", "abs", "sign", "sqrt", "exp", "log", "not"))
ROW_REDUCTIONS = {"total": "row_total", "dot": "row_dot", "peak": "row_peak"}
COLUMN_REDUCTIONS = {"total": "column_total", "dot": "column_dot", "peak": "column_peak"}
_WIDEN_FROM = 3  # dot products in one pass
_REQUEST_INTEGERS: dict[type[Any], int] = {Histogram: 2, Collect: 3, Equal: 5}
_LISTINGS = 256  # that are remembered

# One value of a pass: operation, positions of its inputs, and a place in a table or a dtype's name. A plain tuple,
# because thousands of tensors are listed.
Entry = tuple[str, tuple[int, ...], Any]


class PassSink(NamedTuple):
    """What a pass hands out: an output, all of which come first, or a reduction of entries.

    `request` is a place among the integers.
    """

    op: str
    inputs: tuple[int, ...]
    request: int = -1


@dataclass(slots=True)
class PassListing:
    """A pass written down: entries, sinks and dtypes are its structure, the rest is this tensor's own.

    Reductions that ask for the same number have one sink: `sink_of` has its place for each reduction of the pass.
    """

    sources: tuple[DType, ...]
    is_double: bool
    entries: list[Entry] = field(default_factory=list)
    sinks: list[PassSink] = field(default_factory=list)
    sink_of: list[int] = field(default_factory=list)
    numbers: list[float] = field(default_factory=list)
    integers: list[int] = field(default_factory=list)
    arrays: list[NDArray[Any]] = field(default_factory=list)
    column_tables: list[NDArray[Any]] = field(default_factory=list)
    row_scalars: list[Scalar] = field(default_factory=list)
    row_reductions: list[tuple[Scalar, int]] = field(default_factory=list)
    memo: dict[Node, Any] = field(default_factory=dict)
    has_rows: bool = False

    @property
    def structure(self) -> tuple[Any, ...]:
        """What `assemble` needs: equal for tensors that differ in numbers only."""
        return (
            tuple(self.entries),
            tuple(self.sinks),
            self.sources,
            self.is_double,
            len(self.arrays),
        )


def list_pass(spec: PassSpec) -> PassListing:
    """Write a pass down; raises UsageError for what a tile cannot compute."""
    requests = [request for _, request in spec.reductions]
    blank = _blank_listing(
        spec.shape,
        spec.source_dtypes,
        spec.wide,
        spec.outputs,
        tuple(reduction for reduction, _ in spec.reductions),
        tuple((type(request), requests.index(request)) for request in requests),
        frozenset(spec.known),
        frozenset(n for n in spec.known if isinstance(n, Value) and _is_array(spec.known[n])),
    )
    return blank.filled(spec)


@dataclass(frozen=True, slots=True)
class _Blank:
    """A listing without the numbers that the results of earlier passes and the requests give.

    For each place that is open among its numbers, integers and arrays, where what belongs there comes from.
    """

    listing: PassListing
    numbers: tuple[tuple[int, Node], ...]
    thresholds: tuple[tuple[int, Threshold], ...]
    requests: tuple[tuple[int, int], ...]
    arrays: tuple[Node, ...]
    columns: tuple[Scalar, ...]

    def filled(self, spec: PassSpec) -> PassListing:
        """The listing of a pass."""
        memo = dict(spec.known)
        is_double = self.listing.is_double
        limit = (1 << 63 if is_double else 1 << 31) - 1
        numbers, integers = list(self.listing.numbers), list(self.listing.integers)
        for place, node in self.numbers:
            found: Any = memo[node] if isinstance(node, Value) else evaluate_scalar(node, memo)
            numbers[place] = float(found)
        for place, threshold in self.thresholds:
            point = spec.known[threshold]
            if not isinstance(point, ThresholdPoint):
                raise UsageError(_NOT_MEASURED)
            rank = -1 if point.last_rank is None else point.last_rank
            threshold_integers = (min(point.key, limit), point.last_index, rank, point.rank_key)
            integers[place : place + 4] = threshold_integers
        for place, ordinal in self.requests:
            asked = _request_integers(spec.reductions[ordinal][1], limit)
            integers[place : place + len(asked)] = asked
        return replace(
            self.listing,
            numbers=numbers,
            integers=integers,
            arrays=[_array(spec.known[node], is_double) for node in self.arrays],
            column_tables=[self._column_table(node, memo, spec) for node in self.columns],
            memo=memo,
        )

    def _column_table(self, node: Scalar, memo: dict[Node, Any], spec: PassSpec) -> NDArray[Any]:
        """One number per column; a function may have given one for all of them."""
        numbers = evaluate_scalar(node, memo)
        assert node.columns is not None
        count = node.columns.count(math.prod(spec.shape))
        if np.ndim(numbers) and np.size(numbers) != count:
            raise UsageError(
                f"A function of numbers per column gave {np.size(numbers)} of them for {count} columns; "
                "it must give one for each, or one for all."
            )
        flat = np.reshape(numbers, -1)
        return _array(np.broadcast_to(flat, (count,)), self.listing.is_double)


_NOT_MEASURED = "A selection's cut is not yet known; measure it in an earlier pass."


def _array(numbers: Any, is_double: bool) -> NDArray[Any]:
    work = np.float64 if is_double else np.float32
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(numbers, dtype=work).reshape(-1)


def _is_array(known: Any) -> bool:
    return np.ndim(known) > 0


def _request_integers(request: Request | None, limit: int) -> tuple[int, ...]:
    assert request is not None
    if isinstance(request, Equal):
        return request.key, request.low, request.high, request.limit, request.rank_key
    low = request.low if request.low <= limit else -1
    if isinstance(request, Histogram):
        return low, request.shift
    return low, min(request.high, limit), request.limit


@functools.lru_cache(maxsize=_LISTINGS)
def _blank_listing(
    shape: tuple[int, ...],
    source_dtypes: tuple[DType, ...],
    wide: bool,
    outputs: tuple[tuple[Value, DType], ...],
    reductions: tuple[Scalar | Threshold, ...],
    requests: tuple[tuple[type[Any], int], ...],
    known: frozenset[Node],
    known_arrays: frozenset[Node],
) -> _Blank:
    """The listing of all passes that differ in what is known and asked only; equal requests have one number."""
    asked = tuple((r, None) for r in reductions)
    spec = PassSpec(shape, source_dtypes, outputs, asked, dict.fromkeys(known), wide)
    return _Lister(spec, requests, known_arrays).result()


class _Lister:
    """Walks the graph of one pass, inputs before users."""

    def __init__(
        self,
        spec: PassSpec,
        requests: Sequence[tuple[type[Any], int]],
        known_arrays: frozenset[Node],
    ) -> None:
        for dtype in spec.source_dtypes:
            if not dtype.is_float:
                raise UsageError(
                    f"The native backend computes with floating-point tensors only, not with {dtype}."
                )
        self._spec = spec
        self._known = spec.known
        is_double = spec.work is DType.FLOAT64
        self._listing = PassListing(spec.source_dtypes, is_double)
        self._requests = requests
        self._known_arrays = known_arrays
        self._open_numbers: list[tuple[int, Node]] = []
        self._open_thresholds: list[tuple[int, Threshold]] = []
        self._open_requests: list[tuple[int, int]] = []
        self._array_nodes: list[Node] = []
        self._columns: list[Scalar] = []
        dots = sum(r.op == "dot" and r.scope is not Scope.COLUMN for r, _ in spec.reductions)
        self._widens = dots >= _WIDEN_FROM and not is_double
        self._places: dict[Any, int] = {}
        self._position: dict[Node, int] = {}
        self._row_inputs: dict[Node, tuple[int, ...]] = {}

    def result(self) -> _Blank:
        spec, listing = self._spec, self._listing
        for value, dtype in spec.outputs:
            if not dtype.is_float:
                raise UsageError(
                    f"The native backend writes floating-point tensors only, not {dtype}."
                )
            self._visit(value)
            listing.sinks.append(PassSink(f"store_{dtype.value}", self._registers(value)))
        known: dict[PassSink, int] = {}
        for (reduction, _), (kind, ordinal) in zip(spec.reductions, self._requests, strict=True):
            for node in (
                reduction.inputs[:1] if isinstance(reduction, Threshold) else reduction.inputs
            ):
                self._visit(node)
            sink = self._reduction(reduction, kind, ordinal)
            place = known.get(sink)
            if place is None:
                place = known[sink] = len(listing.sinks)
                listing.sinks.append(sink)
            listing.sink_of.append(place)
        return _Blank(
            listing,
            tuple(self._open_numbers),
            tuple(self._open_thresholds),
            tuple(self._open_requests),
            tuple(self._array_nodes),
            tuple(self._columns),
        )

    def _visit(self, root: Node) -> None:
        """List a value after everything it is computed from; a stack, because graphs of many inputs are deep."""
        position = self._position
        stack = [root]
        while stack:
            node = stack[-1]
            pending = (
                () if node in position else [i for i in self._below(node) if i not in position]
            )
            if pending:
                stack.extend(reversed(pending))
                continue
            if node not in position:
                position[node] = (
                    self._value(node) if isinstance(node, Value) else self._row_scalar(node)
                )
            stack.pop()

    def _below(self, node: Node) -> Sequence[Node]:
        """The inputs that must be listed first: values, and scalars of which every row has its own."""
        if node in self._known:
            return ()
        if node.op == "above":
            return node.inputs[:1]
        if node.op == "broadcast" or not isinstance(node, Value):
            return [
                i
                for i in node.inputs
                if isinstance(i, Value) or (_is_per_row(i) and i not in self._known)
            ]
        return node.inputs

    def _entry(self, op: str, inputs: tuple[int, ...] = (), detail: Any = None) -> int:
        entry = (op, inputs, detail)
        place = self._places.get(entry)
        if place is None:
            entries = self._listing.entries
            place = self._places[entry] = len(entries)
            entries.append(entry)
        return place

    def _number(self, number: float) -> int:
        key = struct.pack("<d", number)  # 0.0 and -0.0 are equal but not the same
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = len(self._listing.numbers)
            self._listing.numbers.append(number)
        return self._entry("number", (), place)

    def _open_number(self, node: Node) -> int:
        """A number that is known when the pass is run."""
        place = self._places.get(node)
        if place is None:
            place = self._places[node] = len(self._listing.numbers)
            self._listing.numbers.append(math.nan)
            self._open_numbers.append((place, node))
        return self._entry("number", (), place)

    def _table(self, owner: Any, *integers: int) -> int:
        place = self._places.get(owner)
        if place is None:
            place = self._places[owner] = len(self._listing.integers)
            self._listing.integers.extend(integers)
        return place

    def _registers(self, *nodes: Node) -> tuple[int, ...]:
        """Positions of inputs that must lie in registers; a number is spread over one."""
        return tuple(self._spread(self._position[node]) for node in nodes)

    def _spread(self, position: int) -> int:
        op, _, detail = self._listing.entries[position]
        return self._entry("fill", (), detail) if op == "number" else position

    def _magnitude(self, node: Node) -> int:
        """Position of a value whose magnitudes alone matter: a change of sign below it is skipped."""
        (position,) = self._registers(node)
        while self._listing.entries[position][0] in ("abs", "neg"):
            ((position,),) = self._listing.entries[position][1:2]
        return position

    def _value(self, node: Value) -> int:
        if node in self._known:
            return self._known_value(node)
        op = node.op
        if op == "source":
            return self._entry("source", (), node.attributes[0])
        if op == "broadcast":
            return self._broadcast(node.inputs[0])
        if op in BINARY:
            return self._binary(op, *(self._position[i] for i in node.inputs))
        if op in UNARY:
            return self._entry(op, self._registers(*node.inputs))
        if op == "where":
            return self._where(*(self._position[i] for i in node.inputs))
        if op == "uniform":
            return self._entry(op, (), self._table(("uniform", node.attributes), *node.attributes))
        if op == "above":
            return self._above(node)
        if op == "row_rank":
            self._listing.has_rows = True
            return self._entry(op, (self._magnitude(node.inputs[0]),))
        if op == "round":
            return self._round(node)
        raise UsageError(f"The native backend cannot compute a {op!r} node inside a tile.")

    def _binary(self, op: str, a: int, b: int) -> int:
        entries = self._listing.entries
        if entries[a][0] == "number" and entries[b][0] == "number":
            a = self._spread(a)
        return self._entry(op, (a, b))

    def _where(self, mask: int, a: int, b: int) -> int:
        """A choice; one between 1 and 0 is the mask itself."""
        is_mask = self._listing.entries[mask][0] in MASKS
        if is_mask and self._is_number(a, 1.0) and self._is_number(b, 0.0):
            return mask
        return self._entry("where", (self._spread(mask), a, b))

    def _is_number(self, position: int, wanted: float) -> bool:
        op, _, place = self._listing.entries[position]
        if op != "number":
            return False
        found = self._listing.numbers[place]
        return found == wanted and math.copysign(1.0, found) == 1.0

    def _broadcast(self, scalar: Node) -> int:
        assert isinstance(scalar, Scalar)
        if scalar.columns is not None:
            return self._column_table(scalar, scalar.columns)
        if not _is_per_row(scalar):
            if scalar.scope is not Scope.LITERAL or scalar in self._known:
                return self._open_number(scalar)
            return self._number(float(evaluate_scalar(scalar, self._listing.memo)))
        self._listing.has_rows = True
        place = self._places.get(scalar)
        if place is None:
            place = self._places[scalar] = len(self._listing.row_scalars)
            self._listing.row_scalars.append(scalar)
        is_result = is_row_reduction(scalar) and scalar not in self._known
        inputs = self._row_inputs.get(scalar, ())
        return self._entry("row_result" if is_result else "row", inputs, place)

    def _column_table(self, scalar: Scalar, columns: Columns) -> int:
        ordinal = self._places.get(scalar)
        if ordinal is None:
            ordinal = self._places[scalar] = len(self._columns)
            self._columns.append(scalar)
        return self._entry("columns", (), (ordinal, self._view(columns)))

    def _view(self, columns: Columns) -> int:
        return self._table(("columns", columns), *column_view(columns, self._spec.shape))

    def _round(self, node: Value) -> int:
        (position,) = self._registers(*node.inputs)
        dtype: DType = node.attributes[0]
        if dtype is DType.FLOAT64 or (dtype is DType.FLOAT32 and not self._listing.is_double):
            return position
        return self._entry("round", (position,), dtype.value)

    def _above(self, node: Value) -> int:
        x, threshold = node.inputs
        if not isinstance(threshold, Threshold) or threshold not in self._known:
            raise UsageError(_NOT_MEASURED)
        if threshold not in self._places:
            self._open_thresholds.append((len(self._listing.integers), threshold))
        place = self._table(threshold, 0, 0, 0, 0)
        return self._entry("above", (self._magnitude(x),), place)

    def _known_value(self, node: Value) -> int:
        if node not in self._known_arrays:
            return self._open_number(node)
        self._array_nodes.append(node)
        return self._entry("array", (), len(self._array_nodes) - 1)

    def _row_scalar(self, node: Node) -> int:
        op = ROW_REDUCTIONS.get(node.op)
        if op is None:
            below = [i for child in node.inputs for i in self._row_inputs.get(child, ())]
            self._row_inputs[node] = tuple(dict.fromkeys(below))
            return -1
        assert isinstance(node, Scalar)
        self._listing.has_rows = True
        position = self._entry(op, self._registers(*node.inputs))
        self._row_inputs[node] = (position,)
        self._listing.row_reductions.append((node, position))
        return position

    def _reduction(self, reduction: Scalar | Threshold, kind: type[Any], ordinal: int) -> PassSink:
        if kind in _REQUEST_INTEGERS:
            asked = (self._magnitude(reduction.inputs[0]),)
            owner = ("request", ordinal)
            if owner not in self._places:
                self._open_requests.append((len(self._listing.integers), ordinal))
            blanks = (0,) * _REQUEST_INTEGERS[kind]
            return PassSink(kind.__name__.lower(), asked, self._table(owner, *blanks))
        if isinstance(reduction, Threshold):
            raise UsageError(
                "A cut is measured by a histogram or collect request; the pass has neither."
            )
        inputs = self._registers(*reduction.inputs)
        if reduction.columns is not None:
            return PassSink(COLUMN_REDUCTIONS[reduction.op], inputs, self._view(reduction.columns))
        if reduction.op == "dot" and self._widens:
            return PassSink("dot_wide", tuple(self._entry("widen", (i,)) for i in inputs))
        return PassSink(reduction.op, inputs)


def _is_per_row(node: Node) -> bool:
    if isinstance(node, Threshold) and node.scope is Scope.ROW:
        raise UsageError(
            "The native backend cannot select the largest elements of each row; use row_rank."
        )
    return isinstance(node, Scalar) and node.scope is Scope.ROW
