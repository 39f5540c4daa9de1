"""What was parsed of bytes that several files have: headers and indexes of a base and its fine-tunes mostly agree."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Parsed = TypeVar("Parsed")


class ParsedOnce(Generic[Parsed]):
    """Results by the digest of what they were parsed of, the latest of them, of `most_bytes` of files together.

    They are shared, so nobody may change them. A parser that raises is asked again.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[bytes, tuple[Parsed, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def of(self, data: bytes, parse: Callable[[], Parsed]) -> Parsed:
        """What `parse` gives for `data`, or gave for equal bytes."""
        digest = hashlib.blake2b(data, digest_size=32).digest()
        with self._lock:
            if digest in self._kept:
                self._kept.move_to_end(digest)
                return self._kept[digest][0]
        parsed = parse()
        with self._lock:
            self._keep(digest, parsed, len(data))
        return parsed

    def _keep(self, digest: bytes, parsed: Parsed, size: int) -> None:
        if digest in self._kept or size > self._most_bytes:
            return
        self._kept[digest] = parsed, size
        self._bytes += size
        while self._bytes > self._most_bytes:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._bytes -= dropped
