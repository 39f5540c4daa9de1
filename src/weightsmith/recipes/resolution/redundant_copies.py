"""Tensors that some checkpoints store twice under two names, and others once, which are no missing tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weightsmith.checkpoints import Tying
from weightsmith.recipes.resolution.views import View
from weightsmith.tensors import Kind


def redundant_names(views: Sequence[View]) -> frozenset[str]:
    """The names that the views which have them store as a copy of a tensor that all have, and that others lack.

    Such as the head of tied models where one of them was saved with a copy of its table as head. The result has that
    tensor once, under the name that all have.
    """
    groups = {group for view in views for group in view.ties}
    return frozenset(
        name for group in groups for name in group if _is_redundant(name, group, views)
    )


def _is_redundant(name: str, group: frozenset[str], views: Sequence[View]) -> bool:
    holders = [view for view in views if name in view.items]
    lacking = [view for view in views if name not in view.items]
    if not lacking or not all(_ties(view.ties, group) for view in holders):
        return False
    others = group - {name}
    if not any(all(other in view.items for view in views) for other in others):
        return False
    is_head = holders[0].items[name].place.kind is Kind.HEAD
    return not is_head or all(view.checkpoint.tying is Tying.TIED for view in lacking)


def _ties(ties: Iterable[frozenset[str]], group: frozenset[str]) -> bool:
    return any(group <= own for own in ties)
