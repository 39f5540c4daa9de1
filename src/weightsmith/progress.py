"""What long work tells while it goes on; the command line draws it, a library user may listen to it or not.

Work begins with a name and a total in a unit, advances, and ends. A stage of it is work again, which counts for a share
of the whole when it ends. What has no total is known by its stages alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

Result = TypeVar("Result")

# Units are nouns (`tensor`, `step`, `row`); these two are written as sizes and as lengths of time.
BYTES = "byte"
CPU_SECONDS = "second of CPU time"


class Progress(Protocol):
    """Hears of one piece of work; called from the threads that do it."""

    def begin(
        self,
        name: str,
        total: float | None = None,
        unit: str = "",
        *,
        done: float = 0,
        share: float = 1,
    ) -> Progress:
        """A stage begins, of which an earlier run has done `done`; what is returned hears of it.

        Its end counts for `share` of the work that it is a stage of, in that work's unit. Without a `total` only its
        own stages tell how far it is.
        """

    def advance(self, amount: float, what: str = "") -> None:
        """So much more is done, of `what`."""

    def say(self, text: str) -> None:
        """What is going on beside what is counted (reading, sealing...)."""

    def end(self, result: str = "", *, kept: bool = False) -> None:
        """The work is done, with this result; `kept`: an earlier run had done it."""


class Silence:
    """Hears of nothing."""

    def begin(
        self,
        name: str,
        total: float | None = None,
        unit: str = "",
        *,
        done: float = 0,
        share: float = 1,
    ) -> Progress:
        """Ignore."""
        return self

    def advance(self, amount: float, what: str = "") -> None:
        """Ignore."""

    def say(self, text: str) -> None:
        """Ignore."""

    def end(self, result: str = "", *, kept: bool = False) -> None:
        """Ignore."""


def heard(stage: Progress, results: Iterable[Result]) -> list[Result]:
    """Take all results, of which the stage counts each as one, and end it."""
    taken: list[Result] = []
    for result in results:
        taken.append(result)
        stage.advance(1)
    stage.end()
    return taken


class Counted:
    """Tells of work that says itself how much of how much is done; where it starts over, a stage begins."""

    def __init__(self, progress: Progress, unit: str = "") -> None:
        self._progress, self._unit = progress, unit
        self._stage: Progress | None = None
        self._done = self._total = 0

    def reach(self, done: int, total: int) -> None:
        """`done` of `total` are done."""
        if self._stage is None or total != self._total or done < self._done:
            self.end()
            # What was done before the first word counts for no rate, since nobody knows when it began.
            self._stage = self._progress.begin("", total, self._unit, done=done)
            self._total = total
        else:
            self._stage.advance(done - self._done)
        self._done = done

    def end(self) -> None:
        """Nothing more is told."""
        if self._stage is not None:
            self._stage.end()
            self._stage = None
