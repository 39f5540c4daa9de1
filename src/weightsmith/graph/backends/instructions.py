"""From a listed pass to instructions of the native register machine: an order, registers, and slots for results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.graph.backends.program import (
    BINARY,
    COLUMN_REDUCTIONS,
    ROW_REDUCTIONS,
    UNARY,
    Entry,
    PassSink,
)
from weightsmith.tensors import DType

_FLOATS = [dtype.value for dtype in DType if dtype.is_float]
_PIECE_REDUCTIONS = frozenset((*ROW_REDUCTIONS, "dot_wide"))
_SELECTING = "above keep row_rank histogram collect equal".split()
_SINGLE = ["fill", "fill_rows", "fill_row_results", "fill_columns", "where", "uniform", "widen"]

_PAIRS = frozenset("add_add add_mul mul_add mul_sub mul_mul div_add div_sub".split())
_SECOND = frozenset(("add", "sub", "mul"))
_COMMUTATIVE = frozenset(("add", "mul"))

OPCODES = frozenset(
    {*BINARY, *UNARY, *_SINGLE, *_SELECTING, *_PAIRS, *_PIECE_REDUCTIONS}
    | {*ROW_REDUCTIONS.values(), *COLUMN_REDUCTIONS.values()}
    | {f"{verb}_{name}" for verb in ("load", "store", "round") for name in _FLOATS}
) - {"round_float64"}
"""Names of the instructions a program may hold."""

_NO_REGISTER = frozenset({"number", *ROW_REDUCTIONS.values()})
_NOTHING = -1  # where an instruction may take a register
_FIRST_LEVEL_CACHE = 40 * 1024
_BLOCKS = (1024, 512, 256)


@dataclass(frozen=True, slots=True)
class Segment:
    """One program: its code ([instructions, 6] int32: op, out, a, b, c, slot) and where its results go.

    `loads` pairs each source with the slot of its non-finite tally; `row_scalars` are the places of the row scalars
    it reads; `row_results` pairs entries of row reductions with slots; `sink_slots` has the slot of each sink (last
    segment only).
    """

    code: NDArray[np.int32]
    registers: int
    reductions: int
    block: int
    slots: int
    loads: tuple[tuple[int, int], ...]
    row_scalars: tuple[int, ...]
    row_results: tuple[tuple[int, int], ...]
    sink_slots: tuple[int, ...]


def assemble(structure: tuple[Any, ...], opcodes: Mapping[str, int]) -> tuple[Segment, ...]:
    """Programs of a listed pass, to be run one after the other on each tile."""
    entries, sinks, sources, is_double, arrays = structure
    level = _levels(entries)
    depth = max((level[i] for sink in sinks for i in sink.inputs), default=0)
    segments = []
    for now in range(depth + 1):
        wanted = [
            (PassSink(op, inputs), i)
            for i, (op, inputs, _) in enumerate(entries)
            if op in ROW_REDUCTIONS.values() and level[i] == now
        ]
        if now == depth:
            wanted += [(sink, -1) for sink in sinks]
        segments.append(_Assembler(entries, sources, arrays, is_double, opcodes).segment(wanted))
    return tuple(segments)


def _levels(entries: Sequence[Entry]) -> list[int]:
    """For each entry, after how many segments it can be computed; arithmetic on rows happens between segments."""
    levels: list[int] = []
    for op, inputs, _ in entries:
        below = max((levels[i] for i in inputs), default=0)
        levels.append(below + 1 if op == "row" and inputs else below)
    return levels


class _Assembler:
    """Chooses registers and emits the instructions of one segment."""

    def __init__(
        self,
        entries: Sequence[Entry],
        sources: Sequence[DType],
        arrays: int,
        is_double: bool,
        opcodes: Mapping[str, int],
    ) -> None:
        self._entries = entries
        self._sources = sources
        self._tables = len(sources) + arrays
        self._is_double = is_double
        self._opcodes = opcodes
        self._pairs: dict[int, Entry] = {}
        self._code: list[tuple[int, int, int, int, int, int]] = []
        self._register: dict[int, int] = {}
        self._free: list[int] = []
        self._registers = 0
        self._slots = 0
        self._reductions = 0
        self._loads: list[tuple[int, int]] = []
        self._row_scalars: list[int] = []
        self._row_slots: dict[int, int] = {}
        self._own_rows: set[int] = set()

    def segment(self, wanted: Sequence[tuple[PassSink, int]]) -> Segment:
        rows = {id(sink): entry for sink, entry in wanted if entry >= 0}
        self._own_rows = set(rows.values())
        steps = self._paired(self._schedule([sink for sink, _ in wanted]))
        last_use = {i: at for at, step in enumerate(steps) for i in self._inputs(step)}
        slots: dict[int, int] = {}
        has_wide = False
        for at, step in enumerate(steps):
            if isinstance(step, PassSink):
                slots[id(step)] = self._sink(step)
                if id(step) in rows:
                    self._row_slots[rows[id(step)]] = slots[id(step)]
                self._release(step.inputs, at, last_use)
                continue
            operands = [self._operand(i) for i in self._inputs(step)]
            is_wide = self._entry(step)[0] == "widen"  # and must not overwrite what it reads
            out = self._take_register(step) if is_wide else -1
            self._release(self._inputs(step), at, last_use)
            self._compute(step, operands, self._take_register(step) if out < 0 else out)
            has_wide |= is_wide
        size = 8 if self._is_double or has_wide else 4
        fitting = (b for b in _BLOCKS if self._registers * b * size <= _FIRST_LEVEL_CACHE)
        return Segment(
            code=np.array(self._code, dtype=np.int32).reshape(-1, 6),
            registers=self._registers,
            reductions=self._reductions,
            block=next(fitting, _BLOCKS[-1]),
            slots=self._slots,
            loads=tuple(self._loads),
            row_scalars=tuple(self._row_scalars),
            row_results=tuple((entry, slots[id(sink)]) for sink, entry in wanted if entry >= 0),
            sink_slots=tuple(slots[id(sink)] for sink, entry in wanted if entry < 0),
        )

    def _inputs(self, step: int | PassSink) -> tuple[int, ...]:
        if isinstance(step, PassSink):
            return step.inputs
        op, inputs, _ = self._entry(step)
        if op == "row_result":  # of this segment, or in a table from an earlier one
            return inputs if inputs[0] in self._own_rows else ()
        return () if op == "row" else inputs

    def _entry(self, step: int) -> Entry:
        return self._pairs.get(step) or self._entries[step]

    def _paired(self, steps: Sequence[int | PassSink]) -> list[int | PassSink]:
        """The steps where those whose result is used once, by a step that can take them in, are part of that step.

        Arithmetic on a block costs as much as storing its result, so two operations in one instruction cost half.
        """
        uses = Counter(i for step in steps for i in self._inputs(step))
        gone: set[int] = set()
        for step in steps:
            if isinstance(step, PassSink):
                continue
            kept = self._kept(step)
            if kept is not None and uses[kept[0]] == 1:
                gone.add(kept[0])
                self._pairs[step] = kept[1]
            if self._entries[step][0] not in _SECOND:
                continue
            second, (a, b), _ = self._entries[step]
            orders = [(a, b), (b, a)] if second in _COMMUTATIVE else [(a, b)]
            for taken, other in sorted(orders, reverse=True):  # what came later is nearer by
                pair = self._pair(taken, second, other)
                if pair is not None and uses[taken] == 1 and taken not in self._pairs:
                    self._pairs[step] = pair
                    gone.add(taken)
                    break
        return [step for step in steps if isinstance(step, PassSink) or step not in gone]

    def _kept(self, step: int) -> tuple[int, Entry] | None:
        """A mask of largest elements, and the one instruction that chooses between those and a number by it."""
        op, inputs, _ = self._entries[step]
        if op != "where":
            return None
        mask, yes, no = inputs
        first, selected, threshold = self._entries[mask]
        if first != "above" or selected != (yes,) or self._entries[no][0] != "number":
            return None
        return mask, ("keep", (yes, no), threshold)

    def _pair(self, i: int, second: str, other: int) -> Entry | None:
        """Entry `i` and then `second` with the entry `other`, if there is an instruction for them."""
        first, inputs, detail = self._entries[i]
        is_loaded = first == "source" and self._sources[detail] is not DType.FLOAT64
        if is_loaded and second == "sub" and self._entries[other][0] != "number":
            return first, (other,), detail
        name = f"{first}_{second}"
        return (name, (*inputs, other), None) if name in _PAIRS else None

    def _schedule(self, sinks: Sequence[PassSink]) -> list[int | PassSink]:
        """Entries in order, each sink as soon as its inputs are there, so that registers are free again early."""
        needed: set[int] = set()
        stack = [i for sink in sinks for i in sink.inputs]
        while stack:
            position = stack.pop()
            if position not in needed:
                needed.add(position)
                stack.extend(self._inputs(position))
        ready: dict[int, list[PassSink]] = {}
        for sink in sinks:
            ready.setdefault(max(sink.inputs), []).append(sink)
        steps: list[int | PassSink] = []
        for position in sorted(needed):
            if self._entries[position][0] not in _NO_REGISTER:
                steps.append(position)
            steps.extend(ready.get(position, ()))
        return steps

    def _operand(self, position: int) -> int:
        op, _, detail = self._entries[position]
        if position in self._row_slots:
            return self._row_slots[position]
        return ~int(detail) if op == "number" else self._register[position]

    def _release(self, inputs: Sequence[int], at: int, last_use: Mapping[int, int]) -> None:
        for i in dict.fromkeys(inputs):
            if last_use[i] == at and i in self._register:
                self._free.append(self._register.pop(i))

    def _take_register(self, position: int) -> int:
        if self._free:
            register = self._free.pop()
        else:
            register, self._registers = self._registers, self._registers + 1
        self._register[position] = register
        return register

    def _take_slots(self, count: int = 1) -> int:
        self._slots += count
        return self._slots - count

    def _emit(self, op: str, out: int = 0, operands: Sequence[int] = (), slot: int = 0) -> None:
        a, b, c = (*operands, 0, 0, 0)[:3]
        self._code.append((self._opcodes[op], out, a, b, c, slot))

    def _compute(self, position: int, operands: list[int], out: int) -> None:
        op, _, detail = self._entry(position)
        if op == "source":
            slot = self._take_slots()
            self._loads.append((detail, slot))
            less = operands or [_NOTHING]
            self._emit(f"load_{self._sources[detail].value}", out, [detail, *less], slot)
        elif op == "array":
            name = "load_float64" if self._is_double else "load_float32"
            self._emit(name, out, [len(self._sources) + detail, _NOTHING], self._take_slots())
        elif op == "fill":
            self._emit(op, out, [~detail])
        elif op == "row_result" and operands:
            self._emit("fill_row_results", out, operands)
        elif op in ("row", "row_result"):
            self._emit("fill_rows", out, [len(self._row_scalars)])
            self._row_scalars.append(detail)
        elif op == "columns":
            table, view = detail
            self._emit("fill_columns", out, [self._tables + table, view])
        elif op == "round":
            self._emit(f"round_{detail}", out, operands)
        elif op in ("uniform", "above"):
            self._emit(op, out, [*operands, detail])
        elif op == "keep":
            self._emit(op, out, [operands[0], detail, operands[1]])
        else:
            self._emit(op, out, operands)

    def _sink(self, sink: PassSink) -> int:
        operands = [self._operand(i) for i in sink.inputs]
        slot = self._take_slots(2 if sink.op in ("collect", "equal") else 1)
        if sink.op in COLUMN_REDUCTIONS.values():
            self._emit(sink.op, self._reductions, [operands[0], operands[-1], sink.request], slot)
            self._reductions += 1
            return slot
        if sink.request >= 0:
            operands.append(sink.request)
        elif sink.op in _PIECE_REDUCTIONS:
            operands = [operands[0], operands[-1], self._reductions]
            self._reductions += 1
        self._emit(sink.op, 0, operands, slot)
        return slot
