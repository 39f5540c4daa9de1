"""The reference backend: the graph interpreted with torch, on tiles or whole tensors, on any device, with gradients.

Elementwise results define what every other backend must reproduce bit for bit: multiply and add are separate operations
(never fused), sums over a tensor are float64, and the output is rounded once.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightsmith.errors import UsageError
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.graph import Cut, Node, Scalar, Scope, Value
from weightsmith.tensors.order import Selection, local_cut
from weightsmith.tensors.passes import (
    HISTOGRAM_BINS,
    Collect,
    CollectPart,
    CutPoint,
    Histogram,
    HistogramPart,
    PassSpec,
    Request,
    TileResult,
    evaluate_scalar,
    has_row_nodes,
    pass_roots,
    reduction_levels,
    walk_pending,
    work_dtype,
)
from weightsmith.tensors.pieces import piece_elements

# Parameters of glibc's mallopt; other C libraries lack the function or ignore them.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 26

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
        self._order = self._merge_equal(walk_pending(roots, known))
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

    def run(self, sources: Sequence[Tensor | None], start: int, row_length: int) -> list[Tensor]:
        """Values of the roots for one tile; `sources` are in work precision, flat, beginning at flat index `start`."""
        memo: dict[Node, Any] = dict(self._known)
        count = next((s.numel() for s in sources if s is not None), 0)
        frame = _Frame(sources, start, count, row_length, self._work, self._rows)
        for position, node in enumerate(self._order):
            if node not in memo:
                memo[node] = self._compute(node, memo, frame)
            for child in node.inputs:
                canonical = self._canonical.get(child)
                if isinstance(canonical, Value) and self._last_use[canonical] == position:
                    memo.pop(canonical, None)
        return [frame.full(memo[root]) for root in self._roots]

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

    def broadcast(self, number: Any) -> Tensor:
        if isinstance(number, np.ndarray):
            number = torch.from_numpy(number)
        if isinstance(number, Tensor):
            return number.to(self.work)
        return torch.tensor(float(number), dtype=self.work, device=self.device)

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
        return frame.broadcast(inputs[0])
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
    return torch.where(mask, a, b)


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


def _keys(x: Tensor) -> Tensor:
    """Bits of |x| as an integer; they order like the magnitudes."""
    x = x.detach()
    if x.dtype is torch.float64:
        return x.contiguous().view(torch.int64) & 0x7FFFFFFFFFFFFFFF
    return (x.contiguous().view(torch.int32) & 0x7FFFFFFF).long()


def _above(x: Tensor, cut: CutPoint, frame: _Frame) -> Tensor:
    keys = _keys(frame.full(x))
    if cut.last_index >= frame.start + frame.count - 1:
        mask = keys >= cut.key
    elif cut.last_index < frame.start:
        mask = keys > cut.key
    else:
        mask = (keys > cut.key) | ((keys == cut.key) & (frame.flat_indices() <= cut.last_index))
    return mask.reshape(frame.shape)


def _row_rank(x: Tensor, frame: _Frame) -> Tensor:
    order = torch.argsort(_keys(x.expand(frame.shape)), dim=-1, stable=True)
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places).to(frame.work)


def uniform_tile(key: tuple[Any, ...], start: int, count: int, device: torch.device) -> Tensor:
    """float32 uniforms of a stream (see `weightsmith.tensors.random`) for flat indices [start, start + count)."""
    index = torch.arange(start, start + count, dtype=torch.int64, device=device)
    x = _wrapped((index & 0xFFFFFFFF) + key[0])
    x = _mix(x ^ _shifted(x, 17), 0xED5AD4BB)
    x = x ^ _shifted(x, 11)
    x = (
        _wrapped(x.long() + key[1] + (index >> 32) * 2654435769)
        if start + count > 1 << 32
        else x + _signed(key[1])
    )
    x = _mix(x, 0xAC4C1B51)
    x = _mix(x ^ _shifted(x, 15), 0x31848BAB)
    x = x ^ _shifted(x, 14)
    return _shifted(x, 8).float() * 2.0**-24


def _signed(word: int) -> int:
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


def _wrapped(x: Tensor) -> Tensor:
    return x.to(torch.int32)


def _mix(x: Tensor, multiplier: int) -> Tensor:
    return x * _signed(multiplier)


def _shifted(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (32 - bits)) - 1)


def decode(buffer: memoryview, dtype: DType, work: torch.dtype, device: torch.device) -> Tensor:
    """Stored bytes as a flat tensor in work precision."""
    stored = (
        torch.frombuffer(buffer, dtype=torch_dtype(dtype))
        if len(buffer)
        else torch.empty(0, dtype=work)
    )
    return stored.to(device).to(work)


class TorchPass:
    """A pass over one tensor, run tile by tile."""

    def __init__(self, spec: PassSpec, device: torch.device) -> None:
        self._spec = spec
        self._device = device
        self._work_name = work_dtype(spec.source_dtypes)
        self._work = torch_dtype(self._work_name)
        self._piece = piece_elements(spec.shape)
        roots = pass_roots(spec)
        self._interpreter = Interpreter(
            roots, spec.known, self._work, has_row_nodes(roots, spec.known)
        )

    def run(
        self, buffers: Sequence[memoryview | None], start: int, count: int, out: memoryview | None
    ) -> TileResult:
        """Compute one tile (see `TilePass.run`)."""
        sources = [
            None if b is None else decode(b, d, self._work, self._device)
            for b, d in zip(buffers, self._spec.source_dtypes, strict=True)
        ]
        row_length = self._spec.shape[-1] if self._spec.shape else 1
        with torch.inference_mode():
            roots = self._interpreter.run(sources, start, row_length)
            result = TileResult([])
            if self._spec.output is not None:
                assert out is not None
                self._store(roots.pop(0), out, start, result)
                result.nonfinite_sources = [
                    (0, -1) if s is None else _nonfinite(s, start) for s in sources
                ]
            for reduction, request in self._spec.reductions:
                taken = [roots.pop(0) for _ in range(2 if reduction.op == "dot" else 1)]
                result.partials.append(self._reduce(reduction, request, taken, start))
        return result

    def _store(self, value: Tensor, out: memoryview, start: int, result: TileResult) -> None:
        assert self._spec.output_dtype is not None
        encoded = value.to(torch_dtype(self._spec.output_dtype))
        result.nonfinite_output = _nonfinite(encoded.to(self._work), start)
        if encoded.numel():
            torch.frombuffer(out, dtype=encoded.dtype).copy_(encoded)

    def _reduce(
        self, reduction: Node, request: Request | None, values: list[Tensor], start: int
    ) -> Any:
        if isinstance(request, Histogram):
            return _histogram(_keys(values[0]), request)
        if isinstance(request, Collect):
            return _collect(_keys(values[0]), request, start)
        pieces = [
            [v[at : at + self._piece] for v in values]
            for at in range(0, values[0].numel(), self._piece)
        ]
        return np.array(
            [float(reduce_piece(reduction.op, piece)) for piece in pieces], dtype=np.float64
        )


def reduce_piece(op: str, values: Sequence[Tensor]) -> Tensor:
    """float64 total, dot product or maximum of one piece (or of a whole tensor)."""
    x = values[0].double()
    if op == "dot":
        return (x * values[1].double()).sum()
    if op == "peak":
        return x.max() if x.numel() else x.new_tensor(-torch.inf)
    return x.sum()


def _nonfinite(x: Tensor, start: int) -> tuple[int, int]:
    finite = torch.isfinite(x)
    if bool(finite.all()):
        return (0, -1)
    bad = torch.nonzero(~finite).flatten()
    return (bad.numel(), start + int(bad[0]))


def _histogram(keys: Tensor, request: Histogram) -> HistogramPart:
    bins = (keys - request.low) >> request.shift
    above = int((bins >= HISTOGRAM_BINS).sum())
    counts = torch.bincount(bins[(bins >= 0) & (bins < HISTOGRAM_BINS)], minlength=HISTOGRAM_BINS)
    return HistogramPart(counts.cpu().numpy().astype(np.uint64), above)


def _collect(keys: Tensor, request: Collect, start: int) -> CollectPart:
    at = torch.nonzero((keys >= request.low) & (keys <= request.high)).flatten()
    inside = at.numel()
    at = at[: request.limit]
    above = int((keys > request.high).sum())
    return CollectPart(
        keys[at].cpu().numpy().astype(np.uint64),
        (at + start).cpu().numpy().astype(np.int64),
        inside,
        above,
    )


def prepare_process() -> None:
    """Make torch run tiles well: for a process that a run has to itself.

    Leaves parallelism to the engine's workers, because torch's own threads would change the order of sums,
    and lets the C library keep freed tiles, which otherwise go back to the system after every operation
    only to be faulted in again by the next (five times the cost of the arithmetic).
    """
    torch.set_num_threads(1)
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


class TorchBackend:
    """Backend that runs passes with torch on one device."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.name = f"torch {torch.__version__} on {self.device.type}"

    def compile(self, spec: PassSpec) -> TorchPass:
        """Prepare a pass."""
        return TorchPass(spec, self.device)

    def linalg(self) -> Any:
        """torch itself."""
        return torch


