"""A step of the chain: checkpoints that name one network in another way are read in the spelling of the result.

The result keeps the names of the checkpoint whose configuration it takes. What then has few names in common with it is
another network, or spelled in a way that nobody knows, and nothing of it is merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from weightsmith.checkpoints import Checkpoint, respelled
from weightsmith.findings import Finding, Severity
from weightsmith.recipes.language.mentioned import config_source_of
from weightsmith.recipes.language.problems import Problems
from weightsmith.recipes.language.schema import RecipeDocument
from weightsmith.recipes.resolution.formula import OutputTensor
from weightsmith.recipes.resolution.input_chain import Views
from weightsmith.recipes.resolution.inputs import Inputs
from weightsmith.recipes.resolution.views import View, view_of
from weightsmith.tensors import shown
from weightsmith.wording import counted

# Names are compared from their last field to this one.
_ENDS = 5


@dataclass(frozen=True, slots=True)
class InSpelling:
    """Puts checkpoints into the spelling of `like`, and tells in `problems` which it found otherwise."""

    like: Checkpoint
    problems: Problems

    def __call__(self, view: View) -> View:
        """The view under the names of `like`; the view itself where it has them, or is of another network."""
        found = respelled(view.checkpoint, self.like)
        if found is view.checkpoint:
            return view
        self.problems.add(_note(view, found, self.like))
        return view_of(found, view.label)


def spelled_views(document: RecipeDocument, inputs: Inputs) -> Views:
    """The chain in which every checkpoint has the names of the one whose configuration the result takes."""
    like = inputs.checkpoint(config_source_of(document))
    return inputs.then(InSpelling(like, inputs.problems))


def _note(view: View, found: Checkpoint, like: Checkpoint) -> Finding:
    before = view.checkpoint.tensors
    turned = [n for n, t in found.tensors.items() if n in before and before[n].shape != t.shape]
    lent = [n for n, t in found.tensors.items() if n not in before and t is like.tensors.get(n)]
    said, of = [], f" of {view.label!r}"
    if found.own_names:
        name, own = next(iter(found.own_names.items()))
        said.append(
            f"{counted(len(found.own_names), 'tensor')}{of} are named otherwise than in {like.identity} "
            f"({shown(own[0])} is {shown(name)} there)"
        )
        of = ""
    if turned:
        said.append(
            f"{counted(len(turned), 'tensor')}{of} are stored with their axes in another order ({shown(turned[0])})"
        )
    sentence = f"{' and '.join(said)} and are read as they are there"
    if lent:
        sentence += (
            f"; {counted(len(lent), 'tensor')} that it has no place for are those of {like.identity} "
            f"({shown(lent[0])})"
        )
    told = [f.sentence for f in found.about_files if f not in view.checkpoint.about_files]
    return Finding(Severity.NOTE, "spelling", view.label, "; ".join((sentence, *told)))


def have_common_names(
    document: RecipeDocument, frame: View, merged: Sequence[View], problems: Problems
) -> bool:
    """False with an error for every model that has less than half of its names, or of the frame's, in common with it.

    Modules and slices say themselves what belongs together.
    """
    if document.modules is not None or document.slices is not None:
        return True
    strange = [
        _strange(view, frame, shared)
        for view in merged
        if (shared := len(view.items.keys() & frame.items.keys())) * 2
        < min(len(view.items), len(frame.items))
    ]
    for finding in strange:
        problems.add(finding)
    return not strange


def _strange(view: View, frame: View, shared: int) -> Finding:
    mine, theirs = _pair(view.items, frame.items)
    return Finding(
        Severity.ERROR,
        "few-names",
        view.label,
        f"Only {shared} of the {counted(len(view.items), 'tensor')} of {view.label!r} have the name of a tensor of "
        f"{frame.label!r}: {shown(mine)} is one of the former, {shown(theirs)} one of the latter",
        "merge checkpoints of one network; where a model is only a part of another, merge that part with `modules:`",
    )


def _pair(mine: Mapping[str, OutputTensor], theirs: Mapping[str, OutputTensor]) -> tuple[str, str]:
    """A name of each that the other lacks, of tensors of one shape whose names end alike, if there are such."""
    own = [name for name in mine if name not in theirs]
    by_end: dict[tuple[str, tuple[int, ...]], str] = {}
    for name, item in theirs.items():
        if name not in mine:
            for end in _ends(name):
                by_end.setdefault((end, item.shape), name)
    for count in range(_ENDS, 0, -1):
        for name in own:
            found = by_end.get((".".join(name.split(".")[-count:]), mine[name].shape))
            if found is not None:
                return name, found
    return own[0], next(name for name in theirs if name not in mine)


def _ends(name: str) -> Iterator[str]:
    fields = name.split(".")
    return (".".join(fields[-count:]) for count in range(1, _ENDS + 1))
