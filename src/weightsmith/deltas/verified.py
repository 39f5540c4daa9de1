"""A stored tensor that is compared with its digest before anything is made of it."""

from __future__ import annotations

import threading

from weightsmith.errors import CheckpointError
from weightsmith.tensors import FromStored, LazyTensor, digest_tensor


class VerifiedTensor(FromStored):
    """A `LazyTensor` that reads itself once, a piece at a time, before it hands out its first element.

    `read_into` raises CheckpointError if the digest is another than `digest`; `advice` ends that sentence. Nothing
    is read before. The cost of reading leaves that first look out.
    """

    def __init__(self, stored: LazyTensor, digest: str, advice: str) -> None:
        self.stored = stored
        self.name, self.shape = stored.name, stored.shape
        self._digest, self._advice = digest, advice
        self._is_checked = False
        self._lock = threading.Lock()

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Check the tensor if that has not been done, then read elements [start, stop)."""
        if not self._is_checked:
            with self._lock:
                self._check()
        self.stored.read_into(start, stop, buffer)

    def _check(self) -> None:
        if self._is_checked:
            return
        found = digest_tensor(self.stored)
        if found != self._digest:
            raise CheckpointError(
                f"{self.location} has the digest {found}, but {self._digest} is on record: {self._advice}."
            )
        self._is_checked = True
