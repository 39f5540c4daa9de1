"""The native CPU backend: passes compiled to small programs and run by the C++ register machine, tile by tile.

Elementwise it gives the bits of the torch backend (with one canonical NaN), and its sums are float64 with a fixed
order. The shared library has a plain C interface and is optional: `available` says whether it can be used here,
`why_not` what is missing. torch is never imported.
"""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import UsageError
from weightsmith.graph.backends.instructions import OPCODES, Segment, assemble
from weightsmith.graph.backends.program import PassListing, list_pass
from weightsmith.graph.columns import ColumnPart
from weightsmith.graph.graph import Node
from weightsmith.graph.passes import (
    HISTOGRAM_BINS,
    Collect,
    CollectPart,
    Equal,
    Histogram,
    HistogramPart,
    PassSpec,
    Request,
    TileResult,
    evaluate_scalar,
    rows_of_tile,
)
from weightsmith.tensors import NativeLibrary, address_of, open_library, piece_elements

LEVELS = ("baseline", "avx2", "avx512")
_PROGRAM_CACHE = 1024
_HISTOGRAM_REST = 2 + 16  # keys above, keys below, and spare counters


class _Program(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_void_p),
        ("length", ctypes.c_int64),
        ("registers", ctypes.c_int64),
        ("reductions", ctypes.c_int64),
        ("is_double", ctypes.c_int64),
        ("block", ctypes.c_int64),
    )


