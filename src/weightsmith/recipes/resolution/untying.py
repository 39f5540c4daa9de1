"""A step of the chain: tied checkpoints are given a head of their own, where others have one or always."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.checkpoints import Tying, own_head_name, untied, vocabulary_head
from weightsmith.errors import CompatibilityError
from weightsmith.recipes.resolution.input_chain import Transform, Views
from weightsmith.recipes.resolution.views import View, view_of


@dataclass(frozen=True, slots=True)
class OwnHeads:
    """Gives the tied checkpoints among `labels` a head called `head`, which reads as their embedding."""

    head: str
    labels: frozenset[str]

    def __call__(self, view: View) -> View:
        """The view with the head; the view itself for what is not tied, and for all that is not merged here."""
        if view.label not in self.labels or view.checkpoint.tying is not Tying.TIED:
            return view
        return view_of(untied(view.checkpoint, self.head), view.label)


def untied_views(views: Views, merged: Sequence[View], *, is_always: bool = False) -> Views:
    """The chain in which all checkpoints of `merged` have a head where one of them has, or always.

    A recipe's result is not untied: a second head would count twice in statistics over its whole model, and draw
    random masks of its own. Raises CompatibilityError for a tied checkpoint whose head's name is not known.
    """
    step = _own_heads(merged, is_always)
    return views if step is None else views.then(step)


def _own_heads(merged: Sequence[View], is_always: bool) -> Transform | None:
    own = [view.checkpoint for view in merged if view.checkpoint.tying is Tying.UNTIED]
    tied = [v for v in merged if not v.is_recipe and v.checkpoint.tying is Tying.TIED]
    if not tied:
        return None
    head = vocabulary_head(own[0].tensors, own[0].places) if own else None
    if head is None and is_always:
        head = own_head_name(tied[0].checkpoint)
        if head is None:
            raise CompatibilityError(
                f"{tied[0].checkpoint.identity} stores no head, and what its network calls it is not known here: keep "
                "it tied, or merge it with a checkpoint that has one."
            )
    return None if head is None else OwnHeads(head, frozenset(view.label for view in tied))
