"""A run's progress on stderr: a bar on a terminal, one line per tenth elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING

from weightsmith.cli.terminal_text import duration
from weightsmith.tensors import format_size

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_STEPS = 10


class Quiet(AbstractContextManager["Quiet"]):
    """No progress at all."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def start(self, total_bytes: int, resumed_bytes: int) -> None:
        """Ignore."""

    def advance(self, nbytes: int, tensor: str) -> None:
        """Ignore."""

    def stage(self, text: str) -> None:
        """Ignore."""


class ProgressLines(Quiet):
    """One line per tenth of the output, with rate and remaining time; for files and pipes."""

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write, self._clock = write, clock
        self._lock = threading.Lock()
        self._total = self._done = self._resumed = self._tenths = 0
        self._begun = clock()

    def start(self, total_bytes: int, resumed_bytes: int) -> None:
        """Say what is to be done, and what an earlier run has done of it."""
        with self._lock:
            self._total, self._done, self._resumed = total_bytes, resumed_bytes, resumed_bytes
            self._tenths = self._reached()
            self._begun = self._clock()
        if resumed_bytes:
            self._write(
                f"resuming: {format_size(resumed_bytes)} of {format_size(total_bytes)} are finished"
            )
        else:
            self._write(f"writing {format_size(total_bytes)}")

    def advance(self, nbytes: int, tensor: str) -> None:
        """Count, and write a line whenever another tenth is full."""
        with self._lock:
            self._done += nbytes
            reached = self._reached()
            if reached <= self._tenths:
                return
            self._tenths = reached
            # Written under the lock: lines of several workers stay whole and in order.
            self._write(self._line())

    def stage(self, text: str) -> None:
        """Say what is going on."""
        self._write(text)

    def _reached(self) -> int:
        return _STEPS * self._done // self._total if self._total else _STEPS

    def _line(self) -> str:
        elapsed = max(self._clock() - self._begun, 1e-9)
        rate = (self._done - self._resumed) / elapsed
        share = f"{100 * self._tenths // _STEPS:3d} %"
        line = f"{share}  {format_size(self._done)} of {format_size(self._total)}"
        left = self._total - self._done
        if left <= 0:
            return f"{line}  {format_size(rate)}/s"
        return f"{line}  {format_size(rate)}/s  {duration(left / rate)} left"


class ProgressBar(Quiet):
    """A bar with rate and remaining time; for terminals."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        doing = (TextColumn("{task.description}", markup=False), BarColumn())
        self._counting = (
            *doing,
            TaskProgressColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        # What has stages alone has no bytes to count.
        self._drawn: RichProgress = Progress(*doing, console=Console(stderr=True))
        self._task: TaskID = self._drawn.add_task("starting", total=None)

    def __enter__(self) -> ProgressBar:
        self._drawn.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._drawn.stop()

    def start(self, total_bytes: int, resumed_bytes: int) -> None:
        """Set the bar's length; finished bytes of an earlier run do not count for the rate."""
        self._drawn.columns = self._counting
        self._drawn.reset(
            self._task, total=total_bytes, completed=resumed_bytes, description="writing"
        )
        self._drawn.update(self._task, completed=resumed_bytes)
        if resumed_bytes:
            self._drawn.console.print(
                f"resuming: {format_size(resumed_bytes)} are finished", highlight=False
            )

    def advance(self, nbytes: int, tensor: str) -> None:
        """Move the bar."""
        self._drawn.update(self._task, advance=nbytes, description="writing")

    def stage(self, text: str) -> None:
        """Show what is going on beside the bar."""
        self._drawn.update(self._task, description=text)


def open_progress(quiet: bool) -> Quiet:
    """The progress that fits where stderr leads."""
    if quiet:
        return Quiet()
    if sys.stderr.isatty():
        return ProgressBar()
    return ProgressLines(lambda line: print(line, file=sys.stderr, flush=True))
