"""The base that a folder of coded tensors names and does not hold: found again, and compared with its digests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from weightsmith.checkpoints.checkpoint import Checkpoint
from weightsmith.checkpoints.locate import member_of
from weightsmith.deltas import VerifiedTensor
from weightsmith.errors import CheckpointError
from weightsmith.tensors import LazyTensor, expanded, shown

# The folders whose bases are being opened, outermost first: a base may be coded against another base.
_opening: ContextVar[tuple[Path, ...]] = ContextVar("opening", default=())
LONGEST_CHAIN = 32


@dataclass(frozen=True, slots=True)
class Bases:
    """Where the bases lie now that folders call by a reference, and how one is opened.

    `given` is the base of the folder that is opened, whatever it calls it; `by_reference` has those of bases behind
    that base too.
    """

    open: Callable[[str | Path], Checkpoint]
    given: str | Path | None = None
    by_reference: Mapping[str, Path] = field(default_factory=dict)

    def place_of(self, reference: str) -> str | Path | None:
        """Where the base called `reference` was said to lie, or None."""
        return self.by_reference.get(reference) if self.given is None else self.given


def open_base(
    what: str, folder: Path, reference: str, places: Sequence[str], bases: Bases
) -> Checkpoint:
    """The base of `folder`, which messages call `what`: as `bases` says, or the first of `places`, or `reference`.

    A place is a path relative to the folder or to the working folder, or a Hub id. Raises CheckpointError where there
    is none, where the folder is its own base by some detour, and for a chain of more than 32 bases.
    """
    above = _opening.get()
    folder = folder.resolve()
    if folder in above:
        raise CheckpointError(
            f"The {what} {shown(folder)} is coded against itself, by way of {len(above)} other folder(s): give a base "
            "that does not depend on it."
        )
    if len(above) >= LONGEST_CHAIN:
        raise CheckpointError(
            f"The {what} {shown(folder)} ends a chain of more than {LONGEST_CHAIN} bases: unpack one of them."
        )
    token = _opening.set((*above, folder))
    try:
        return _found(what, folder, reference, places, bases)
    finally:
        _opening.reset(token)


def _found(
    what: str, folder: Path, reference: str, places: Sequence[str], bases: Bases
) -> Checkpoint:
    given = bases.place_of(reference)
    if given is not None:
        return bases.open(given)
    for place in places:
        path = _existing(folder, place)
        if path is not None:
            return bases.open(path)
    if not reference:
        raise CheckpointError(
            f"The {what} {shown(folder)} does not say where its base is: say it with --base."
        )
    try:
        return bases.open(reference)
    except CheckpointError as error:
        raise CheckpointError(
            f"The {what} {shown(folder)} does not store its base {reference!r}, which is not to be found: put it "
            "back, or say where it is with --base (--input REF=PATH where a record is replayed)."
        ) from error


def _existing(folder: Path, place: str) -> Path | None:
    """The checkpoint or bundle member at a place on record; None if it is not there, or is no path at all."""
    with suppress(OSError, RuntimeError, ValueError):
        for path in (folder / place, expanded(place)):
            if path.exists() or member_of(path) is not None:
                return path
    return None


def base_tensor(what: str, base: Checkpoint, name: str, digest: str, reference: str) -> LazyTensor:
    """A tensor of the base that is compared with `digest` before its first element is handed out.

    Raises CheckpointError where the base has no tensor of that name.
    """
    if name not in base.tensors:
        raise CheckpointError(
            f"{base.identity} is not the base of the {what}, for it has no tensor {shown(name)}: give the base "
            f"{reference!r} that the {what} was made from."
        )
    advice = f"give the base {reference!r} that the {what} was made from"
    return VerifiedTensor(base.tensors[name], digest, advice)


def part(
    folder: Path, stored: Mapping[str, LazyTensor], name: str, digest: str | None
) -> LazyTensor:
    """A stored part that is compared with its digest before its first element is handed out.

    Raises CheckpointError where it is missing or has no digest on record.
    """
    if name not in stored or digest is None:
        raise CheckpointError(
            f"{shown(folder)} cannot be read, the part {shown(name)} is missing: it is damaged, or was taken away from "
            "what it shares with others; fetch it or make it again."
        )
    return VerifiedTensor(stored[name], digest, "it is damaged, fetch it or make it again")
