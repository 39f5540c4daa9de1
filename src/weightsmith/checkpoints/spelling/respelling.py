"""A checkpoint with its tensors under the names, and in the pieces, that another checkpoint of the same network has.

Names meet where both are canonical. What the other keeps in one tensor is joined from the parts, and what it keeps
apart is cut out, both as lazy views; where the two keep a matrix in another order, elements are read in the other's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from weightsmith.checkpoints.checkpoint import Checkpoint, assemble
from weightsmith.checkpoints.spelling.image_spellings import image_spelling_of
from weightsmith.checkpoints.spelling.library_spellings import LibrarySpelling, library_spelling_of
from weightsmith.checkpoints.spelling.part_views import Parts, Rearrange, Shape, cut, joined
from weightsmith.checkpoints.spelling.spelling_facts import HEADS
from weightsmith.checkpoints.spelling.spellings import spelling_of
from weightsmith.deltas import renamed
from weightsmith.findings import Finding, Severity
from weightsmith.tensors import LazyTensor

# As many fields may stand before the names of a body: `model.language_model.`, `base_model.model.model.`.
_DEEPEST = 3
# Less than this share of the larger's tensors in common, and two are not one body.
_SAME_BODY = 0.75


def respelled(checkpoint: Checkpoint, like: Checkpoint) -> Checkpoint:
    """The checkpoint in the spelling of another; itself where that changes nothing or the two are no one network.

    A tensor that the other lacks keeps its name. What the other has beside the weights of a network, where this one has
    no place for it (the schedule of noise in a single file of an image model), is the other's. Configuration, ties and
    all else stay; `own_names` has what the files call each renamed tensor. Of a tensor that is joined the parts must
    have one dtype.
    """
    mine, theirs = checkpoint.tensors, like.tensors
    common = mine.keys() & theirs.keys()
    is_nested = len(common) == min(len(mine), len(theirs))
    if is_nested and all(mine[name].shape == theirs[name].shape for name in common):
        return checkpoint
    best, most, fewer = None, len(common), min(len(mine), len(theirs))
    for meeting in _meetings(checkpoint, like):
        found = dict(meeting.found())
        shared = common & found.keys()
        is_turned = any(found[name].tensor.shape != mine[name].shape for name in shared)
        if len(found) > most or (is_turned and best is None):
            best, most = (found, meeting), len(found)
        if most >= fewer:
            break
    return checkpoint if best is None or 2 * most <= fewer else _rebuilt(checkpoint, *best)


class OneSpelling(Protocol):
    """A spelling, as `Spelling` of `spellings` and `ImageSpelling` of `image_spellings` are."""

    def canonical(self, name: str) -> str:
        """The name of a tensor that all spellings of a network have in common."""
        ...

    def parts(self, canonical: str, shape: Shape) -> tuple[Parts, ...]:
        """The ways in which files keep a tensor apart, by canonical names."""
        ...

    def counterpart(self, canonical: str) -> tuple[str, Rearrange] | None:
        """The canonical name of a tensor with the same numbers in another order, and how that is read as this one."""
        ...

    def as_shaped(self, canonical: str, tensor: LazyTensor, name: str, shape: Shape) -> LazyTensor:
        """A tensor under a name, with its axes as in `shape` where spellings differ in these."""
        ...

    def is_beside_weights(self, name: str) -> bool:
        """Whether a tensor is none of a network's weights, so that some spellings lack it."""
        ...


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
    spelling: OneSpelling

    def found(self) -> Iterator[tuple[str, _Found]]:
        """What there is of the other's tensors, by its names, in its order."""
        apart = self._cut()
        for canonical, name in self.theirs.items():
            if canonical in self.mine:
                own = self.mine[canonical]
                shape, tensor = self.like.tensors[name].shape, self.checkpoint.tensors[own]
                yield name, _Found(self.spelling.as_shaped(canonical, tensor, name, shape), (own,))
            elif canonical in apart:
                yield name, apart[canonical]
            else:
                whole = self._joined(canonical, name) or self._rearranged(canonical, name)
                if whole is not None:
                    yield name, whole

    def _rearranged(self, canonical: str, name: str) -> _Found | None:
        found = self.spelling.counterpart(canonical)
        if found is None or found[0] not in self.mine:
            return None
        own = self.mine[found[0]]
        return _Found(found[1](self.checkpoint.tensors[own], name), (own,))

    def _joined(self, canonical: str, name: str) -> _Found | None:
        shape = self.like.tensors[name].shape
        for parts in self.spelling.parts(canonical, shape):
            if all(part in self.mine for part in parts.names):
                own = tuple(self.mine[part] for part in parts.names)
                sources = [self.checkpoint.tensors[part] for part in own]
                whole = joined(name, shape, sources, parts)
                if whole is not None:
                    return _Found(whole, own)
        return None

    def _cut(self) -> dict[str, _Found]:
        """Parts of tensors that this checkpoint has in one and the other has apart, by canonical name."""
        found: dict[str, _Found] = {}
        for canonical, own in self.mine.items():
            if canonical in self.theirs:
                continue
            whole = self.checkpoint.tensors[own]
            for parts in self.spelling.parts(canonical, whole.shape):
                if all(part in self.theirs for part in parts.names):
                    names = [self.theirs[part] for part in parts.names]
                    shapes = [self.like.tensors[name].shape for name in names]
                    made = cut(whole, names, shapes, parts)
                    if made is not None:
                        views = (_Found(view, (own,)) for view in made)
                        found |= dict(zip(parts.names, views, strict=True))
        return found


