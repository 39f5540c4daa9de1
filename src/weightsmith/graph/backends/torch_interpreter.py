"""The value graph interpreted with torch: the reference for what every node means.

Elementwise results define what every other backend must reproduce bit for bit: multiply and add are
separate operations (never fused), and sums over a tensor are float64. Works on tiles and on whole tensors,
on any device, with gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightsmith.errors import UsageError
from weightsmith.graph.columns import Columns
from weightsmith.graph.graph import Node, Scalar, Value, walk
from weightsmith.graph.passes import (
    HISTOGRAM_BINS,
    Collect,
    CollectPart,
    Equal,
    Histogram,
    HistogramPart,
    ThresholdPoint,
    evaluate_scalar,
    rows_of_tile,
)
from weightsmith.tensors import DType

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "eq": torch.eq,
    "and": torch.logical_and,
    "or": torch.logical_or,
}
_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": torch.neg,
    "abs": torch.abs,
    "sign": torch.sign,
    # torch's own float32 square root (a vector library on CPUs) is off by a last place for one number in six.
    "sqrt": lambda x: torch.sqrt(x.double()).to(x.dtype),
    "not": torch.logical_not,
}


def torch_dtype(dtype: DType) -> torch.dtype:
    """torch's name for a dtype."""
    found: torch.dtype = getattr(torch, dtype.value)
    return found


class Interpreter:
    """Computes the values of a pass from decoded sources; common subexpressions are computed once."""

    def __init__(
        self, roots: Sequence[Node], known: Mapping[Node, Any], work: torch.dtype, rows: bool
    ) -> None:
        self._work = work
        self._rows = rows
        self._known = dict(known)
        self._canonical: dict[Node, Node] = {}
        self._order = self._merge_equal(walk(roots, known))
        self._roots = [self._canonical[root] for root in roots]
        self._last_use = self._last_uses()

    def _merge_equal(self, nodes: Sequence[Node]) -> list[Node]:
        seen: dict[Any, Node] = {}
        order = []
        for node in nodes:
            # 0.0 and -0.0 compare equal but are different numbers.
            attributes = repr(node.attributes) if node.op == "literal" else node.attributes
            key = (
                type(node),
                node.op,
                attributes,
                tuple(id(self._canonical[i]) for i in node.inputs if i in self._canonical),
            )
            if node in self._known:
                key = (node,)  # type: ignore[assignment]
            first = seen.setdefault(key, node)
            self._canonical[node] = first
            if first is node:
                order.append(node)
        return order

    def _last_uses(self) -> dict[Node, int]:
        last: dict[Node, int] = {}
        for position, node in enumerate(self._order):
            for child in node.inputs:
                if child in self._canonical:
                    last[self._canonical[child]] = position
        for root in self._roots:
            last[root] = len(self._order)
        return last

    def run(
        self, sources: Sequence[Tensor | None], start: int, count: int, row_length: int
    ) -> list[Tensor]:
        """Values of the roots for the `count` elements of a tile from flat index `start` on.

        `sources` are those elements in work precision, flat; none need be given to values that read none.
        """
        return self.run_and_keep(sources, start, count, row_length, ())[0]

    def run_and_keep(
        self,
        sources: Sequence[Tensor | None],
        start: int,
        count: int,
        row_length: int,
        kept: Sequence[Node],
    ) -> tuple[list[Tensor], list[Any]]:
        """As `run`, with the numbers of the row reductions in `kept`, one per row."""
        frame = _Frame(sources, start, count, row_length, self._work, self._rows)
        memo: dict[Node, Any] = {n: frame.laid_out(n, known) for n, known in self._known.items()}
        if self._rows:
            rows = rows_of_tile(self._known, start, count, row_length)
            memo |= {n: torch.as_tensor(k, device=frame.device)[:, None] for n, k in rows.items()}
        for position, node in enumerate(self._order):
            if node not in memo:
                memo[node] = self._compute(node, memo, frame)
            for child in node.inputs:
                canonical = self._canonical.get(child)
                if isinstance(canonical, Value) and self._last_use[canonical] == position:
                    memo.pop(canonical, None)
        numbers = [memo[self._canonical[node]].reshape(-1).cpu().numpy() for node in kept]
        return [frame.full(memo[root]) for root in self._roots], numbers

    def _compute(self, node: Node, memo: dict[Node, Any], frame: _Frame) -> Any:
        inputs = [memo[self._canonical[i]] for i in node.inputs]
        if isinstance(node, Value):
            return _value(node, inputs, frame)
        if isinstance(node, Scalar) and node.op in ("total", "dot", "peak"):
            return _row_reduction(node.op, inputs)
        memo.update(zip(node.inputs, inputs, strict=True))
        return evaluate_scalar(node, memo)


