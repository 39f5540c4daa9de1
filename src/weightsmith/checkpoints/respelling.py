"""A checkpoint with its tensors under the names, and in the pieces, that another checkpoint of the same network has.

Names meet where both are canonical. What the other keeps in one tensor is joined from the pieces, and what it keeps
apart is cut out, both as lazy views: bytes are read as they are, and no tensor is turned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from weightsmith.checkpoints.checkpoint import Checkpoint, assemble
from weightsmith.checkpoints.spelling_facts import HEADS
from weightsmith.checkpoints.spellings import Spelling, spelling_of
from weightsmith.deltas import StackedTensors, Stretch, renamed
from weightsmith.tensors import LazyTensor

# As many fields may stand before the names of a body: `model.language_model.`, `base_model.model.model.`.
_DEEPEST = 3
# Less than this share of the larger's tensors in common, and two are not one body.
_SAME_BODY = 0.75


def respelled(checkpoint: Checkpoint, like: Checkpoint) -> Checkpoint:
    """The checkpoint in the spelling of another; itself where that changes nothing or the two are no one network.

    A tensor that the other lacks keeps its name. Configuration, ties and all else stay; `own_names` has what the files
    call each renamed tensor. Of a tensor that is joined the pieces must have one dtype.
    """
    mine, theirs = checkpoint.tensors, like.tensors
    if mine.keys() <= theirs.keys() or theirs.keys() <= mine.keys():
        return checkpoint
    meeting = _meeting(checkpoint, like)
    if meeting is None:
        return checkpoint
    found = dict(meeting.found())
    shared = len(mine.keys() & theirs.keys())
    if len(found) <= shared or 2 * len(found) <= min(len(mine), len(theirs)):
        return checkpoint
    return _rebuilt(checkpoint, found, meeting)


@dataclass(frozen=True, slots=True)
class _Found:
    """A tensor under the other's name, and what the file calls all that it is made of."""

    tensor: LazyTensor
    own: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Meeting:
    """Tensors of one checkpoint by canonical name, and the names of the other by canonical name."""

    checkpoint: Checkpoint
    like: Checkpoint
    mine: Mapping[str, str]
    theirs: Mapping[str, str]
    spelling: Spelling

    def found(self) -> Iterator[tuple[str, _Found]]:
        """What there is of the other's tensors, by its names, in its order."""
        cut = self._cut()
        for canonical, name in self.theirs.items():
            if canonical in self.mine:
                own = self.mine[canonical]
                yield name, _Found(renamed(self.checkpoint.tensors[own], name), (own,))
            elif canonical in cut:
                yield name, cut[canonical]
            else:
                joined = self._joined(canonical, name)
                if joined is not None:
                    yield name, joined

    def _joined(self, canonical: str, name: str) -> _Found | None:
        shape = self.like.tensors[name].shape
        pieces = self.spelling.pieces(canonical, shape)
        if not pieces or any(piece not in self.mine for piece in pieces):
            return None
        own = tuple(self.mine[piece] for piece in pieces)
        sources = tuple(self.checkpoint.tensors[piece] for piece in own)
        whole = StackedTensors(name, shape, sources)
        fits = sum(s.numel for s in sources) == whole.numel and _of_one_row(shape, sources)
        return _Found(whole, own) if fits else None

    def _cut(self) -> dict[str, _Found]:
        """Pieces of tensors that this checkpoint has in one and the other has apart, by canonical name."""
        found: dict[str, _Found] = {}
        for canonical, own in self.mine.items():
            if canonical in self.theirs:
                continue
            whole = self.checkpoint.tensors[own]
            pieces = self.spelling.pieces(canonical, whole.shape)
            if not pieces or any(piece not in self.theirs for piece in pieces):
                continue
            wanted = [self.like.tensors[self.theirs[piece]] for piece in pieces]
            if sum(w.numel for w in wanted) != whole.numel or not _of_one_row(whole.shape, wanted):
                continue
            first = 0
            for piece, other in zip(pieces, wanted, strict=True):
                stretch = Stretch(self.theirs[piece], whole, first, other.shape)
                found[piece] = _Found(stretch, (own,))
                first += other.numel
        return found


