"""What a run tells while it works; the command line draws it, a library user may ignore it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the state of a run; called from worker threads."""

    def start(self, total_bytes: int, resumed_bytes: int) -> None:
        """The output bytes to make in all, and those that an earlier run has finished."""

    def advance(self, nbytes: int, tensor: str) -> None:
        """`nbytes` more of the output are written, of `tensor`."""

    def stage(self, text: str) -> None:
        """What is going on beside writing tensors (measuring, sealing...)."""


class Silence:
    """No progress."""

    def start(self, total_bytes: int, resumed_bytes: int) -> None:
        """Ignore."""

    def advance(self, nbytes: int, tensor: str) -> None:
        """Ignore."""

    def stage(self, text: str) -> None:
        """Ignore."""
