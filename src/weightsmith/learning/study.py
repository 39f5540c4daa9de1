"""What a run of learning keeps while it works, so that another goes on where it was stopped.

RECIPE.yaml.partial/
  lock       held while a run works here
  request    the digest of all that decides the result
  state      the step that is finished, what the optimiser holds, the best numbers so far and the log of all steps
  taught/    what teachers gave (see `teaching`)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from weightsmith.errors import OutputError
from weightsmith.publishing import StagingFolder, write_file

_REQUEST, _STATE, _TAUGHT = "request", "state", "taught"


class Study(StagingFolder):
    """The folder of one run, by the place of its recipe; what another request left there is removed.

    Raises OutputError if another run works here, and where nothing can be written.
    """

    def __init__(self, out: Path, request: str) -> None:
        super().__init__(out, lambda _, __: "", beside=(_REQUEST, _STATE, _TAUGHT))
        self._state = self.folder / _STATE
        place = self.folder / _REQUEST
        self.taught = self.folder / _TAUGHT
        try:
            if not place.is_file() or place.read_bytes() != request.encode():
                self.empty()
                write_file(place, request.encode())
            self.taught.mkdir(exist_ok=True)
        except BaseException:
            with suppress(OSError, OutputError):
                if self.is_worthless():
                    self.discard()
            self.close()
            raise

    def is_worthless(self) -> bool:
        """Whether no step is finished and no teacher has taught."""
        return not self._state.is_file() and not any(self.taught.glob("*.json"))

    def read(self) -> dict[str, Any] | None:
        """The state that was kept last; None where there is none, or another than was kept."""
        found: dict[str, Any] | None = None
        if self._state.is_file():
            digest, _, content = self._state.read_bytes().partition(b"\n")
            if digest == _digest(content):
                found = json.loads(content)
        return found

    def keep(self, state: Mapping[str, Any]) -> None:
        """Keep a state in the place of the one before."""
        content = json.dumps(state).encode()
        write_file(self._state, _digest(content) + b"\n" + content)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
