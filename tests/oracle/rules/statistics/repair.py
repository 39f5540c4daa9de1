"""REPAIR (Jordan et al., ICLR 2023, arXiv:2211.08403), given what was measured for it.

    W' = s W for tensors of two axes and more, with a factor s for each element;   v' = what was measured for vectors v

Tensors of which nothing was measured stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from ...families import Family

STATISTICS = "repair"
EXPERTS = 1
VARIANTS: list[dict[str, Any]] = [{}]
TOLERANCE = 1e-12


def repair(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The repaired model; there are no parameters."""
    assert not parameters
    (expert,), (measured,) = family.experts, family.statistics
    repaired = {}
    for name, own in expert.items():
        found = measured.get(name)
        repaired[name] = own if found is None else found if own.ndim < 2 else own * found
    return repaired