class _Frame:
    """One tile: sources, place, and layout of values ([rows, row_length] if rows matter, else flat)."""

    def __init__(
        self,
        sources: Sequence[Tensor | None],
        start: int,
        count: int,
        row_length: int,
        work: torch.dtype,
        rows: bool,
    ) -> None:
        self.start, self.count, self.work = start, count, work
        self.shape = (count // row_length if row_length else 0, row_length) if rows else (count,)
        self.device = next((s.device for s in sources if s is not None), torch.device("cpu"))
        self._sources = sources

    def source(self, index: int) -> Tensor:
        tensor = self._sources[index]
        assert tensor is not None
        return tensor.reshape(self.shape)

    def broadcast(self, number: Any, columns: Columns | None = None) -> Tensor:
        if isinstance(number, np.ndarray):
            number = torch.from_numpy(number).to(self.device)
        if columns is not None and isinstance(number, Tensor) and number.ndim:
            at = self.flat_indices()
            lines = at // columns.elements * columns.width + at % columns.width
            number = number[lines].reshape(self.shape)
        if isinstance(number, Tensor):
            return number.to(self.work)
        return torch.tensor(float(number), dtype=self.work, device=self.device)

    def laid_out(self, node: Node, known: Any) -> Any:
        """What is known from before, values of all elements (of `whole` nodes) in the layout of the tile."""
        is_full = isinstance(node, Value) and isinstance(known, Tensor)
        return known.reshape(self.shape) if is_full and known.numel() == self.count else known

    def full(self, result: Any) -> Tensor:
        tensor: Tensor = result
        return tensor.expand(self.shape).reshape(-1)

    def flat_indices(self) -> Tensor:
        return torch.arange(self.start, self.start + self.count, device=self.device)


def _value(node: Value, inputs: list[Any], frame: _Frame) -> Tensor:
    op = node.op
    if op == "source":
        return frame.source(node.attributes[0])
    if op == "broadcast":
        return frame.broadcast(inputs[0], getattr(node.inputs[0], "columns", None))
    if op in ("and", "or", "not", "where"):
        inputs[0] = inputs[0].bool() if op == "where" else inputs[0]
        return _where(*_numeric(inputs, frame, first=1)) if op == "where" else _logical(op, inputs)
    if op in _BINARY:
        return _BINARY[op](*_numeric(inputs, frame))
    if op in _UNARY:
        return _UNARY[op](*_numeric(inputs, frame))
    if op in ("exp", "log"):
        return getattr(torch, op)(_numeric(inputs, frame)[0].double()).to(frame.work)  # type: ignore[no-any-return]
    if op == "round":
        return _numeric(inputs, frame)[0].to(torch_dtype(node.attributes[0])).to(frame.work)
    if op == "uniform":
        return (
            uniform_tile(node.attributes, frame.start, frame.count, frame.device)
            .to(frame.work)
            .reshape(frame.shape)
        )
    if op == "above":
        return _above(inputs[0], inputs[1], frame)
    if op == "row_rank":
        return _row_rank(inputs[0], frame)
    raise UsageError(f"The torch backend cannot compute a {op!r} node inside a tile.")


def _where(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    if torch.is_grad_enabled() or mask.device.type != "cpu":
        return torch.where(mask, a, b)
    # torch's own selection costs ten times as much as these operations on the bits.
    words = torch.int64 if a.dtype is torch.float64 else torch.int32
    chosen = mask.view(torch.uint8).to(words).neg_()
    fallback = b.contiguous().view(words)
    return (
        (a.contiguous().view(words) ^ fallback)
        .bitwise_and(chosen)
        .bitwise_xor(fallback)
        .view(a.dtype)
    )


def _numeric(inputs: list[Any], frame: _Frame, first: int = 0) -> list[Tensor]:
    return [
        t.to(frame.work) if i >= first and t.dtype is torch.bool else t
        for i, t in enumerate(inputs)
    ]


def _logical(op: str, inputs: list[Tensor]) -> Tensor:
    masks = [m.bool() for m in inputs]
    return _UNARY[op](*masks) if op == "not" else _BINARY[op](*masks)


def _row_reduction(op: str, inputs: list[Tensor]) -> Tensor:
    x = inputs[0].double()
    if op == "dot":
        x = x * inputs[1].double()
    if op == "peak":
        if x.shape[-1] == 0:
            return x.new_full((*x.shape[:-1], 1), -torch.inf)
        return x.amax(dim=-1, keepdim=True)
    return x.sum(dim=-1, keepdim=True)


def magnitude_keys(x: Tensor) -> Tensor:
    """Bits of |x| as an integer; they order like the magnitudes."""
    x = x.detach()
    if x.dtype is torch.float64:
        return x.contiguous().view(torch.int64) & 0x7FFFFFFFFFFFFFFF
    return x.contiguous().view(torch.int32) & 0x7FFFFFFF


def _above(x: Tensor, threshold: ThresholdPoint, frame: _Frame) -> Tensor:
    keys = magnitude_keys(frame.full(x))
    if threshold.last_rank is not None:
        mask = keys > threshold.key
        tied = torch.nonzero(keys == threshold.key).flatten()
        ranks = tie_ranks(threshold.rank_key, tied + frame.start)
        equal = (ranks == threshold.last_rank) & (tied <= threshold.last_index - frame.start)
        mask[tied] = (ranks < threshold.last_rank) | equal
    elif threshold.last_index >= frame.start + frame.count - 1:
        mask = keys >= threshold.key
    elif threshold.last_index < frame.start:
        mask = keys > threshold.key
    else:
        mask = (keys > threshold.key) | (
            (keys == threshold.key) & (frame.flat_indices() <= threshold.last_index)
        )
    return mask.reshape(frame.shape)


def _row_rank(x: Tensor, frame: _Frame) -> Tensor:
    order = torch.argsort(magnitude_keys(x.expand(frame.shape)), dim=-1, stable=True)
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places).to(frame.work)


def tie_ranks(key: int, indices: Tensor) -> Tensor:
    """Ranks of elements at flat indices (see `weightsmith.graph.equal_magnitudes`)."""
    x = indices + key
    x.bitwise_xor_(_shifted_wide(x, 30)).mul_(_signed_wide(0xBF58476D1CE4E5B9))
    x.bitwise_xor_(_shifted_wide(x, 27)).mul_(_signed_wide(0x94D049BB133111EB))
    return _shifted_wide(x.bitwise_xor_(_shifted_wide(x, 31)), 1)


def _signed_wide(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


def _shifted_wide(x: Tensor, bits: int) -> Tensor:
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def uniform_tile(key: tuple[Any, ...], start: int, count: int, device: torch.device) -> Tensor:
    """float32 uniforms of a stream (see `weightsmith.graph.random`), indices [start, start + count)."""
    border = (start // _WORD + 1) * _WORD
    if start + count > border:
        parts = [(start, border - start), (border, start + count - border)]
        return torch.cat([uniform_tile(key, first, size, device) for first, size in parts])
    x = torch.arange(count, dtype=torch.int32, device=device).add_(_signed(start + key[0]))
    x.bitwise_xor_(_shifted(x, 17)).mul_(_signed(0xED5AD4BB))
    x.bitwise_xor_(_shifted(x, 11)).add_(_signed(key[1] + (start // _WORD) * 0x9E3779B9))
    x.mul_(_signed(0xAC4C1B51)).bitwise_xor_(_shifted(x, 15)).mul_(_signed(0x31848BAB))
    x.bitwise_xor_(_shifted(x, 14))
    return _shifted(x, 8).float().mul_(2.0**-24)


_WORD = 1 << 32


def _signed(word: int) -> int:
    word &= 0xFFFFFFFF
    return word - _WORD if word >= 1 << 31 else word


def _shifted(x: Tensor, bits: int) -> Tensor:
    return (x >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def reduce_piece(op: str, values: Sequence[Tensor]) -> Tensor:
    """float64 total, dot product or maximum of one piece (or of a whole tensor)."""
    x = values[0].double()
    if op == "dot":
        return (x * values[1].double()).sum()
    if op == "peak":
        return x.max() if x.numel() else x.new_tensor(-torch.inf)
    return x.sum()


def reduce_columns(
    op: str, values: Sequence[Tensor], columns: Columns, bounds: Sequence[int]
) -> Tensor:
    """float64 totals, dot products or maxima of the columns: a row for each run between two bounds (flat indices)."""
    x = values[0].double()
    if op == "dot":
        x = x * values[1].double()
    if columns.width == 1:
        # Neighbours of one length together, because rows can be many.
        alike = [
            list(group) for _, group in groupby(_spans(bounds), lambda span: span[1] - span[0])
        ]
        parts = [x[spans[0][0] : spans[-1][1]].reshape(len(spans), -1) for spans in alike]
        return torch.cat([_over(op, part, 1) for part in parts])[:, None]
    runs = []
    for (first, last), (a, b) in zip(pairwise(bounds), _spans(bounds), strict=True):
        margins = (first % columns.width, -last % columns.width)
        padded = torch.nn.functional.pad(x[a:b], margins, value=-torch.inf if op == "peak" else 0.0)
        runs.append(_over(op, padded.reshape(-1, columns.width), 0))
    return torch.stack(runs)


def _spans(bounds: Sequence[int]) -> list[tuple[int, int]]:
    return [(a - bounds[0], b - bounds[0]) for a, b in pairwise(bounds)]


def _over(op: str, x: Tensor, axis: int) -> Tensor:
    return x.amax(dim=axis) if op == "peak" else x.sum(dim=axis)


def column_numbers(op: str, values: Sequence[Tensor], columns: Columns) -> Tensor:
    """As `reduce_columns`, of a whole tensor: one number for each column, matrix after matrix, with gradients."""
    x = values[0].double()
    if op == "dot":
        x = x * values[1].double()
    matrices = x.reshape(-1, columns.rows, columns.width)
    return _over(op, matrices, 1).reshape(-1)


def nonfinite(x: Tensor, start: int) -> tuple[int, int]:
    """How many NaN and infinite elements, and the flat index of the first (-1 for none)."""
    # A finite sum proves finite terms, and costs a fortieth of looking at each.
    if bool(torch.isfinite(x.sum())):
        return (0, -1)
    bad = torch.nonzero(~torch.isfinite(x)).flatten()
    return (bad.numel(), start + int(bad[0])) if bad.numel() else (0, -1)


def count_keys(keys: Tensor, request: Histogram) -> HistogramPart:
    """Answer a `Histogram` request."""
    bins = (keys - request.low) >> request.shift
    above = int((bins >= HISTOGRAM_BINS).sum())
    counts = torch.bincount(bins[(bins >= 0) & (bins < HISTOGRAM_BINS)], minlength=HISTOGRAM_BINS)
    return HistogramPart(counts.cpu().numpy().astype(np.uint64), above)


def collect_keys(keys: Tensor, request: Collect, start: int) -> CollectPart:
    """Answer a `Collect` request for a tile that begins at flat index `start`."""
    # torch wraps a bound that the dtype of the keys cannot hold.
    high = min(request.high, torch.iinfo(keys.dtype).max)
    on_host = keys.cpu().numpy()
    at = np.flatnonzero((keys >= request.low).logical_and_(keys <= high).cpu().numpy())
    inside = len(at)
    at = at[: request.limit]
    above = int((keys > high).sum())
    nonzero = int(torch.count_nonzero(keys))
    return CollectPart(
        on_host[at].astype(np.uint64), at.astype(np.int64) + start, inside, above, nonzero
    )


def collect_equal(keys: Tensor, request: Equal, start: int) -> CollectPart:
    """Answer an `Equal` request for a tile that begins at flat index `start`."""
    indices = torch.nonzero(keys == request.key).flatten() + start
    ranks = tie_ranks(request.rank_key, indices)
    at = torch.nonzero((ranks >= request.low) & (ranks <= request.high)).flatten()
    inside, below = at.numel(), int((ranks < request.low).sum())
    at = at[: request.limit]
    larger = int((keys > request.key).sum())
    return CollectPart(
        ranks[at].cpu().numpy().astype(np.uint64),
        indices[at].cpu().numpy(),
        inside,
        below,
        0,
        larger,
        indices.numel(),
    )
