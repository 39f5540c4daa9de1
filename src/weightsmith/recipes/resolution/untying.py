"""A step of the chain: tied checkpoints are given a head of their own where they are merged with one that has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.checkpoints import Tying, untied, vocabulary_head
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


def untied_views(views: Views, merged: Sequence[View]) -> Views:
    """The chain in which all checkpoints of `merged` have a head where one of them has.

    A recipe's result is not untied: a second head would count twice in statistics over its whole model, and draw
    random masks of its own.
    """
    step = _own_heads(merged)
    return views if step is None else views.then(step)


def _own_heads(merged: Sequence[View]) -> Transform | None:
    own = [view.checkpoint for view in merged if view.checkpoint.tying is Tying.UNTIED]
    head = vocabulary_head(own[0].tensors, own[0].places) if own else None
    tied = [v.label for v in merged if not v.is_recipe and v.checkpoint.tying is Tying.TIED]
    return None if head is None or not tied else OwnHeads(head, frozenset(tied))
