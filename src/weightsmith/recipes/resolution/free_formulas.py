"""Free numbers in formulas of output tensors: which there are, and formulas with values in their places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from weightsmith.graph import FreeNumber, Scalar, free_in, valued
from weightsmith.recipes.language.modifier_calls import Modification
from weightsmith.recipes.resolution.formula import (
    Cast,
    Formula,
    Merge,
    OutputTensor,
    Sum,
    formulas_in,
)

Values = Mapping[str, float]


def numbers_of(outputs: Iterable[OutputTensor]) -> tuple[FreeNumber, ...]:
    """The free numbers in the formulas of tensors, each once."""
    scalars = (s for o in outputs for f in formulas_in(o.formula) for s in own_scalars(f))
    return tuple(dict.fromkeys(free_in(dict.fromkeys(scalars)).values()))


def own_scalars(formula: Formula) -> list[Scalar]:
    """The numbers of one formula, without those inside it, that are free or made of free ones."""
    given: list[Any] = []
    if isinstance(formula, Sum):
        given = [coefficient for coefficient, _ in formula.terms]
    elif isinstance(formula, Merge):
        parts = (formula.shared, *formula.per_expert, *(m.parameters for m in formula.modifiers))
        given = [value for part in parts for _, value in part]
    return [one for one in given if isinstance(one, Scalar)]


def with_numbers(formula: Formula, values: Values) -> Formula:
    """A formula with those of its free numbers that have values; itself where there are none of these."""
    if isinstance(formula, Cast):
        inner = with_numbers(formula.inner, values)
        return formula if inner is formula.inner else replace(formula, inner=inner)
    if isinstance(formula, Sum):
        return _sum_with(formula, values)
    return _merge_with(formula, values) if isinstance(formula, Merge) else formula


def _sum_with(formula: Sum, values: Values) -> Sum:
    terms = tuple((_number(c, values), with_numbers(f, values)) for c, f in formula.terms)
    return formula if _is_same(terms, formula.terms) else Sum(terms)


def _merge_with(merge: Merge, values: Values) -> Merge:
    def filled(part: Formula | None) -> Any:
        return None if part is None else with_numbers(part, values)

    def assigned(given: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, Any], ...]:
        return tuple((key, _number(value, values)) for key, value in given)

    news = {
        "shared": assigned(merge.shared),
        "per_expert": tuple(map(assigned, merge.per_expert)),
        "modifiers": tuple(_modified(one, values) for one in merge.modifiers),
        "base": filled(merge.base),
        "origin": filled(merge.origin),
        "experts": tuple(map(filled, merge.experts)),
    }
    is_same = all(_is_same(new, getattr(merge, key)) for key, new in news.items())
    return merge if is_same else replace(merge, **news)


def _is_same(new: Any, old: Any) -> bool:
    """Whether nothing was put in place; by identity, since numbers that are equal would be asked whether they are."""
    if isinstance(new, tuple) and isinstance(old, tuple):
        return len(new) == len(old) and all(map(_is_same, new, old))
    return new is old


def _modified(one: Modification, values: Values) -> Modification:
    news = tuple((key, _number(value, values)) for key, value in one.parameters)
    return one if _is_same(news, one.parameters) else replace(one, parameters=news)


def _number(given: Any, values: Values) -> Any:
    if not isinstance(given, Scalar) or not given.unknown_names() <= values.keys():
        return given
    return float(valued(given, values))