class _Tile(ctypes.Structure):
    _fields_ = (
        ("sources", ctypes.c_void_p),
        ("outputs", ctypes.c_void_p),
        ("tallies", ctypes.c_void_p),
        ("numbers", ctypes.c_void_p),
        ("row_numbers", ctypes.c_void_p),
        ("integers", ctypes.c_void_p),
        ("start", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("row_length", ctypes.c_int64),
        ("piece", ctypes.c_int64),
    )


def _open() -> NativeLibrary | str:
    """The library, or the reason why it cannot be used here."""
    found = open_library()
    if isinstance(found, str) or OPCODES.issubset(found.opcodes):
        return found
    missing = ", ".join(sorted(OPCODES - set(found.opcodes)))
    return f"the native module was built from other sources (no {missing}): build it again"


def available() -> bool:
    """True if the native backend can be used on this machine."""
    return isinstance(_open(), NativeLibrary)


def why_not() -> str:
    """Why the native backend cannot be used; empty if it can."""
    found = _open()
    return found if isinstance(found, str) else ""


def describe() -> str:
    """The backend in a few words, such as "native (avx512)", or why there is none."""
    found = _open()
    return found if isinstance(found, str) else f"native ({LEVELS[found.level]})"


def load(level: int | None = None) -> NativeBackend:
    """The backend, for the best instruction set of this processor or a lower `level` (an index into `LEVELS`).

    Raises UsageError if the library is missing or cannot be loaded.
    """
    found = _open()
    if isinstance(found, str):
        raise UsageError(
            f"No native backend: {found}; use the torch backend or reinstall with a compiler."
        )
    return NativeBackend(found, found.level if level is None else min(level, found.level))


class NativeBackend:
    """Backend that runs passes in the register machine on one CPU thread per call."""

    def __init__(self, library: NativeLibrary, level: int) -> None:
        self.name = f"native ({LEVELS[level]})"
        self.level = level
        self._library = library
        self._assembled = functools.lru_cache(_PROGRAM_CACHE)(self._assemble)

    def _assemble(self, structure: tuple[Any, ...]) -> tuple[_Compiled, ...]:
        is_double = structure[3]
        return tuple(
            _Compiled(
                s,
                _Program(
                    address_of(s.code), len(s.code), s.registers, s.reductions, is_double, s.block
                ),
            )
            for s in assemble(structure, self._library.opcodes)
        )

    def compile(self, spec: PassSpec) -> NativePass:
        """Prepare a pass; programs of passes that differ in numbers only are shared."""
        listing = list_pass(spec)
        return NativePass(
            spec, listing, self._assembled(listing.structure), self._library.run, self.level
        )

    def linalg(self) -> Any:
        """numpy."""
        return np


class _Compiled(NamedTuple):
    """A segment with the structure that points at its code."""

    segment: Segment
    program: _Program


class _Call:
    """The arrays of one segment on one tile; kept alive while the library uses them."""

    def __init__(self, segment: Segment) -> None:
        self.outputs: list[Any] = [None] * segment.slots
        self.addresses = array("Q", bytes(8 * segment.slots))
        self.tallies = array("q", bytes(16 * segment.slots))

    def give(self, slot: int, output: NDArray[Any]) -> None:
        self.outputs[slot] = output
        self.addresses[slot] = address_of(output)

    def tally(self, slot: int) -> tuple[int, int]:
        return self.tallies[2 * slot], self.tallies[2 * slot + 1]

    def nonfinite(self, slot: int) -> tuple[int, int]:
        return self.tally(slot) if self.tallies[2 * slot] else (0, -1)


class NativePass:
    """A compiled pass; `run` may be called from several threads at once."""

    def __init__(
        self,
        spec: PassSpec,
        listing: PassListing,
        segments: tuple[_Compiled, ...],
        run: Any,
        level: int,
    ) -> None:
        self._spec = spec
        self._listing = listing
        self._segments = segments
        self._run = run
        self._level = level
        self._numbers = array("d", listing.numbers)
        self._integers = array("q", listing.integers)
        self._itemsizes = [dtype.itemsize for dtype in spec.source_dtypes]
        self._used = sorted(
            {source for compiled in segments for source, _ in compiled.segment.loads}
        )
        self._piece = piece_elements(spec.shape)
        self._row_length = (spec.shape[-1] if spec.shape else 1) if listing.has_rows else 0

    def run(
        self,
        buffers: Sequence[memoryview | None],
        start: int,
        count: int,
        outs: Sequence[memoryview] = (),
    ) -> TileResult:
        """Compute one tile (see `TilePass.run`).

        Raises UsageError if a buffer has the wrong size, or if a pass with row values gets a part of a row.
        """
        self._check(buffers, start, count, outs)
        sources, keep_alive = self._sources(buffers, start)
        memo = self._listing.memo
        if self._row_length:
            memo = memo | rows_of_tile(self._spec.known, start, count, self._row_length)
        for compiled in self._segments:
            is_last = compiled is self._segments[-1]
            segment = compiled.segment
            call = self._final_call(segment, start, count, outs) if is_last else _Call(segment)
            for _, slot in segment.row_results:
                call.give(
                    slot, np.empty(count // self._row_length if count else 0, dtype=np.float64)
                )
            self._execute(compiled, call, sources, memo, start, count)
            results = {entry: call.outputs[slot] for entry, slot in segment.row_results}
            memo.update(
                (node, results[entry])
                for node, entry in self._listing.row_reductions
                if entry in results
            )
        del keep_alive
        result = self._result(compiled.segment, call, start, count)
        result.kept = [memo[node] for node in self._spec.kept]
        return result

    def _check(
        self,
        buffers: Sequence[memoryview | None],
        start: int,
        count: int,
        outs: Sequence[memoryview],
    ) -> None:
        for index in self._used:
            buffer = buffers[index]
            if buffer is None or buffer.nbytes != count * self._itemsizes[index]:
                held = "none" if buffer is None else f"{buffer.nbytes} bytes"
                raise UsageError(
                    f"Source {index} of a tile of {count} elements has {held}; it must have all elements."
                )
        sizes = [count * dtype.itemsize for _, dtype in self._spec.outputs]
        if [out.nbytes for out in outs] != sizes:
            raise UsageError(f"The output buffer of a tile of {count} elements has the wrong size.")
        if count and any(out.readonly for out in outs):
            raise UsageError(f"The output buffer of a tile of {count} elements is read-only.")
        if self._row_length and (start % self._row_length or count % self._row_length):
            raise UsageError(
                f"A tile of {count} elements at {start} cuts a row of {self._row_length}; give whole rows."
            )

    def _sources(
        self, buffers: Sequence[memoryview | None], start: int
    ) -> tuple[array[int], list[Any]]:
        known = len(buffers) + len(self._listing.arrays)
        addresses = [0] * known + [address_of(table) for table in self._listing.column_tables]
        views = []
        for index in self._used:
            buffer = buffers[index]
            if buffer is not None and buffer.nbytes:
                view = np.frombuffer(buffer, dtype=np.uint8)
                addresses[index] = address_of(view)
                views.append(view)
        for ordinal, found in enumerate(self._listing.arrays, len(buffers)):
            addresses[ordinal] = address_of(found) + start * found.itemsize
        return array("Q", addresses), views

    def _final_call(
        self, segment: Segment, start: int, count: int, outs: Sequence[memoryview]
    ) -> _Call:
        call = _Call(segment)
        for slot, out in zip(segment.sink_slots, outs if count else (), strict=False):
            call.give(slot, np.frombuffer(out, dtype=np.uint8))
        asked = self._asked(segment)
        partials = np.empty((len(asked), -(-count // self._piece)), dtype=np.float64)
        for row, (slot, (reduction, request)) in enumerate(asked.items()):
            columns = getattr(reduction, "columns", None)
            if columns is not None:
                runs = len(columns.bounds(start, count, self._piece)) - 1
                call.give(slot, np.empty((runs, columns.width), dtype=np.float64))
            elif isinstance(request, Histogram):
                call.give(slot, np.zeros(HISTOGRAM_BINS + _HISTOGRAM_REST, dtype=np.uint64))
            elif isinstance(request, (Collect, Equal)):
                size = min(request.limit, count)
                call.give(slot, np.empty(size, dtype=np.uint64))
                call.give(slot + 1, np.empty(size, dtype=np.int64))
            else:
                call.give(slot, partials[row])
        return call

    def _asked(self, segment: Segment) -> dict[int, tuple[Node, Request | None]]:
        """What each slot is for; reductions that ask for the same number share one."""
        slots = (segment.sink_slots[place] for place in self._listing.sink_of)
        return dict(zip(slots, self._spec.reductions, strict=True))

    def _execute(
        self,
        compiled: _Compiled,
        call: _Call,
        sources: array[int],
        memo: dict[Node, Any],
        start: int,
        count: int,
    ) -> None:
        if count == 0:
            return
        rows = [self._row_numbers(place, memo, count) for place in compiled.segment.row_scalars]
        row_table = array("Q", [address_of(r) for r in rows])
        tables = (sources, call.addresses, call.tallies, self._numbers, row_table, self._integers)
        tile = _Tile(
            *(t.buffer_info()[0] for t in tables), start, count, self._row_length, self._piece
        )
        if self._run(self._level, ctypes.addressof(compiled.program), ctypes.addressof(tile)):
            raise MemoryError(
                f"no memory for {compiled.segment.registers} registers of the native backend"
            )

    def _row_numbers(self, place: int, memo: dict[Node, Any], count: int) -> NDArray[np.float64]:
        number = evaluate_scalar(self._listing.row_scalars[place], memo)
        rows = count // self._row_length
        return np.ascontiguousarray(np.broadcast_to(np.asarray(number, dtype=np.float64), (rows,)))

    def _result(self, segment: Segment, call: _Call, start: int, count: int) -> TileResult:
        result = TileResult([])
        if self._spec.outputs:
            own = segment.sink_slots[: len(self._spec.outputs)]
            result.nonfinite_outputs = [call.nonfinite(slot) for slot in own]
            result.nonfinite_sources = [(0, -1)] * len(self._itemsizes)
            for source, slot in segment.loads:
                result.nonfinite_sources[source] = call.nonfinite(slot)
        parts = {
            slot: _part(call, slot, request)
            if getattr(reduction, "columns", None) is None
            else ColumnPart(start, count, call.outputs[slot])
            for slot, (reduction, request) in self._asked(segment).items()
        }
        result.partials = [parts[segment.sink_slots[place]] for place in self._listing.sink_of]
        return result


def _part(call: _Call, slot: int, request: Request | None) -> Any:
    found = call.outputs[slot]
    if isinstance(request, Histogram):
        return HistogramPart(found[:HISTOGRAM_BINS], int(found[HISTOGRAM_BINS]))
    if isinstance(request, (Collect, Equal)):
        inside, above = call.tally(slot)
        taken = min(inside, len(found))
        lists = found[:taken].copy(), call.outputs[slot + 1][:taken].copy()
        if isinstance(request, Equal):
            return CollectPart(*lists, inside, above, 0, *call.tally(slot + 1))
        return CollectPart(*lists, inside, above, call.tally(slot + 1)[0])
    return found
