"""The chain from checkpoints as they are opened to the views that a recipe merges: a step for each thing done to them.

A step is a function from the view that it follows to the view that it gives. It changes nothing that somebody else
holds: what was looked up in a shorter chain stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from weightsmith.adapters import Reference
from weightsmith.checkpoints import Checkpoint
from weightsmith.recipes.resolution.views import View, view_of
from weightsmith.tensors import LazyTensor


class Transform(Protocol):
    """One step of a chain.

    Given the view that it follows, it gives another one of the same label, or that view itself where there is nothing
    to do. Two steps for different recipes of one resolution may add tensors under a label, but not give other values
    to those of one name: such a step is made once, for the recipe with all that are inside it.
    """

    def __call__(self, view: View) -> View: ...


class Views(Protocol):
    """The views of a recipe's checkpoints, by what the recipe calls them.

    Each is made once, and stays the same object.
    """

    def view(self, reference: Reference) -> View:
        """The view of a checkpoint at this end of the chain."""
        ...

    def then(self, transform: Transform) -> Views:
        """The chain with one more step; this one stays as it is."""
        ...


class Sources:
    """What leaves of formulas are looked up in: by label, a checkpoint with the tensors of all views of that label."""

    def __init__(self) -> None:
        self.checkpoints: dict[str, Checkpoint] = {}

    def add(self, label: str, found: Checkpoint) -> None:
        """Take in what a view of that label shows."""
        known = self.checkpoints.get(label)
        if known is not None and not known.tensors.keys() <= found.tensors.keys():
            found = replace(
                found,
                tensors={**known.tensors, **found.tensors},
                places={**known.places, **found.places},
                stored_as={**known.stored_as, **found.stored_as},
            )
        self.checkpoints[label] = found


@dataclass(eq=False, slots=True)
class TransformedViews:
    """A chain of one step more than `before`; what its step makes is added to `sources`."""

    before: Views
    transform: Transform
    sources: Sources
    _made: dict[Reference, View] = field(default_factory=dict)

    def view(self, reference: Reference) -> View:
        """The view of a checkpoint at this end of the chain."""
        if reference not in self._made:
            followed = self.before.view(reference)
            made = self.transform(followed)
            if made is not followed:
                self.sources.add(made.label, made.checkpoint)
            self._made[reference] = made
        return self._made[reference]

    def then(self, transform: Transform) -> TransformedViews:
        """The chain with one more step; this one stays as it is."""
        return TransformedViews(self, transform, self.sources)


def with_tensors(view: View, tensors: Mapping[str, LazyTensor]) -> View:
    """A view that reads other tensors in place of some of its own, under the same names.

    For the dtype of the result they count as what they replace: a table with a few computed rows reads as float32
    and is stored as before.
    """
    old = view.checkpoint
    stored_as = {**old.stored_as, **{name: old.dtype_of(name) for name in tensors}}
    checkpoint = replace(old, tensors={**old.tensors, **tensors}, stored_as=stored_as)
    return view_of(checkpoint, view.label)