# In memory ------------------------------------------------------------------------------------------------------


def evaluate(
    output: Value, sources: Sequence[Tensor], *, work: torch.dtype | None = None
) -> Tensor:
    """The value of a graph over whole tensors in memory, in work precision; gradients flow to the sources.

    All sources have the shape of the result. Model-scope reductions run over this one tensor.
    """
    return evaluate_model({"": output}, {"": sources}, work=work)[""]


def evaluate_model(
    outputs: Mapping[str, Value],
    sources: Mapping[str, Sequence[Tensor]],
    *,
    groups: Mapping[Node, Any] | None = None,
    work: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Values of many tensors' graphs, with model-scope reductions taken over all of them.

    `groups` says which model-scope reductions of different tensors are one (by default: those at the same position of
    each graph).
    """
    known: dict[str, dict[Node, Any]] = {name: {} for name in outputs}
    while True:
        progressed = False
        pending: dict[Any, list[tuple[str, Scalar | Cut]]] = {}
        for name, output in outputs.items():
            levels = reduction_levels([output], known[name])
            model_position = 0
            for reduction in levels[0] if levels else []:
                progressed = True
                if reduction.scope is Scope.MODEL:
                    key = groups[reduction] if groups else model_position
                    model_position += 1
                    pending.setdefault(key, []).append((name, reduction))
                else:
                    measured = _measure([reduction], [sources[name]], [known[name]], work)
                    known[name].update(zip([reduction], measured, strict=True))
        for members in pending.values():
            names = [name for name, _ in members]
            measured = _measure(
                [r for _, r in members],
                [sources[n] for n in names],
                [known[n] for n in names],
                work,
            )
            for (name, reduction), result in zip(members, measured, strict=True):
                known[name][reduction] = result
        if not progressed:
            break
    return {
        name: _run_whole([output], sources[name], known[name], work)[0]
        for name, output in outputs.items()
    }


def _run_whole(
    roots: Sequence[Node],
    sources: Sequence[Tensor],
    known: dict[Node, Any],
    work: torch.dtype | None,
) -> list[Tensor]:
    dtype = work or (
        torch.float64 if any(s.dtype is torch.float64 for s in sources) else torch.float32
    )
    shape = sources[0].shape
    row_length = shape[-1] if shape else 1
    known = _with_whole_nodes(roots, sources, known, dtype)
    interpreter = Interpreter(roots, known, dtype, has_row_nodes(roots, known))
    flat = [s.to(dtype).reshape(-1) for s in sources]
    return [t.reshape(shape) for t in interpreter.run(flat, 0, row_length)]


def _with_whole_nodes(
    roots: Sequence[Node],
    sources: Sequence[Tensor],
    known: dict[Node, Any],
    dtype: torch.dtype,
) -> dict[Node, Any]:
    known = dict(known)
    for node in walk_pending(roots, known):
        if node.op == "whole" and node not in known:
            inputs = [_run_whole([i], sources, known, dtype)[0] for i in node.inputs]
            known[node] = node.attributes[0](torch, *inputs, *node.attributes[1:]).reshape(-1)
    return known


def _measure(
    reductions: Sequence[Scalar | Cut],
    sources: Sequence[Sequence[Tensor]],
    known: Sequence[dict[Node, Any]],
    work: torch.dtype | None,
) -> list[Any]:
    first = reductions[0]
    count = 2 if first.op == "dot" else 1
    values = [
        _run_whole(r.inputs[:count], s, k, work)
        for r, s, k in zip(reductions, sources, known, strict=True)
    ]
    if isinstance(first, Cut):
        return _measure_cut(first, [v[0] for v in values], known[0])
    parts = torch.stack([reduce_piece(first.op, [t.reshape(-1) for t in v]) for v in values])
    return [parts.max() if first.op == "peak" else parts.sum()] * len(reductions)


def _measure_cut(cut: Cut, values: Sequence[Tensor], known: dict[Node, Any]) -> list[CutPoint]:
    number = float(evaluate_scalar(cut.inputs[1], dict(known)))
    population = sum(v.numel() for v in values)
    k = int(np.floor(number * population)) if cut.attributes[0] else int(number)
    keys = [_keys(v).reshape(-1) for v in values]
    selection = Selection(k, population, 63 if values[0].dtype is torch.float64 else 31)
    offsets = np.cumsum([0] + [v.numel() for v in values])
    while selection.result is None:
        asked = selection.request()
        part = asked.only_part if isinstance(asked, Collect) else None
        chosen = range(len(keys)) if part is None else [part]
        parts: list[Any] = [
            _histogram(keys[i], asked)
            if isinstance(asked, Histogram)
            else _collect(keys[i], asked, int(offsets[i]))
            for i in chosen
        ]
        selection.absorb(asked, parts)
    return [
        local_cut(selection.result, int(o), v.numel())
        for o, v in zip(offsets, values, strict=False)
    ]
