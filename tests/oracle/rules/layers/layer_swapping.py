"""Layer swapping (Bandarkar et al., ICLR 2025, arXiv:2410.01335).

    theta^l = (1 - s_l) theta_1^l + s_l theta_2^l
    s_l = 1 for l < b and l >= L - u;   1/2 in the t layers of the middle next to each swap;   0 else

select: measured: the middle [b, L - u) is the run of layers with the largest sum of c_1^l - c_2^l, the longest and
then the first of equals, c as in layer_importance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..shared.depth import layer_changes, stacks_of
from ..shared.values import with_preset

if TYPE_CHECKING:
    import numpy as np

    from ...families import Family

EXPERTS = 2
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "bottom": 0,
        "top": 0,
        "transition": 0,
        "select": "given",
        "measure": "relative",
        "rest": "second",
    }
}
VARIANTS: list[dict[str, Any]] = [
    {"bottom": 1, "top": 1},
    {"select": "measured"},
    {"bottom": 1, "transition": 1, "rest": "average"},
    {"select": "measured", "measure": "norm", "transition": 1, "rest": "base"},
    {"top": 1, "transition": 1, "base": False, "rest": "first"},
    {"bottom": 1, "top": 1, "transition": 1, "rest": "average"},
    {},
]


def layer_swapping(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Middle layers of the first expert, the outer ones of the second."""
    given = with_preset(parameters, PRESETS)
    shares = {
        stack: _shares(family, stack, depth, given) for stack, depth in stacks_of(family).items()
    }
    first, second = family.experts
    rest = {"first": 0.0, "second": 1.0, "average": 0.5}.get(given["rest"])
    merged = {}
    for name, place in family.places.items():
        share = rest if place.layer is None else shares[place.stack][place.layer]
        if share is None:
            merged[name] = family.base[name]
        else:
            merged[name] = (1 - share) * first[name] + share * second[name]
    return merged


def _shares(family: Family, stack: str, depth: int, given: dict[str, Any]) -> list[float]:
    """s_l of a stack."""
    low, high = given["bottom"], depth - given["top"]
    if given["select"] == "measured":
        low, high = _middle(family, stack, depth, given["measure"])
    near = given["transition"]
    found = []
    for layer in range(depth):
        if not low <= layer < high:
            found.append(1.0)
        elif (low > 0 and layer < low + near) or (high < depth and layer >= high - near):
            found.append(0.5)
        else:
            found.append(0.0)
    return found


def _middle(family: Family, stack: str, depth: int, measure: str) -> tuple[int, int]:
    both = [layer_changes(family, i, stack, measure) for i in range(2)]
    scaled = [{layer: x / sum(c.values()) for layer, x in c.items()} for c in both]
    gain = [scaled[0].get(k, 0.0) - scaled[1].get(k, 0.0) for k in range(depth)]
    runs = [(b, e) for b in range(depth) for e in range(b + 1, depth + 1)]
    return max(runs, key=lambda run: (sum(gain[run[0] : run[1]]), run[1] - run[0], -run[0]))
