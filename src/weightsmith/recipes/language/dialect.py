"""mergekit's dialect: the parameters that it reads, and what is noteworthy in its files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from weightsmith.errors import RecipeError
from weightsmith.findings import Finding, Severity
from weightsmith.recipes.language.document import Place, YamlDocument, number

_DELTA = frozenset({"weight", "density", "int8_mask", "normalize", "rescale", "lambda"})
# The parameters that mergekit 0.1.5 reads, by method.
PARAMETERS: Mapping[str, frozenset[str]] = {
    "linear": frozenset({"weight", "normalize"}),
    "slerp": frozenset({"t"}),
    "nuslerp": frozenset({"weight", "nuslerp_row_wise", "nuslerp_flatten"}),
    "multislerp": frozenset({"weight", "normalize_weights", "eps"}),
    "karcher": frozenset({"max_iter", "tol"}),
    "passthrough": frozenset({"scale"}),
    "model_stock": frozenset({"filter_wise"}),
    "nearswap": frozenset({"t"}),
    "arcee_fusion": frozenset(),
    "task_arithmetic": _DELTA,
    "ties": _DELTA,
    "dare_ties": _DELTA,
    "dare_linear": _DELTA,
    "breadcrumbs": _DELTA | {"gamma"},
    "breadcrumbs_ties": _DELTA | {"gamma"},
    "della": _DELTA | {"epsilon"},
    "della_linear": _DELTA | {"epsilon"},
    "sce": frozenset({"int8_mask", "select_topk"}),
    "ram": frozenset({"epsilon"}),
    "ramplus_tl": frozenset({"r", "alpha", "epsilon"}),
}
# Parameters that mergekit reads without any effect on the result, and why: for all methods, and for one of them.
_WITHOUT_EFFECT = {"int8_mask": "it only saves memory in mergekit"}
_WITHOUT_EFFECT_IN = {
    "task_arithmetic": {
        "density": "task_arithmetic drops no elements",
        "rescale": "task_arithmetic drops no elements that it could make up for",
    }
}
# Words of older versions that today's mergekit ignores, and with it this dialect.
LEGACY = frozenset({"embed_slerp", "consensus_method"})
_UNUSED = {
    "residual_weight": "by mergekit and here",
    "override_architecture": "because roles follow from names, shapes and the configuration",
}
_MIXTURE = (
    "mergekit-moe",
    "builds a mixture of experts out of dense models",
    "build the mixture with mergekit-moe, and merge mixtures of one form here",
)
_EVOLUTION = (
    "mergekit-evolve",
    "searches for the parameters of a merge",
    "give the merge under `genome` as a recipe of its own, with parameters that you choose",
)
# By a key that only files of that program have.
_OTHER_PROGRAMS = {
    "gate_mode": _MIXTURE,
    "experts": _MIXTURE,
    "experts_per_token": _MIXTURE,
    "genome": _EVOLUTION,
}
_NATIVE_KEYS = ("rules", "missing", "untie", "accept", "donor", "nonfinite", "match", "prefix")
_DTYPES = frozenset({"float16", "bfloat16", "float32", "float64"})


def without_effect(key: str, methods: Iterable[str]) -> str | None:
    """Why a parameter that mergekit knows changes no result of these methods; None if it is no such parameter."""
    own = [_WITHOUT_EFFECT_IN[method] for method in methods if method in _WITHOUT_EFFECT_IN]
    return next((idle[key] for idle in (_WITHOUT_EFFECT, *own) if key in idle), None)


def refuse_other_programs(document: YamlDocument) -> None:
    """Raise RecipeError for a file of one of mergekit's other programs, whose keys are no typing errors."""
    found = next((key for key in _OTHER_PROGRAMS if key in document.data), None)
    if found is not None:
        program, does, advice = _OTHER_PROGRAMS[found]
        raise RecipeError(
            f"{document.where((found,))}: this is a file of {program}, which {does}; that is not there yet: {advice}."
        )


def with_native_keys(finding: Finding) -> Finding:
    """A finding about a file of the dialect; where its fix names keys that such a file cannot have, it says so."""
    if not any(f"`{key}:" in finding.fix for key in _NATIVE_KEYS):
        return finding
    return replace(
        finding,
        fix=f"{finding.fix}; native keys need `weightsmith: 1` and `semantics: mergekit` on top of the recipe",
    )


def findings(document: YamlDocument) -> list[Finding]:
    """What is noteworthy in a document of mergekit's dialect before its keys are checked."""
    values = _parameter_values(document.data, ())
    found = [
        _number_note(document, place, value)
        for place, value in values
        if isinstance(value, str) and number(value) is not None
    ]
    for key in ("dtype", "out_dtype"):
        given = document.data.get(key)
        if isinstance(given, str) and given.removeprefix("torch.") not in _DTYPES:
            found.append(
                Finding(
                    Severity.NOTE,
                    "dtype-spelling",
                    key,
                    f"{document.where((key,))}: mergekit does not know the spelling {given!r} and "
                    "would stop while merging",
                )
            )
    return found


def unused_keys(document: YamlDocument) -> list[Finding]:
    """Notes about the keys that are accepted from mergekit's recipes and have no effect, in either dialect."""
    return [
        Finding(
            Severity.NOTE,
            "unused-key",
            key,
            f"{document.where(place)}: {key} is accepted and never used, {why}",
        )
        for key, why in _UNUSED.items()
        for place in _places_of(document.data, key, ())
    ]


def empty_lists(document: YamlDocument) -> list[Finding]:
    """Notes about parameters that are empty lists, which mergekit takes for nothing.

    Raises RecipeError where the recipe does not have mergekit's semantics.
    """
    places = [place for place, value in _parameter_values(document.data, ()) if value == []]
    if places and "weightsmith" in document.data and document.data.get("semantics") != "mergekit":
        raise RecipeError(
            f"{document.where(places[0])}: {_dotted(places[0])}: the list is empty; give at least one value, or leave "
            "the key out."
        )
    return [
        Finding(
            Severity.WARNING,
            "empty-list",
            _dotted(place),
            f"{document.where(place)}: {_dotted(place)} is an empty list, which gives no value here nor in mergekit",
            "give a value, or leave the key out",
        )
        for place in places
    ]


def _dotted(place: Place) -> str:
    return ".".join(map(str, place))


def _number_note(document: YamlDocument, place: Place, text: str) -> Finding:
    return Finding(
        Severity.NOTE,
        "number-as-text",
        _dotted(place),
        f"{document.where(place)}: YAML 1.1 reads {text!r} as text, and versions of mergekit refuse it or read it "
        "differently from place to place; it is taken as a number here",
        f"write {float(text):.1e}" if "." not in text else "write it without quotes",
    )


def _parameter_values(data: Any, place: Place) -> Iterator[tuple[Place, Any]]:
    """Every value inside a `parameters:` mapping but filters: texts, numbers, and lists of nothing."""
    if isinstance(data, dict):
        for key, value in data.items():
            inside = "parameters" in place or key == "parameters"
            if inside and key == "filter":
                continue
            yield from _parameter_values(value, (*place, key))
    elif isinstance(data, list) and data:
        for i, item in enumerate(data):
            yield from _parameter_values(item, (*place, i))
    elif "parameters" in place:
        yield place, data


def _places_of(data: Any, wanted: str, place: Place) -> Iterator[Place]:
    steps = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    for step, value in steps:
        if step == wanted:
            yield (*place, step)
        elif step != "parameters":
            yield from _places_of(value, wanted, (*place, step))
