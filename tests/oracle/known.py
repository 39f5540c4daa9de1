"""Where weightsmith is known to be wrong. Every entry goes as soon as it is right, since the tests then say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .catalogue import Variant


@dataclass(frozen=True)
class Defect:
    """A structure in which some methods are wrong, and why."""

    reason: str
    structures: frozenset[str]
    concerns: Callable[[str, Variant], bool]


MODEL_WIDE = frozenset(
    "ties dare_ties pcb emr consensus tall_masks localize_and_stitch layer_importance lines".split()
)
NESTED = frozenset({"nested_expert", "nested_base", "rounded_expert", "missing"})
"""Methods that can measure something over the whole model."""

DEFECTS: tuple[Defect, ...] = ()


def known(method: str, variant: Variant, structure: str) -> str | None:
    """Why a variant fails in a structure, or None."""
    for defect in DEFECTS:
        if structure in defect.structures and defect.concerns(method, variant):
            return defect.reason
    return None
