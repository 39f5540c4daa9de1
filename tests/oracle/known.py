"""Where weightsmith is known to be wrong. Every entry goes as soon as it is right, since the tests then say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .catalogue import Variant
from .structures import STRUCTURES


@dataclass(frozen=True)
class Defect:
    """Structures in which some methods are wrong, and why."""

    reason: str
    structures: frozenset[str]
    concerns: Callable[[str, Variant, str], bool]


def _leaves_tensors_alone(method: str, variant: Variant, _: str) -> bool:
    """Some tensors are the base's whatever the experts are."""
    if method == "localize_and_stitch":
        return variant.get("preset") == "language_models" or bool(variant.get("exclude"))
    return method == "layer_swapping" and variant.get("rest") == "base"


def _is_approached(method: str, variant: Variant, structure: str) -> bool:
    """The median is found step by step, and not on the way."""
    if method != "geometric_median":
        return False
    several, weights = variant.get("experts", 3) > 2, variant.get("weight")
    if structure == "gradients":  # where two experts have different weights, too
        return variant.get("experts") != 1
    if structure == "tied":
        return several and weights is not None and len(weights) == 3
    return several and (structure != "files" or weights != [3.0, 1.0, 1.0])


ALL = frozenset(
    [*STRUCTURES, "memory", "files", "tied", "equal"],
)
DEFECTS = (
    Defect(
        "two hundred of Weiszfeld's steps end before the median where it lies near an expert",
        ALL,
        _is_approached,
    ),
    Defect(
        "a modifier's statistic of the model leaves out the tensors that the method then leaves at the base",
        frozenset({"modify"}),
        _leaves_tensors_alone,
    ),
)


def known(method: str, variant: Variant, structure: str) -> str | None:
    """Why a variant fails in a structure, or None."""
    for defect in DEFECTS:
        if structure in defect.structures and defect.concerns(method, variant, structure):
            return defect.reason
    return None
