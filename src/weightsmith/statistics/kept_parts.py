"""What was measured so far, block by block, beside the place of the file that it will be.

FILE.partial/
  lock            held while a run works here
  request         the digest of what is collected, of which model, over which data
  parts/          a file for each block and kind; what is there needs not be measured again
  activations/    what waits for the next block: for each run NAME.json, which tells how far it came and what waits,
                  and a folder with the files of it
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weightsmith.publishing import StagingFolder, staged_file, write_file, write_sealed_tensors
from weightsmith.statistics.forward_sums import Measured
from weightsmith.tensors import DType, LazyTensor, parse_file

if TYPE_CHECKING:
    from torch import Tensor

_PARTS, _REQUEST, _ACTIVATIONS = "parts", "request", "activations"
_KIND = "part"
_STATE = ".json"
_FACTS = "weightsmith_part"
_DTYPES = {np.dtype(np.float32): DType.FLOAT32, np.dtype(np.float64): DType.FLOAT64}


@dataclass(frozen=True, slots=True, eq=False)
class KeptPart:
    """A part as it is in its file."""

    tensors: Sequence[LazyTensor]
    rows: Mapping[str, int]
    same: Mapping[str, str]


class KeptParts(StagingFolder):
    """The parts of one collection, by kind and place in the network.

    Parts of another request are removed. Raises OutputError if another run works here, and where nothing can be
    written.
    """

    def __init__(self, out: Path, request: str) -> None:
        super().__init__(out, lambda _, __: "", beside=(_PARTS, _REQUEST, _ACTIVATIONS))
        self._parts, self._request = self.folder / _PARTS, self.folder / _REQUEST
        self.activations = self.folder / _ACTIVATIONS
        self._member = ""
        if not self._request.is_file() or self._request.read_text("utf-8") != request:
            self.empty()
            write_file(self._request, request.encode())
        self._make_folders()
        self._remove_unknown()

    def of_model(self, name: str) -> KeptParts:
        """The same place for the parts of one of several models, apart from those of others."""
        own = copy.copy(self)
        own._member = f"{self._member}{name}-"
        return own

    def begin_anew(self) -> None:
        """Forget all parts."""
        shutil.rmtree(self._parts)
        self._make_folders()

    def _remove_unknown(self) -> None:
        """Remove what a killed run left that nothing tells of."""
        for place in self.activations.iterdir():
            if place.is_dir() and not self._state(place.name).is_file():
                shutil.rmtree(place)
            elif not place.is_dir() and place.suffix != _STATE:
                place.unlink()

    def folder_of(self, run: str, network: int) -> Path:
        """Where the activations of a run are, by the number of the network that gave them."""
        place = self.activations / f"{self._member}{run}" / str(network)
        place.mkdir(parents=True, exist_ok=True)
        return place

    def remove_activations_of(self, run: str) -> None:
        """Let go of the activations of a run."""
        shutil.rmtree(self.activations / f"{self._member}{run}")

    def state_of(self, run: str) -> dict[str, Any]:
        """How far a run came, as it said with `keep_state`; empty where it did not."""
        place = self._state(run)
        found: dict[str, Any] = json.loads(place.read_bytes()) if place.is_file() else {}
        return found

    def keep_state(self, run: str, state: Mapping[str, Any]) -> None:
        """Keep how far a run came, in the place of what it said before."""
        write_file(self._state(run), json.dumps(state).encode())

    def _state(self, run: str) -> Path:
        return self.activations / f"{self._member}{run}{_STATE}"

    def _make_folders(self) -> None:
        for folder in (self._parts, self.activations):
            folder.mkdir(exist_ok=True)

    def is_worthless(self) -> bool:
        """Whether no part is finished."""
        return not any(self._parts.iterdir())

    def has(self, kind: str, place: int) -> bool:
        """Whether a part is finished."""
        return self._file(kind, place).is_file()

    def put(self, kind: str, place: int, measured: Measured) -> None:
        """Keep a part, which is then finished."""
        arrays = {name: _array(tensor) for name, tensor in measured.tensors.items()}
        entries = [(name, _DTYPES[array.dtype], array.shape) for name, array in arrays.items()]
        facts = json.dumps({"rows": dict(measured.rows), "same": dict(measured.same)})
        with staged_file(self._file(kind, place)) as staged:
            data = (array.reshape(-1).view(np.uint8).data for array in arrays.values())
            write_sealed_tensors(
                staged.descriptor, staged.place, entries, data, {_FACTS: facts}, _KIND
            )
            staged.replace()

    def part(self, kind: str, place: int) -> KeptPart:
        """A part that is finished."""
        return _read(self._file(kind, place))

    def of(self, kind: str) -> Iterator[KeptPart]:
        """The parts of a kind in the order of their places."""
        for file in sorted(self._parts.glob(f"{self._member}{kind}.*.safetensors")):
            yield _read(file)

    def _file(self, kind: str, place: int) -> Path:
        return self._parts / f"{self._member}{kind}.{place:05d}.safetensors"


def _read(file: Path) -> KeptPart:
    parsed = parse_file(file)
    facts = json.loads(parsed.metadata[_FACTS])
    return KeptPart(parsed.tensors, facts["rows"], facts["same"])


def _array(tensor: Tensor) -> Any:
    return np.ascontiguousarray(tensor.detach().cpu().numpy()).reshape(tuple(tensor.shape))
