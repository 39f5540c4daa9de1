"""The value graph: what a merge computes, written down before anything is read.

A method is traced once per output tensor. It is called with lazy inputs, builds nodes with ordinary operators,
and returns one `Value`. Three kinds of node exist:

* `Value`  - one number per element of the tensor, in work precision (float32, or float64 as soon as one input
  is float64); comparisons give masks, which are values that hold 0 or 1.
* `Scalar` - one float64 number that is known only after a streamed reduction, or arithmetic on such numbers.
  Its *scope* says how many there are: one per column of a view (`columns.Columns`), per row (last axis), per tensor,
  or per model. A *free* number (`free_numbers`) is one that no pass gives: it is known when the graph is evaluated.
* `Threshold`    - an exact order statistic: the k-th largest element and its flat index, so that "the k largest, ties
  to the lower index" is one comparison and no sort.

The engine reads from the graph how often the inputs have to be streamed: once per layer of reductions, and once
more for the output. Nothing here computes; the backends do.
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

from weightsmith.errors import UsageError
from weightsmith.graph.columns import Columns
from weightsmith.graph.model_statistics import ModelStatistic
from weightsmith.graph.unknown import Unknown
from weightsmith.tensors import DType

Attributes = tuple[Any, ...]
# How many elements a cut selects: "k", k times "all" or those that are "nonzero", or a function of how many there are.
Rule = str | Callable[[int], int]


class Scope(enum.IntEnum):
    """Over what a reduction runs; the finer scope wins when scalars of two scopes meet.

    Free numbers are known before any pass. Numbers per row are known within a tile. Those per column are known after a
    pass, as one vector of the tensor.
    """

    LITERAL = 0
    FREE = 1
    MODEL = 2
    TENSOR = 3
    ROW = 4
    COLUMN = 5


# What a reduction runs over: a row or tensor, or the whole model, where it needs a name (`Site.over_model`).
Extent = Scope | ModelStatistic


class Node:
    """A node of the graph; identity is by object, equal structure is merged when a pass is compiled."""

    __slots__ = ("attributes", "inputs", "op")

    def __init__(self, op: str, inputs: tuple[Node, ...] = (), attributes: Attributes = ()) -> None:
        self.op = op
        self.inputs = inputs
        self.attributes = attributes

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.op}>"

    def with_inputs(self, inputs: tuple[Node, ...]) -> Node:
        """A copy that computes from other inputs."""
        twin = copy.copy(self)
        twin.inputs = inputs
        return twin


class Scalar(Node, Unknown):
    """A float64 number that reductions or free numbers, or arithmetic on them, will give."""

    __slots__ = ("columns", "scope")
    scope: Scope
    columns: Columns | None

    def __init__(
        self,
        op: str,
        inputs: tuple[Node, ...] = (),
        attributes: Attributes = (),
        scope: Scope | None = None,
        columns: Columns | None = None,
    ) -> None:
        super().__init__(op, inputs, attributes)
        if scope is None:
            scope = max((i.scope for i in inputs if isinstance(i, Scalar)), default=Scope.LITERAL)
            if scope is Scope.COLUMN:
                columns = _common_columns([i for i in inputs if isinstance(i, Scalar)])
        self.scope = scope
        self.columns = columns

    def __add__(self, other: Number) -> Scalar:
        return _arithmetic("add", self, other)

    def __radd__(self, other: Number) -> Scalar:
        return _arithmetic("add", other, self)

    def __sub__(self, other: Number) -> Scalar:
        return _arithmetic("sub", self, other)

    def __rsub__(self, other: Number) -> Scalar:
        return _arithmetic("sub", other, self)

    def __mul__(self, other: Number) -> Scalar:
        return _arithmetic("mul", self, other)

    def __rmul__(self, other: Number) -> Scalar:
        return _arithmetic("mul", other, self)

    def __truediv__(self, other: Number) -> Scalar:
        return _arithmetic("div", self, other)

    def __rtruediv__(self, other: Number) -> Scalar:
        return _arithmetic("div", other, self)

    def __neg__(self) -> Scalar:
        return Scalar("neg", (self,))

    def __abs__(self) -> Scalar:
        return Scalar("apply", (self,), (abs,))

    def unknown_names(self) -> frozenset[str]:
        """The names of the free numbers in it, where it is made of nothing else that has to be known."""
        if self.scope is not Scope.FREE:
            return frozenset()
        return frozenset(node.attributes[0].name for node in walk([self]) if node.op == "free")


def _arithmetic(op: str, *operands: Operand) -> Scalar:
    # The operators of values take numbers too.
    numbers = [scalar(one) for one in operands if not isinstance(one, Value)]
    return Scalar(op, tuple(numbers)) if len(numbers) == len(operands) else NotImplemented


def _common_columns(scalars: Sequence[Scalar]) -> Columns | None:
    views = {i.columns for i in scalars if i.scope is Scope.COLUMN}
    if len(views) > 1 or any(i.scope is Scope.ROW for i in scalars):
        raise UsageError(
            "Numbers per column meet numbers per row or per column of another view; combine them as values."
        )
    return views.pop()


class Value(Node):
    """One number per element. Operators are elementwise; numbers and scalars broadcast."""

    __slots__ = ("is_mask",)

    def __init__(
        self,
        op: str,
        inputs: tuple[Node, ...] = (),
        attributes: Attributes = (),
        is_mask: bool = False,
    ) -> None:
        super().__init__(op, inputs, attributes)
        self.is_mask = is_mask

    def __add__(self, other: Operand) -> Value:
        return Value("add", (self, value(other)))

    def __radd__(self, other: Operand) -> Value:
        return Value("add", (value(other), self))

    def __sub__(self, other: Operand) -> Value:
        return Value("sub", (self, value(other)))

    def __rsub__(self, other: Operand) -> Value:
        return Value("sub", (value(other), self))

    def __mul__(self, other: Operand) -> Value:
        return Value("mul", (self, value(other)))

    def __rmul__(self, other: Operand) -> Value:
        return Value("mul", (value(other), self))

    def __truediv__(self, other: Operand) -> Value:
        return Value("div", (self, value(other)))

    def __rtruediv__(self, other: Operand) -> Value:
        return Value("div", (value(other), self))

    def __neg__(self) -> Value:
        return Value("neg", (self,))

    def __abs__(self) -> Value:
        return Value("abs", (self,))

    def __lt__(self, other: Operand) -> Value:
        return Value("lt", (self, value(other)), is_mask=True)

    def __le__(self, other: Operand) -> Value:
        return Value("le", (self, value(other)), is_mask=True)

    def __gt__(self, other: Operand) -> Value:
        return Value("gt", (self, value(other)), is_mask=True)

    def __ge__(self, other: Operand) -> Value:
        return Value("ge", (self, value(other)), is_mask=True)

    def equals(self, other: Operand) -> Value:
        """Mask of the elements that equal `other` (spelled out, because `==` stays Python's identity)."""
        return Value("eq", (self, value(other)), is_mask=True)

    def __and__(self, other: Value) -> Value:
        return Value("and", (self, other), is_mask=True)

    def __or__(self, other: Value) -> Value:
        return Value("or", (self, other), is_mask=True)

    def __invert__(self) -> Value:
        return Value("not", (self,), is_mask=True)


class Threshold(Node):
    """The k-th largest magnitude of a value, with its flat index; `above` compares with it."""

    __slots__ = ("scope",)

    def __init__(self, source: Value, k: Scalar, extent: Extent, rule: Rule) -> None:
        self.scope, named = _scope_and_name(extent)
        super().__init__("largest", (source, k), (rule, *named))

    @property
    def magnitude(self) -> Scalar:
        """The k-th largest magnitude itself (+inf for k = 0)."""
        return Scalar("cut_value", (self,), scope=self.scope)


Number = int | float | Scalar
Operand = Value | Scalar | int | float


def scalar(number: Number) -> Scalar:
    """Wrap a plain number as a literal scalar."""
    if isinstance(number, Scalar):
        return number
    return Scalar("literal", (), (float(number),), scope=Scope.LITERAL)


def value(operand: Operand) -> Value:
    """Wrap a number or scalar as a value that is the same for every element (of the row, tensor or model)."""
    if isinstance(operand, Value):
        return operand
    return Value("broadcast", (scalar(operand),))


def source(index: int) -> Value:
    """The `index`-th input tensor of the output that is being traced."""
    return Value("source", (), (index,))


# Elementwise functions ------------------------------------------------------------------------------------------


def sign(x: Value) -> Value:
    """-1, 0 or +1 per element; 0 for NaN, as torch has it."""
    return Value("sign", (x,))


def sqrt(x: Value) -> Value:
    """Elementwise square root."""
    return Value("sqrt", (x,))


def exp(x: Value) -> Value:
    """Elementwise exponential, computed in float64 and rounded once so that every backend agrees."""
    return Value("exp", (x,))


def log(x: Value) -> Value:
    """Elementwise natural logarithm, computed in float64 and rounded once."""
    return Value("log", (x,))


def rounded(x: Value, dtype: DType) -> Value:
    """`x` rounded to a narrower float dtype and widened again (what an early cast to that dtype does to it)."""
    return Value("round", (x,), (dtype,))


def minimum(a: Operand, b: Operand) -> Value:
    """Elementwise minimum; NaN wins."""
    return Value("minimum", (value(a), value(b)))


def maximum(a: Operand, b: Operand) -> Value:
    """Elementwise maximum; NaN wins."""
    return Value("maximum", (value(a), value(b)))


def clamp(x: Value, low: Operand, high: Operand) -> Value:
    """Elementwise min(max(x, low), high)."""
    return minimum(maximum(x, low), high)


def where(mask: Value, a: Operand, b: Operand) -> Value:
    """`a` where the mask holds, else `b`."""
    return Value("where", (mask, value(a), value(b)))


def add_all(values: Iterable[Value]) -> Value:
    """Sum from left to right, so that the order of rounding is fixed."""
    first, *rest = values
    for other in rest:
        first = first + other
    return first


def linear_combination(values: Sequence[Value], coefficients: Sequence[Number]) -> Value:
    """sum_i coefficients_i * values_i, from left to right; coefficients are rounded to work precision once."""
    return add_all([v * c for v, c in zip(values, coefficients, strict=True)])


def uniform(key: tuple[int, int]) -> Value:
    """Uniform numbers in [0, 1) from a counter-based generator: element i of a stream depends on (key, i) alone.

    `key` is two 32-bit words (`random.stream_key` derives them from seed, model and tensor name).
    Numbers are multiples of 2^-24, so `uniform(key) < p` holds with probability p up to 2^-24.
    """
    return Value("uniform", (), key)


def above(x: Value, threshold: Threshold) -> Value:
    """Mask of what `threshold` selected: |x| above the k-th magnitude, or equal at no higher flat index."""
    return Value("above", (x, threshold), is_mask=True)


def row_rank(x: Value) -> Value:
    """Rank of each element within its row (last axis), 0 for the smallest; equal elements rank by index."""
    return Value("row_rank", (x,))


# Reductions -----------------------------------------------------------------------------------------------------


def total(x: Value, extent: Extent = Scope.TENSOR) -> Scalar:
    """Sum over row, tensor or model, in float64."""
    return _reduction("total", (x,), extent)


def dot(x: Value, y: Value, extent: Extent = Scope.TENSOR) -> Scalar:
    """Sum of products, products and sum in float64."""
    return _reduction("dot", (x, y), extent)


def norm(x: Value, extent: Extent = Scope.TENSOR) -> Scalar:
    """Euclidean (Frobenius) norm."""
    return apply(_sqrt, dot(x, x, extent))


def count(mask: Value, extent: Extent = Scope.TENSOR) -> Scalar:
    """How many elements a mask selects (exact)."""
    return _reduction("total", (mask,), extent)


def peak(x: Value, extent: Extent = Scope.TENSOR) -> Scalar:
    """The largest element; -inf over nothing."""
    return _reduction("peak", (x,), extent)


def _reduction(op: str, values: tuple[Value, ...], extent: Extent) -> Scalar:
    scope, named = _scope_and_name(extent)
    return Scalar(op, values, named, scope)


def _scope_and_name(extent: Extent) -> tuple[Scope, tuple[ModelStatistic, ...]]:
    if isinstance(extent, ModelStatistic):
        return Scope.MODEL, (extent,)
    if extent is Scope.MODEL:
        raise UsageError(
            "A reduction over the model needs a name, by which those of its tensors belong together; reduce over "
            "`site.over_model(NAME)` instead of Scope.MODEL."
        )
    return extent, ()


def part(extent: Extent, name: str) -> Extent:
    """The extent of one of several reductions of a function; over the model it needs a name of its own."""
    return extent.part(name) if isinstance(extent, ModelStatistic) else extent


def statistic_of(node: Node) -> ModelStatistic | None:
    """The name of a reduction over the model, None for any other node."""
    for attribute in node.attributes:
        if isinstance(attribute, ModelStatistic):
            return attribute
    return None


def adds_to(reduction: Node) -> bool:
    """Whether the tensor that a reduction was traced for is among those that it runs over."""
    statistic = statistic_of(reduction)
    return statistic is None or statistic.counts


def largest(x: Value, k: Number | Callable[[int], int], extent: Extent = Scope.TENSOR) -> Threshold:
    """The cut that selects exactly the k elements with the largest magnitude (none for k <= 0).

    Exact for every input: found from streamed histograms of the bit patterns, never from a sort.
    Equal magnitudes are taken in the order of their flat index; over the model, in that of `order.tie_ranks`. Zeros are
    never selected, so fewer than k elements are selected where fewer are
    nonzero. `k` may be a function (of a module, or a frozen dataclass) of the number of elements in the extent.
    """
    return Threshold(x, scalar(0.0 if callable(k) else k), extent, k if callable(k) else "k")


def largest_share(
    x: Value, share: Number, extent: Extent = Scope.TENSOR, of: str = "all"
) -> Threshold:
    """As `largest` with k = floor(share * N), N being how many elements of the extent there are, or are "nonzero"."""
    return Threshold(x, scalar(share), extent, of)


def apply(function: Callable[..., Any], *arguments: Number) -> Scalar:
    """A small function of scalars, run between two passes.

    It is called with floats (or float64 arrays with one number per row, or torch scalars when
    gradients are wanted), so it uses the functions of `weightsmith.graph.scalars` instead of
    `math`.
    """
    return Scalar("apply", tuple(scalar(a) for a in arguments), (function,))


def solve(
    function: Callable[..., Sequence[Any]], arguments: Sequence[Number], outputs: int
) -> tuple[Scalar, ...]:
    """As `apply`, for a function that returns `outputs` numbers (a tiny solver on a Gram matrix, say)."""
    solved = Scalar("apply", tuple(scalar(a) for a in arguments), (function,))
    return tuple(Scalar("item", (solved,), (i,)) for i in range(outputs))


def _sqrt(x: Any) -> Any:
    from weightsmith.graph.scalars import sqrt as scalar_sqrt

    return scalar_sqrt(x)


def whole(function: Callable[..., Any], *inputs: Value, attributes: Attributes = ()) -> Value:
    """A matrix method: `function(linalg, *matrices)` sees every input as one whole array of the tensor's shape.

    `linalg` is the backend's array namespace (numpy, or torch on the engine's device); the function
    returns an array of the same shape. Arrays are float32, or float64 for float64 inputs. An input that is made of
    statistics of another shape alone (Gram matrices) is seen in that shape.
    """
    return Value("whole", inputs, (function, *attributes))


def whole_parts(function: Callable[..., Sequence[Any]], *inputs: Value, parts: int) -> list[Value]:
    """As `whole`, for a function that returns `parts` arrays, each of the tensor's shape."""
    node = Value("whole", inputs, (function,))
    return [Value("part", (node,), (i,)) for i in range(parts)]


REDUCTIONS = frozenset({"total", "dot", "peak", "largest"})


def is_reduction(node: Node) -> bool:
    """True for nodes that need the tensor to be streamed before they are known."""
    return node.op in REDUCTIONS and isinstance(node, (Scalar, Threshold))


def walk(roots: Iterable[Node], known: Container[Node] = ()) -> list[Node]:
    """Every node reachable from the roots, inputs before users, each once.

    Known nodes are listed, but not what they were computed from.
    """
    order: list[Node] = []
    seen: set[Node] = set()
    stack: list[Node | None] = [*reversed(list(roots))]
    while stack:
        node = stack.pop()
        if node is None:  # everything below the next one is listed
            finished = stack.pop()
            assert finished is not None
            order.append(finished)
        elif node not in seen:
            seen.add(node)
            if not node.inputs or node in known:
                order.append(node)
            else:
                stack += (node, None, *node.inputs[::-1])
    return order
