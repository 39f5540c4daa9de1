"""The recipes that `adapter combine` and `resize` run: every method for adapters, said in the language of recipes.

cat, svd             task_arithmetic with weights of 1 / N, kept whole or cut to the largest rank
lego                 task_arithmetic, whose units are clustered (`adapter: {reduce: lego}`)
magnitude_prune      task_arithmetic of changes of which the largest elements are kept (`modify: sparsify`)
knots, core_space    the method `merger` (default ties) in that space (`adapter: {space: knots}`)
any other            that method of recipes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weightsmith.errors import UsageError
from weightsmith.lora import RankBound
from weightsmith.methods import registry
from weightsmith.wording import counted

# Methods that are a space, with the options of it that are given like parameters.
_SPACE_METHODS = {"knots": ("knots", ("side", "basis")), "core_space": ("core", ("gauge",))}
_PRUNED = ("density", "scope", "rescale")
_SUM = "task_arithmetic"


@dataclass(slots=True)
class _Spoken:
    """A method for adapters in the words of recipes: `form` goes under `adapter:`."""

    method: str
    parameters: dict[str, Any]
    weights: Sequence[float] | None
    form: dict[str, Any] = field(default_factory=dict)
    modify: list[dict[str, Any]] = field(default_factory=list)


def combination(
    adapters: Sequence[str],
    method: str,
    weights: Sequence[float] | None,
    parameters: Mapping[str, Any],
    *,
    space: str = "dense",
    bound: RankBound | None = None,
    dialect: str | None = None,
    base: str | Path | None = None,
    dtype: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The recipe that combines adapters; `parameters` are the method's and may have a list, one value for each adapter.

    Raises UsageError for what has no meaning: weights of another number or for a method without, parameters of a
    method that has none, a space for a method that is one, a cut of what is never cut.
    """
    if not adapters:
        raise UsageError("There is nothing to combine: name at least one adapter.")
    bound = bound or RankBound()
    said = _spoken(method, weights, dict(parameters), space, bound, len(adapters))
    spec = registry.get(said.method)
    each, shared = _by_adapter(spec, said.parameters, said.weights, len(adapters))
    models = [
        {"model": {"model": {"path": path}}, "parameters": own}
        for path, own in zip(adapters, each, strict=True)
    ]
    kept = {"rank": bound.rank, "energy": bound.energy, "error": bound.error}
    form = {**kept, **said.form, "dialect": dialect}
    document = {
        "weightsmith": 1,
        "merge_method": said.method,
        "base_model": None if base is None else str(base),
        "models": models,
        "parameters": shared,
        "modify": said.modify or None,
        "dtype": dtype,
        "seed": seed,
        "adapter": {key: value for key, value in form.items() if value is not None},
    }
    return {key: value for key, value in document.items() if value is not None}


def _spoken(
    method: str,
    weights: Sequence[float] | None,
    given: dict[str, Any],
    space: str,
    bound: RankBound,
    count: int,
) -> _Spoken:
    in_space = {} if space == "dense" else {"space": space}
    if method in ("cat", "svd"):
        if given:
            raise UsageError(f"{method} has no parameter {next(iter(given))!r}.")
        if method == "cat" and not bound.is_open:
            raise UsageError("cat is exact and keeps every rank; use linear or svd to cut them.")
        cut_to = {"rank": "largest"} if method == "svd" and bound.is_open else {}
        return _Spoken(_SUM, {}, weights or [1.0 / count] * count, cut_to)
    if method == "lego":
        return _Spoken(_SUM, {}, weights, {"reduce": {"lego": given}})
    if method == "magnitude_prune":
        own = {key: given.pop(key) for key in _PRUNED if key in given}
        modify = [{"sparsify": {"density": 1.0, **own}}]
        return _Spoken(_SUM, given, weights, in_space, modify)
    if method in _SPACE_METHODS:
        name, options = _SPACE_METHODS[method]
        if space not in ("dense", name):
            raise UsageError(
                f"{method} is a space itself, so it has no place in the space {space}."
            )
        own = {key: given.pop(key) for key in options if key in given}
        merger = str(given.pop("merger", "ties"))
        return _Spoken(merger, given, weights, {"space": {name: own}})
    return _Spoken(method, given, weights, in_space)


def _by_adapter(
    spec: registry.MethodSpec,
    parameters: Mapping[str, Any],
    weights: Sequence[float] | None,
    count: int,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Parameters of each adapter and of all: a list for what every expert has of its own is one value for each."""
    if weights is not None and "weight" not in spec.parameters:
        raise UsageError(f"Method {spec.name} takes no weights; leave them out.")
    lists = {key: value for key, value in parameters.items() if _is_list(spec, key, value)}
    if weights is not None:
        lists["weight"] = [float(weight) for weight in weights]
    for key, values in lists.items():
        if len(values) != count:
            raise UsageError(
                f"{counted(len(values), 'value')} of {key!r} for {counted(count, 'adapter')}: give one for each."
            )
    each = [{key: values[i] for key, values in lists.items()} for i in range(count)]
    return each, {key: value for key, value in parameters.items() if key not in lists}


def _is_list(spec: registry.MethodSpec, key: str, value: Any) -> bool:
    own = key in spec.parameters and spec.parameters[key].per_expert
    return own and isinstance(value, list | tuple)
