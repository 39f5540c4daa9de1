"""What a run of learning keeps while it works, so that another goes on where it was stopped.

RECIPE.yaml.partial/
  lock       held while a run works here
  request    the digest of all that decides the result
  state      the step that is finished, what the optimiser holds, the best numbers so far and the log of all steps
  taught/    what teachers gave (see `teaching`)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
        if not place.is_file() or place.read_text("utf-8") != request:
            self.empty()
            write_file(place, request.encode())
        self.taught = self.folder / _TAUGHT
        self.taught.mkdir(exist_ok=True)

    def is_worthless(self) -> bool:
        """Whether no step is finished and no teacher has taught."""
        return not self._state.is_file() and not any(self.taught.glob("*.json"))

    def read(self) -> dict[str, Any] | None:
        """The state that was kept last."""
        found: dict[str, Any] | None = None
        if self._state.is_file():
            found = json.loads(self._state.read_bytes())
        return found

    def keep(self, state: Mapping[str, Any]) -> None:
        """Keep a state in the place of the one before."""
        write_file(self._state, json.dumps(state).encode())
