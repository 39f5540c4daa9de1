"""Work in stages as a terminal shows it: how far each stage is, at which rate, and how long it will take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from weightsmith.cli.terminal_text import counted, duration, harmless
from weightsmith.progress import BYTES, CPU_SECONDS
from weightsmith.tensors import format_size


class Display:
    """Shows nothing; told of stages under its lock, which several threads may move."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.lock = threading.RLock()

    def begun(self, stage: Stage) -> None:
        """A stage begins."""

    def moved(self, stage: Stage) -> None:
        """More of it is done."""

    def said(self, stage: Stage, text: str) -> None:
        """Something goes on beside what is counted."""

    def ended(self, stage: Stage, result: str, kept: bool) -> None:
        """It is done; the work that it is a stage of counts it already."""


class Stage:
    """One piece of work, the `Progress` that the command line hands out.

    `done` counts what earlier runs did too, which is `kept` apart; `number` is its place among the stages of its work,
    from 1.
    """

    def __init__(
        self,
        display: Display,
        work: Stage | None = None,
        name: str = "",
        total: float | None = None,
        unit: str = "",
        *,
        done: float = 0,
        share: float = 1,
    ) -> None:
        self.display, self.work, self.name = display, work, harmless(name)
        self.total, self.unit = total, unit
        self.done = self.kept = done
        self.number = 1
        self._ended = 0
        self.begun_at = display.clock()
        self._ended_at: float | None = None
        self._share = share
        self._open: list[Stage] = []

    def begin(
        self,
        name: str,
        total: float | None = None,
        unit: str = "",
        *,
        done: float = 0,
        share: float = 1,
    ) -> Stage:
        """Begin a stage of this work."""
        with self.display.lock:
            stage = Stage(self.display, self, name, total, unit, done=done, share=share)
            self._open.append(stage)
            stage.number = int(self.done) + len(self._open)
            self.display.begun(stage)
            return stage

    def advance(self, amount: float, what: str = "") -> None:
        """Count."""
        with self.display.lock:
            self.done += amount
            self.display.moved(self)

    def say(self, text: str) -> None:
        """Show what is going on."""
        with self.display.lock:
            self.display.said(self, harmless(text))

    def end(self, result: str = "", *, kept: bool = False) -> None:
        """Count this stage in the work that it belongs to."""
        with self.display.lock:
            self._ended_at = self.display.clock()
            if self.work is not None:
                self.work._count(self, kept)
            self.display.ended(self, harmless(result), kept)

    def _count(self, stage: Stage, kept: bool) -> None:
        self._open.remove(stage)
        self._ended += 1
        if self.total is not None:
            self.done += stage._share
            self.kept += stage._share if kept else 0

    @property
    def part(self) -> Stage | None:
        """The stage that this is or belongs to whose work counts its stages; None where no work does."""
        if self.work is None or self.work.total is not None:
            return None if self.work is None else self
        return self.work.part

    def parts_finished(self) -> int:
        """How many stages have ended of the works that are open within it."""
        return sum(work._ended for work in self._open)

    def reached(self) -> float:
        """How much is done, with what its open stages have done of their shares."""
        return self.done + sum(stage._share * stage.fraction() for stage in self._open)

    def fraction(self) -> float:
        """The share that is done, from 0 to 1."""
        if self.total is None:
            return self._open[-1].fraction() if self._open else 0.0
        return self.reached() / self.total if self.total else 1.0

    def took(self) -> str:
        """How long it has taken."""
        return duration(self._elapsed())

    def amount(self) -> str:
        """How much of how much is done; nothing of times, which are guesses."""
        total = self.total or 0
        if self.unit == CPU_SECONDS:
            return ""
        if self.unit == BYTES:
            return f"{format_size(int(self.done))} of {format_size(int(total))}"
        return f"{self.done:,.0f} of {quantity(total, self.unit)}"

    def rate(self) -> str:
        """How much is done in a second of what was left to do; nothing of times, and where nothing was done."""
        if self.unit == CPU_SECONDS:
            return ""
        rate = self._pace()
        if rate <= 0:
            return ""
        if self.unit == BYTES:
            return f"{format_size(rate)}/s"
        return f"{rate:,.0f}/s" if rate >= 9.95 else f"{rate:.2g}/s"

    def left(self) -> str:
        """How long the rest will take if it goes on like this; nothing where that is not known, or nothing is left."""
        pace, rest = self._pace(), (self.total or 0) - self.reached()
        return f"{duration(rest / pace)} left" if pace > 0 and rest > 0 else ""

    def _pace(self) -> float:
        return (self.reached() - self.kept) / max(self._elapsed(), 1e-9)

    def _elapsed(self) -> float:
        """How long it has gone on, or went on until it ended."""
        until = self.display.clock() if self._ended_at is None else self._ended_at
        return until - self.begun_at


def quantity(number: float, unit: str) -> str:
    """A number of things, bytes or seconds."""
    if unit == BYTES:
        return format_size(int(number))
    if unit == CPU_SECONDS:
        return f"about {duration(number)} of CPU time"
    return counted(int(number), unit) if unit else f"{int(number):,}"


def place_of(stage: Stage) -> str:
    """Where a stage stands in its work: `task 2 of 6`, or the share that is done where stages differ in length."""
    work = stage.work
    assert work is not None
    if work.unit == CPU_SECONDS:
        return f"{100 * work.fraction():3.0f} %"
    total = f"{work.total:,.0f}"
    return f"{work.unit} {stage.number:>{len(total)},} of {total}"


def result_of(stage: Stage, result: str, kept: bool) -> str:
    """What is said of a stage that has ended: its place and name, what came out, and how long it took."""
    took = "found in the cache" if kept else f"in {stage.took()}"
    return joined(place_of(stage), stage.name, result, took)


def resumed(stage: Stage) -> str:
    """How much of a stage earlier runs have done."""
    return f"resuming: {stage.amount() or f'{100 * stage.fraction():.0f} %'} are finished"


def joined(*parts: str) -> str:
    """The parts of a line that say something."""
    return "  ".join(part for part in parts if part)