def _meetings(checkpoint: Checkpoint, like: Checkpoint) -> Iterator[_Meeting]:
    """The two by names that all image models have in common where they are such, and by those of transformers.

    What its own mapping knows of a family that the table of facts has not comes last. None where two tensors of one of
    them have one canonical name, so that neither can be told to be it.
    """
    image, other_image = image_spelling_of(checkpoint.tensors), image_spelling_of(like.tensors)
    if image is not None and other_image is not None:
        mine, theirs = _canonical(image, checkpoint), _canonical(other_image, like)
        if mine is not None and theirs is not None:
            yield _Meeting(checkpoint, like, mine, theirs, other_image)
    spelling = spelling_of(checkpoint.config or like.config, checkpoint.tensors)
    other = spelling_of(like.config or checkpoint.config, like.tensors)
    mine, theirs = _canonical(spelling, checkpoint), _canonical(other, like)
    if mine is not None and theirs is not None:
        fitted = _in_body(mine, theirs)
        if len(fitted) == len(mine):
            yield _Meeting(checkpoint, like, fitted, theirs, other)
    library = library_spelling_of(checkpoint.config or like.config, checkpoint.tensors)
    other_library = library_spelling_of(like.config or checkpoint.config, like.tensors)
    if library is not None and other_library is not None:
        mine, theirs = _canonical(library, checkpoint), _canonical(other_library, like)
        if mine is not None and theirs is not None:
            yield _Meeting(checkpoint, like, mine, theirs, other_library)


def _canonical(spelling: OneSpelling, checkpoint: Checkpoint) -> dict[str, str] | None:
    names = {spelling.canonical(name): name for name in checkpoint.tensors}
    return names if len(names) == len(checkpoint.tensors) else None


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
        if own not in used and not meeting.spelling.is_beside_weights(own):
            name = canonical if in_memory else own
            made[name] = _Found(renamed(checkpoint.tensors[own], name), (own,))
    new = {one.own[0]: name for name, one in made.items()}
    lent = {
        name: tensor
        for name, tensor in meeting.like.tensors.items()
        if name not in made and meeting.spelling.is_beside_weights(name)
    }
    built = assemble(
        {name: one.tensor for name, one in made.items()} | lent,
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
        about_files=(*checkpoint.about_files, *_about(checkpoint, meeting)),
    )


def _about(checkpoint: Checkpoint, meeting: _Meeting) -> Iterator[Finding]:
    """Where the library's word was taken for it that two names are of one tensor."""
    if isinstance(meeting.spelling, LibrarySpelling):
        yield Finding(
            Severity.NOTE,
            "spelling",
            checkpoint.identity,
            "which name is which is told by the mapping of the transformers that is installed here",
        )
