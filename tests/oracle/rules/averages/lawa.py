"""Latest weight averaging (Kaddour, 2022, arXiv:2209.14981): the mean of the k latest checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from ...families import Family

VARIANTS: list[dict[str, Any]] = [{}, {"k": 2}, {"k": 1, "experts": 4}]


def lawa(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The mean of the window, or of all where there are fewer."""
    latest = family.experts[-parameters.get("k", 10) :]
    return {n: sum(e[n] for e in latest) / len(latest) for n in family.places}
