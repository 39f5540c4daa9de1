"""What the merges of one recipe give: output tensors, and what gave them their frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from weightsmith.recipes.language.mentioned import ModelLike
from weightsmith.recipes.resolution.formula import OutputTensor
from weightsmith.recipes.resolution.input_chain import Views
from weightsmith.recipes.resolution.views import View
from weightsmith.tensors import DType


@dataclass(frozen=True, slots=True)
class RecipeScope:
    """One recipe as its models see it: the views that it takes, and what recipes inside it inherit.

    `name` tells its merges from those of other recipes, `path` is where it stands in the outermost one.
    """

    views: Views
    semantics: str
    name: str
    seed: int
    path: str = ""


@dataclass(frozen=True, slots=True)
class RecipeResult:
    """The outputs of one recipe with what gave them their frame.

    `inputs` are the views that were merged; `bases` holds the base's tensor for each output that
    has one; `stack` is the prefix of the layers that `layer_sources` is about. `model_view` gives the view of
    a model as this recipe takes it, for a part of the recipe that is called by its place.
    """

    items: tuple[OutputTensor, ...]
    config_source: View
    base: View | None
    inputs: tuple[View, ...]
    bases: Mapping[str, OutputTensor]
    layer_sources: tuple[int, ...] | None
    stack: str | None
    scope: RecipeScope
    output_dtype: DType | None
    model_view: Callable[[ModelLike, str], View]
