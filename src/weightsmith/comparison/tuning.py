"""Which parameter of a method is its scale, and which values of it a league tries on the validation split.

The grids are fixed before any score is seen and the same on every family, so that methods are tuned with equal effort.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weightsmith.errors import RecipeError
from weightsmith.methods import REQUIRED, Base, MethodSpec, registry

STRENGTHS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0)
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)

# Methods whose strength has another name than `lambda`; of them, those where it runs from one model to another.
_SCALES = {"slerp": "t", "nearswap": "t", "wise_ft": "alpha", "expo": "alpha", "lines": "weight"}
_BETWEEN = frozenset({"slerp", "wise_ft"})
# What a league takes where a method has no default.
_GIVEN: Mapping[str, Mapping[str, Any]] = {"slerp": {"t": 0.5}, "metrics_weighted": {"by": "score"}}
_LEFT_OUT = {
    "passthrough": "it takes one model as it is",
    "layer_swapping": "which layers it takes is chosen by hand",
    "emr": "it makes a model for each task",
    "tall_masks": "it makes a model for each task",
}


@dataclass(frozen=True, slots=True)
class Entrant:
    """A method in a league: its parameters by default, its scale (None if it has none) and the values tried.

    `measured`: it needs statistics of the experts.
    """

    method: str
    has_base: bool
    defaults: Mapping[str, Any]
    scale: str | None
    grid: tuple[float, ...]
    measured: bool = False


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A method that cannot take part, and why."""

    method: str
    reason: str


def enter(
    method: str, experts: int, *, has_statistics: bool = False, has_base: bool = True
) -> Entrant | LeftOut:
    """A method as it takes part with so many experts, with statistics and a base or without, or why it cannot.

    Raises RecipeError for an unknown name.
    """
    spec = registry.get(method)
    reason = _reason_against(spec, experts, has_statistics, has_base)
    if reason is not None:
        return LeftOut(method, reason)
    scale = scale_of(spec)
    grid = () if scale is None else SHARES if method in _BETWEEN else STRENGTHS
    takes_base, given = has_base and spec.base is not Base.IGNORED, _GIVEN.get(method, {})
    return Entrant(method, takes_base, given, scale, grid, measured=bool(spec.statistics))


def scale_of(spec: MethodSpec) -> str | None:
    """The key of the parameter that scales what a method adds; None if it has none."""
    return "lambda" if "lambda" in spec.parameters else _SCALES.get(spec.name)


def _reason_against(
    spec: MethodSpec, experts: int, has_statistics: bool, has_base: bool
) -> str | None:
    if spec.name in _LEFT_OUT:
        return _LEFT_OUT[spec.name]
    if spec.base is Base.REQUIRED and not has_base:
        return "it needs the base that the models were made from"
    if spec.statistics and not has_statistics:
        return f"it needs statistics of the experts ({', '.join(spec.statistics)})"
    given = _GIVEN.get(spec.name, {})
    for key, default in spec.defaults().items():
        if default is REQUIRED and key not in given and not spec.statistics:
            return f"its parameter {key} has no default"
    try:
        spec.check_expert_count(experts, "league")
    except RecipeError:
        low, high = spec.experts
        wanted = (
            f"{low} or more" if high is None else str(low) if low == high else f"{low} to {high}"
        )
        return f"it merges {wanted} expert{'' if wanted == '1' else 's'}, not {experts}"
    return None
