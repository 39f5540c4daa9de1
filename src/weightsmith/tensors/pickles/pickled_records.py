"""Pickles of objects read as records: the name of a class, and what was stored of it. Nothing of them is run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightsmith.errors import CheckpointError
from weightsmith.tensors.files.small_files import read_small
from weightsmith.tensors.messages import shown
from weightsmith.tensors.pickles.pickle_machine import (
    FORGETFUL,
    ForgetfulMachine,
    Global,
    Handler,
    PickleRefused,
)
from weightsmith.tensors.pickles.pickle_reader import LARGEST_PICKLE_BYTES, known_or_inert
from weightsmith.tensors.pickles.torch_globals import Inert


@dataclass(frozen=True, slots=True, eq=False)
class PickledRecord:
    """An object of a class called `name`: its attributes, as far as they were stored in a dict."""

    name: str
    attributes: dict[str, Any] = field(default_factory=dict)


def read_pickled_records(path: Path) -> Any:
    """What a pickle holds: containers, numbers, texts, and records of its objects, which may be keys of dicts.

    Raises CheckpointError for a file that is none, is too large or damaged.
    """
    try:
        data = read_small(path, LARGEST_PICKLE_BYTES)
        return _RecordMachine(data, known_or_inert, _no_storage, Inert("unknown")).run()
    except OSError as error:
        raise CheckpointError(f"{shown(path)} cannot be read ({error.strerror}).") from error
    except PickleRefused as error:
        raise CheckpointError(
            f"{shown(path)}: the pickle is refused because {error}: save it again."
        ) from None


class _RecordMachine(ForgetfulMachine):
    """Makes a record of an object where its class would be called."""

    def make(self) -> None:
        """A record without attributes."""
        kind = self._stack[-2]
        del self._stack[-2:]
        self._push_container(PickledRecord(kind.name if type(kind) is Global else ""))

    def build(self) -> None:
        """Keep attributes."""
        state = self._stack.pop()
        target = self._stack[-1]
        if type(target) is PickledRecord and type(state) is dict:
            target.attributes.update(state)

    def _set_items(self, items: list[Any]) -> None:
        pairs = list(zip(items[::2], items[1::2], strict=True))
        super()._set_items(
            [x for pair in pairs if type(pair[0]) is not PickledRecord for x in pair]
        )
        if self._stack[-1] is not self._unknown:
            recorded = (pair for pair in pairs if type(pair[0]) is PickledRecord)
            self._target(dict).update(recorded)

    def _handlers(self) -> dict[int, Handler]:
        return _RECORDING


_RECORDING: dict[int, Handler] = {
    **FORGETFUL,
    ord("b"): _RecordMachine.build,  # type: ignore[dict-item]
    0x81: _RecordMachine.make,  # type: ignore[dict-item]
}


def _no_storage(_: Any) -> Any:
    raise PickleRefused("it refers to an object outside of itself")
