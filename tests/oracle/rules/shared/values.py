"""Parameters of a rule, whichever way they are given.

A value is a scalar, a list with one entry per expert, or a mapping from names of tensors to either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Parameters = Mapping[str, Any]
RESERVED = frozenset({"preset", "experts", "base"})


def with_preset(parameters: Parameters, presets: Mapping[str, Parameters]) -> dict[str, Any]:
    """The parameters over the defaults of their preset, which stand over the paper's."""
    preset = parameters.get("preset", "paper")
    return {**presets["paper"], **presets[preset], **parameters}


def shared(parameters: Parameters, key: str, name: str) -> Any:
    """A parameter that all experts share, at one tensor."""
    value = parameters[key]
    return value[name] if isinstance(value, Mapping) else value


def each(parameters: Parameters, key: str, name: str, count: int) -> list[Any]:
    """A parameter with one value per expert, at one tensor."""
    value = shared(parameters, key, name)
    return list(value) if isinstance(value, list | tuple) else [value] * count