def _of_one_row(shape: tuple[int, ...], tensors: Iterable[LazyTensor]) -> bool:
    """Whether rows of all have one length and numbers of one kind."""
    listed = list(tensors)
    rank = min(len(shape), 2)
    alike = all(t.shape[1:] == shape[len(shape) - rank + 1 :] for t in listed)
    return alike and len({t.dtype for t in listed}) == 1


def _meeting(checkpoint: Checkpoint, like: Checkpoint) -> _Meeting | None:
    """None where two tensors of one of them have one canonical name, so that neither can be told to be it."""
    spelling = spelling_of(checkpoint.config or like.config, checkpoint.tensors)
    other = spelling_of(like.config or checkpoint.config, like.tensors)
    mine = {spelling.canonical(name): name for name in checkpoint.tensors}
    theirs = {other.canonical(name): name for name in like.tensors}
    if len(mine) < len(checkpoint.tensors) or len(theirs) < len(like.tensors):
        return None
    fitted = _in_body(mine, theirs)
    return _Meeting(checkpoint, like, fitted, theirs, other) if len(fitted) == len(mine) else None


def _in_body(mine: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, str]:
    """Names with the fields before them that the other has and they lack, or without those that it lacks.

    Only where the two are one body: a language model is not put into a vision-language one, which `modules:` are for.
    """
    best, most = dict(mine), len(mine.keys() & theirs.keys())
    counts = [sum(not name.startswith(HEADS) for name in names) for names in (mine, theirs)]
    most = max(most, int(_SAME_BODY * max(counts)))
    for more in (*_beginnings(theirs), *_beginnings(mine)):
        added = {more + name if more + name in theirs else name: own for name, own in mine.items()}
        bare = {_without(more, name, theirs): own for name, own in mine.items()}
        for found in (added, bare):
            shared = len(found.keys() & theirs.keys())
            if shared > most:
                best, most = found, shared
    return best


def _without(beginning: str, name: str, theirs: Mapping[str, str]) -> str:
    rest = name.removeprefix(beginning)
    return rest if rest in theirs else name


def _beginnings(names: Iterable[str]) -> list[str]:
    """The first fields that most names have in common, with a dot behind."""
    counts: dict[str, int] = {}
    total = 0
    for name in names:
        if name.startswith(HEADS):
            continue
        total += 1
        end = 0
        for _ in range(_DEEPEST):
            end = name.find(".", end) + 1
            if not end:
                break
            counts[name[:end]] = counts.get(name[:end], 0) + 1
    return [beginning for beginning, count in counts.items() if 2 * count > total]


def _rebuilt(checkpoint: Checkpoint, found: Mapping[str, _Found], meeting: _Meeting) -> Checkpoint:
    used = {own for one in found.values() for own in one.own}
    in_memory = all(canonical == name for canonical, name in meeting.theirs.items())
    made = dict(found)
    for canonical, own in meeting.mine.items():
        if own not in used:
            name = canonical if in_memory else own
            made[name] = _Found(renamed(checkpoint.tensors[own], name), (own,))
    new = {one.own[0]: name for name, one in made.items()}
    built = assemble(
        {name: one.tensor for name, one in made.items()},
        checkpoint.config,
        path=checkpoint.path,
        source=checkpoint.source,
    )
    return replace(
        checkpoint,
        tensors=built.tensors,
        places=built.places,
        stacks=built.stacks,
        ties=tuple(frozenset(new.get(name, name) for name in group) for group in checkpoint.ties),
        stored_as={
            name: checkpoint.stored_as[one.own[0]]
            for name, one in made.items()
            if one.own[0] in checkpoint.stored_as
        },
        own_names={name: one.own for name, one in made.items() if (name,) != one.own},
    )
