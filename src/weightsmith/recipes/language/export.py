"""Recipes written as mergekit's YAML, where mergekit has words for what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from weightsmith.adapters import Reference
from weightsmith.errors import RecipeError
from weightsmith.methods import registry
from weightsmith.recipes.language.dialect import PARAMETERS
from weightsmith.recipes.language.document import dump_yaml
from weightsmith.recipes.language.equivalence import has_gaps, left_to_mergekit
from weightsmith.recipes.language.free_recipes import names_in
from weightsmith.recipes.language.schema import RecipeDocument, plain
from weightsmith.recipes.language.vocabulary_sections import BORROW

_TOP = (
    "merge_method models slices modules base_model dtype out_dtype parameters tokenizer_source "
    "tokenizer chat_template"
).split()
# They name the recipe or say where files go, and are no part of the result.
_LEFT_OUT = ("weightsmith", "semantics", "name", "seed", "shard_size")


def to_mergekit(document: RecipeDocument) -> str:
    """A recipe as mergekit's YAML, with the defaults that differ from mergekit's written out.

    Raises RecipeError that names the first construct for which mergekit has no words.
    """
    mapping = {key: value for key, value in plain(document).items() if key not in _LEFT_OUT}
    for key in mapping:
        if key not in _TOP:
            raise _inexpressible(key)
    for name in names_in(document):
        raise _inexpressible(f"{name} (a free number)")
    semantics = document.semantics or "paper"
    method = document.merge_method or ""
    if method not in PARAMETERS:
        raise RecipeError(
            f"mergekit has no method called {method!r}, so the recipe cannot be written for it."
        )
    spec = registry.get(method)
    _require_known_parts(mapping, "")
    _require_one_adapter(document)
    left = left_to_mergekit(mapping, spec, semantics)
    translated = _translated(mapping, "", _Words(spec, semantics, left))
    if semantics != "mergekit":
        _write_out_defaults(translated, spec, semantics, left)
    return dump_yaml({key: translated[key] for key in _TOP if key in translated})


@dataclass(frozen=True, slots=True)
class _Words:
    """What it takes to say a parameter in mergekit's words; those in `left` may stay unsaid."""

    spec: registry.MethodSpec
    semantics: str
    left: frozenset[str]

    def parameters(self, given: dict[str, Any], path: str) -> dict[str, Any]:
        said = {name: self._said(name, value, f"{path}.{name}") for name, value in given.items()}
        return {name: value for name, value in said.items() if value is not None}

    def _said(self, name: str, setting: Any, path: str) -> Any:
        try:
            return _parameter(self.spec, name, setting, self.semantics, path)
        except RecipeError:
            if name in self.left:
                return None
            raise


def _translated(data: Any, path: str, words: _Words) -> Any:
    """The same data with every parameter in mergekit's words."""
    if isinstance(data, list):
        return [_translated(v, f"{path}[{i}]", words) for i, v in enumerate(data)]
    if not isinstance(data, dict):
        return data
    result = {}
    for key, value in data.items():
        inner = f"{path}.{key}" if path else key
        if key != "parameters":
            result[key] = _translated(value, inner, words)
        elif said := words.parameters(value, inner):
            result[key] = said
    return result


def _require_known_parts(data: Any, path: str) -> None:
    if isinstance(data, list):
        for i, item in enumerate(data):
            _require_known_parts(item, f"{path}[{i}]")
    if not isinstance(data, dict):
        return
    if path:
        _require_known_keys(data, path)
    for key, value in data.items():
        if key != "parameters":
            _require_known_parts(value, f"{path}.{key}" if path else key)


def _require_one_adapter(part: Any) -> None:
    """Refuse models with several adapters, or one that is not applied as it is."""
    if isinstance(part, Reference):
        if len(part.adapters) > 1 or any(adapter.strength != 1.0 for adapter in part.adapters):
            raise _inexpressible(str(part))
    elif isinstance(part, BaseModel):
        for name in type(part).model_fields:
            _require_one_adapter(getattr(part, name))
    elif isinstance(part, (tuple, dict)):
        for inner in part.values() if isinstance(part, dict) else part:
            _require_one_adapter(inner)


def _require_known_keys(data: dict[str, Any], path: str) -> None:
    if "merge_method" in data or "expression" in data or "weightsmith" in data:
        raise _inexpressible(f"{path} (a method or recipe of its own)")
    for key in ("match", "prefix", "semantics", "modify"):
        if key in data:
            raise _inexpressible(f"{path}.{key}")
    if path == "tokenizer" and data.get("missing", BORROW) != BORROW:
        raise _inexpressible("tokenizer.missing")
    if path.startswith("modules.") and path.count(".") == 1 and "base_model" in data:
        raise _inexpressible(f"{path}.base_model")


def _parameter(
    spec: registry.MethodSpec, name: str, setting: Any, semantics: str, path: str
) -> Any:
    if isinstance(setting, list):
        return [_parameter(spec, name, item, semantics, path) for item in setting]
    if isinstance(setting, dict):
        if "match" in setting:
            raise _inexpressible(f"{path} with `match`")
        return {**setting, "value": _parameter(spec, name, setting["value"], semantics, path)}
    if name not in PARAMETERS[spec.name]:
        if semantics == "mergekit" and name not in spec.parameters:
            return setting
        raise _inexpressible(path)
    parameter = spec.parameters.get(name)
    if parameter is None or not parameter.switch:
        return setting
    meant = parameter.check(setting, path, semantics)
    for word in (True, False):
        if parameter.check(word, path, "mergekit") == meant:
            return word
    raise _inexpressible(f"{path}: {setting}")


def _inexpressible(what: str) -> RecipeError:
    return RecipeError(
        f"mergekit cannot express `{what}` of this recipe, so it cannot be written for it."
    )


def _write_out_defaults(
    mapping: dict[str, Any], spec: registry.MethodSpec, semantics: str, left: frozenset[str]
) -> None:
    """Give every parameter whose default differs from mergekit's, and makes a difference, its value."""
    theirs = spec.defaults("mergekit")
    parameters = mapping.setdefault("parameters", {})
    for key, default in spec.defaults(semantics).items():
        if key in left or theirs[key] == default or default is registry.REQUIRED:
            continue
        if key in parameters and not has_gaps(parameters[key]):
            continue
        written = _word_for(spec, key, default, semantics)
        if written is None or key in parameters:
            whose = "the paper's rule" if semantics == "paper" else f"the rule of {semantics}"
            value = "" if theirs[key] is None else f"`{key}: {_plain(theirs[key])}` or "
            raise RecipeError(
                f"mergekit cannot express {key}: {_plain(default)} of method {spec.name}, {whose}; set "
                f"{value}`semantics: mergekit` to take its rule instead."
            )
        parameters[key] = written
    if not parameters:
        del mapping["parameters"]


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _word_for(spec: registry.MethodSpec, key: str, default: Any, semantics: str) -> Any:
    """A default in mergekit's words, or None where it has none."""
    try:
        return _parameter(spec, key, default, semantics, key)
    except RecipeError:
        return None
