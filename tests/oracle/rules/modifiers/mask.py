"""Masks of task vectors: tau'_i = m_i tau_i, element by element."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...families import Family

STATISTICS = "mask"
VARIANTS: list[dict[str, Any]] = [{}]


def mask(family: Family, _parameters: dict) -> Family:
    """The family with task vectors under masks."""
    experts = []
    for expert, masks in zip(family.experts, family.statistics, strict=True):
        made = {n: family.base[n] + m * (expert[n] - family.base[n]) for n, m in masks.items()}
        experts.append({**expert, **made})
    return replace(family, experts=experts)
