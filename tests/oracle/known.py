"""Where weightsmith is known to be wrong. Every entry goes as soon as it is right, since the tests then say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .catalogue import Variant


@dataclass(frozen=True)
class Defect:
    """Structures in which some methods are wrong, and why."""

    reason: str
    structures: frozenset[str]
    concerns: Callable[[str, Variant], bool]


def _leaves_tensors_alone(method: str, variant: Variant) -> bool:
    """Some tensors are the base's whatever the experts are."""
    if method == "localize_and_stitch":
        return variant.get("preset") == "language_models" or bool(variant.get("exclude"))
    return method == "layer_swapping" and variant.get("rest") == "base"


DEFECTS = (
    Defect(
        "a modifier's statistic of the model leaves out the tensors that the method then leaves at the base",
        frozenset({"modify"}),
        _leaves_tensors_alone,
    ),
)


def known(method: str, variant: Variant, structure: str) -> str | None:
    """Why a variant fails in a structure, or None."""
    for defect in DEFECTS:
        if structure in defect.structures and defect.concerns(method, variant):
            return defect.reason
    return None
