"""Where weightsmith is known to differ. Every entry goes as soon as it agrees, since the tests then say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .catalogue import Variant


@dataclass(frozen=True)
class Defect:
    """Structures in which some methods differ from their oracles, and why."""

    reason: str
    structures: frozenset[str]
    concerns: Callable[[str, Variant, str], bool]


DEFECTS = (
    Defect(
        "embeddings and heads are averaged, which the authors' vision code leaves at the base",
        frozenset({"memory"}),
        lambda method, variant, _: method == "wudi" and variant.get("preset") == "original",
    ),
    Defect(
        "in directions that rank_tolerance counts as 0 the result is the mean of the task vectors",
        frozenset({"memory"}),
        lambda method, variant, _: (
            method == "wudi" and float(variant.get("rank_tolerance", 0.0)) > 0.01
        ),
    ),
)


def known(method: str, variant: Variant, structure: str) -> str | None:
    """Why a variant fails in a structure, or None."""
    for defect in DEFECTS:
        if structure in defect.structures and defect.concerns(method, variant, structure):
            return defect.reason
    return None
