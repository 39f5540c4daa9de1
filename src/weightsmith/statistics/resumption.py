"""How far a run block by block came, kept so that another process goes on there instead of at the beginning."""

from __future__ import annotations

from collections.abc import Sequence

from weightsmith.live import BlockRun
from weightsmith.statistics.kept_parts import KeptParts

FORWARD, BACKWARD, DONE = "forward", "backward", "done"


class Resumption:
    """The stage of a run and how many of its blocks are finished, as a run before this one left them.

    What waits for the next block is in files, so everything is there that was finished. Where a block gives something
    that cannot be written, nothing is kept, and a later run begins at the first block.
    """

    def __init__(self, parts: KeptParts, name: str) -> None:
        self._parts, self._name = parts, name
        self._known = parts.state_of(name)
        self.stage: str = self._known.get("stage", FORWARD)
        self.finished: int = self._known.get("finished", 0)

    def restore(self, runs: Sequence[BlockRun]) -> None:
        """Have runs be where they were."""
        for run, state in zip(runs, self._known.get("runs", ()), strict=False):
            run.restore(state)

    def keep(self, runs: Sequence[BlockRun], stage: str, finished: int) -> None:
        """Keep that so many blocks of a stage are finished, and let go of what waited for the last of them."""
        if (stage, finished) == (self.stage, self.finished):
            return
        self.stage, self.finished = stage, finished
        calls = finished if stage == FORWARD else len(runs[0].calls)
        states = [run.state(calls) for run in runs]
        known = {"stage": stage, "finished": finished, "runs": states}
        self._parts.keep_state(self._name, {} if None in states else known)
        for run in runs:
            run.store.settle()

    def end(self) -> None:
        """Keep that nothing is left to do."""
        self._parts.keep_state(self._name, {"stage": DONE})
        self._parts.remove_activations_of(self._name)
