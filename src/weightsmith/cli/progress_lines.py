"""Progress on stderr: bars on a terminal, elsewhere one line per tenth, and one for every stage that counts."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from weightsmith.cli.progress_stages import (
    Display,
    Stage,
    joined,
    place_of,
    quantity,
    result_of,
    resumed,
)
from weightsmith.progress import CPU_SECONDS

_TENTHS = 10
# Within a stage of something that counts its stages there is no line more often.
_EVERY_SECONDS = 5.0


class ProgressLines(Display):
    """Lines with rate and remaining time; for files and pipes."""

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(clock)
        self._write = write
        self._tenths: dict[Stage, int] = {}
        self._said_at: dict[Stage, float] = {}

    def begun(self, stage: Stage) -> None:
        """Say what is to be done, and what an earlier run has done of it; or which of unequal steps begins."""
        assert stage.work is not None
        self._tenths[stage] = _tenths(stage)
        self._said_at[stage] = stage.begun_at
        if stage.part is None:
            self._write(_opening(stage))
        elif stage.work.unit == CPU_SECONDS:
            self._write(joined(place_of(stage), stage.name))

    def moved(self, stage: Stage) -> None:
        """Write a line whenever another tenth is full, or, within a stage that counts, every few seconds."""
        if stage.part is not None:
            self._move_within(stage, stage.part)
        elif (tenths := _tenths(stage)) > self._tenths[stage]:
            self._tenths[stage] = tenths
            share = f"{100 * tenths // _TENTHS:3d} %"
            self._write(joined(share, stage.amount(), stage.rate(), stage.left()))

    def _move_within(self, stage: Stage, part: Stage) -> None:
        now = self.clock()
        if not 0 < stage.fraction() < 1 or now - self._said_at[stage] < _EVERY_SECONDS:
            return
        self._said_at[stage] = now
        assert part.work is not None
        share, timed = f"{100 * stage.fraction():3.0f} %", stage
        if part.work.unit == CPU_SECONDS:
            share, timed = "", part.work
        paced = (share, stage.amount(), stage.rate(), timed.left())
        self._write(joined(place_of(part), part.name, *paced))

    def said(self, stage: Stage, text: str) -> None:
        """Say what is going on."""
        self._write(text)

    def ended(self, stage: Stage, result: str, kept: bool) -> None:
        """Say what came out of a stage that counts; nothing of one that was found and has nothing to say."""
        del self._tenths[stage], self._said_at[stage]
        if stage.part is stage and (result or not kept):
            assert stage.work is not None
            paced = (stage.work.rate(), stage.work.left())
            self._write(joined(result_of(stage, result, kept), *paced))


def _tenths(stage: Stage) -> int:
    return int(_TENTHS * stage.done // stage.total) if stage.total else _TENTHS


def _opening(stage: Stage) -> str:
    if stage.total is None:
        return stage.name
    if stage.done:
        return resumed(stage)
    colon = ":" if stage.unit == CPU_SECONDS else ""
    return f"{stage.name}{colon} {quantity(stage.total, stage.unit)}"


@contextmanager
def open_progress(quiet: bool) -> Iterator[Stage]:
    """The progress that fits where stderr leads, for as long as the block lasts."""
    # Kept, because libraries that a task runs may be kept from writing to stderr meanwhile.
    stream = sys.stderr
    if quiet:
        yield Stage(Display())
    elif stream.isatty():
        from weightsmith.cli.progress_bars import ProgressBars

        with ProgressBars(stream) as bars:
            yield Stage(bars)
    else:
        yield Stage(ProgressLines(lambda line: print(line, file=stream, flush=True)))
