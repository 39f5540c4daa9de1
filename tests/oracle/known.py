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


DEFECTS: tuple[Defect, ...] = ()


def known(method: str, variant: Variant, structure: str) -> str | None:
    """Why a variant fails in a structure, or None."""
    for defect in DEFECTS:
        if structure in defect.structures and defect.concerns(method, variant):
            return defect.reason
    return None
