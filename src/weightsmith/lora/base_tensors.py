"""The base's tensor where what an adapter changes depends on it: one check for all who need one."""

from __future__ import annotations

from weightsmith.checkpoints import Checkpoint
from weightsmith.errors import CompatibilityError
from weightsmith.tensors import LazyTensor, shown


def base_tensor(
    base: Checkpoint | None, name: str, why: str, shape: tuple[int, ...] | None = None
) -> LazyTensor:
    """The tensor `name` of the base, of that shape if one is given.

    `why` says what it is needed for, as a sentence without its end: "X replaces W whole". Raises CompatibilityError
    where there is no base, no such tensor, or one of another shape.
    """
    if base is None:
        raise CompatibilityError(
            f"{why}, so what it changes depends on the base: name the base of the adapters (`base_model` in a recipe, "
            "--base on the command line)."
        )
    stored = base.tensors.get(name)
    if stored is None:
        raise CompatibilityError(
            f"{why}, but {base.identity} has no tensor {shown(name)}; give the base that the adapter was trained on."
        )
    if shape not in (None, stored.shape):
        raise CompatibilityError(
            f"{why}, but {stored.location} has the shape {list(stored.shape)} and not {list(shape or ())}; give the "
            "base that the adapter was trained on."
        )
    return stored
