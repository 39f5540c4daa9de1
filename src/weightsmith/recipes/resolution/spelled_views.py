"""A step of the chain: checkpoints that name one network in another way are read in the spelling of the result.

The result keeps the names of the checkpoint whose configuration it takes.
"""

from __future__ import annotations

from dataclasses import dataclass

from weightsmith.checkpoints import Checkpoint, respelled
from weightsmith.findings import Finding, Severity
from weightsmith.recipes.language.mentioned import config_source_of
from weightsmith.recipes.language.problems import Problems
from weightsmith.recipes.language.schema import RecipeDocument
from weightsmith.recipes.resolution.input_chain import Views
from weightsmith.recipes.resolution.views import View, view_of
from weightsmith.tensors import shown
from weightsmith.wording import counted


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
        self.problems.add(_note(view.label, found, self.like))
        return view_of(found, view.label)


def spelled_views(document: RecipeDocument, views: Views, problems: Problems) -> Views:
    """The chain in which every checkpoint has the names of the one whose configuration the result takes."""
    like = views.view(config_source_of(document)).checkpoint
    return views.then(InSpelling(like, problems))


def _note(label: str, found: Checkpoint, like: Checkpoint) -> Finding:
    name, own = next(iter(found.own_names.items()))
    return Finding(
        Severity.NOTE,
        "spelling",
        label,
        f"{counted(len(found.own_names), 'tensor')} of {label!r} are named otherwise than in {like.identity} "
        f"({shown(own)} is {shown(name)} there) and are read under its names",
    )
