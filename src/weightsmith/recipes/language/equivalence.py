"""Which parameters mergekit may leave to itself, because its own value gives the same result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from weightsmith.methods import registry

_ON_DROPPED = frozenset(
    {"epsilon", "gamma", "keep_at_least", "rescale", "rescale_floor", "trim_scope"}
)


def left_to_mergekit(
    mapping: Mapping[str, Any], spec: registry.MethodSpec, semantics: str
) -> frozenset[str]:
    """The parameters for which mergekit's default does the same as what a recipe asks for, in every tensor.

    `mapping` is the recipe as plain data, of which all merges have the method `spec`. A parameter belongs
    here if it has mergekit's value everywhere, or a value that cannot change a result beside the others.
    """
    values = {key: _values(mapping, spec, key, semantics) for key in spec.parameters}
    theirs = spec.defaults("mergekit")
    return frozenset(key for key in values if _makes_no_difference(key, values, theirs[key]))


def _makes_no_difference(key: str, values: Mapping[str, list[Any]], theirs: Any) -> bool:
    if all(value == theirs for value in values[key]):
        return True
    if key in _ON_DROPPED and all(
        density in (0.0, 1.0) for density in values.get("density", [0.5])
    ):
        return True
    if key == "rescale_floor":
        return "l1" not in values["rescale"]
    if key == "smallest_difference":
        # Up to t the formula has no divisor to bound.
        return bool(min(values["t"], default=0.0) >= max(*values[key], theirs))
    if key == "zero_norm":
        # None, mergekit's value, stands for the value of tol.
        return len(set(values[key])) == 1 and set(values[key]) == set(values["tol"])
    return False


def _values(
    mapping: Mapping[str, Any], spec: registry.MethodSpec, key: str, semantics: str
) -> list[Any]:
    """Every value that a parameter may have, with one in between for numbers that go along a gradient."""
    parameter = spec.parameters[key]
    default = spec.defaults(semantics)[key]
    found = [] if default is registry.REQUIRED or _is_everywhere(mapping, key) else [default]
    for setting in _settings(mapping, key):
        for gradient in _gradients(setting):
            is_number = parameter.kind in (int, float)
            lenient = is_number and semantics == "mergekit"
            plain = [int(v) if lenient and isinstance(v, bool) else v for v in gradient]
            checked = [parameter.check(v, key, semantics) for v in plain]
            found += checked
            if is_number:
                found += [(a + b) / 2 for a, b in pairwise(checked)]
    return found


def _is_everywhere(mapping: Mapping[str, Any], key: str) -> bool:
    given = mapping.get("parameters", {})
    return key in given and not has_gaps(given[key])


def _settings(data: Any, key: str) -> Iterator[Any]:
    if isinstance(data, Mapping):
        for name, value in data.items():
            if name != "parameters":
                yield from _settings(value, key)
            elif key in value:
                yield value[key]
    elif isinstance(data, list):
        for item in data:
            yield from _settings(item, key)


def _gradients(setting: Any) -> list[list[Any]]:
    """A setting as lists of values along the depth, one for each of its conditions."""
    if not isinstance(setting, list):
        return [[setting]]
    if not setting or not isinstance(setting[0], Mapping):
        return [setting]
    return [gradient for condition in setting for gradient in _gradients(condition["value"])]


def has_gaps(setting: Any) -> bool:
    """Whether there may be tensors for which a setting has no value."""
    if not isinstance(setting, list):
        return False
    if not setting or not isinstance(setting[0], dict):
        return not setting
    return all(condition.get("filter") not in (None, "*") for condition in setting)
