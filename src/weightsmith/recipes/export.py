"""Recipes written as mergekit's YAML, where mergekit has words for what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weightsmith.errors import RecipeError
from weightsmith.methods import registry
from weightsmith.recipes.dialect import PARAMETERS
from weightsmith.recipes.document import dump_yaml

if TYPE_CHECKING:
    from weightsmith.recipes.recipe import Recipe

_TOP = (
    "merge_method models slices modules base_model dtype out_dtype parameters tokenizer_source "
    "tokenizer chat_template"
).split()
# They name the recipe or say where files go, and are no part of the result.
_LEFT_OUT = ("weightsmith", "semantics", "name", "seed", "shard_size")


def to_mergekit(recipe: Recipe) -> str:
    """A recipe as mergekit's YAML, with the defaults that differ from mergekit's written out.

    Raises RecipeError that names the first construct for which mergekit has no words.
    """
    mapping = {key: value for key, value in recipe.to_mapping().items() if key not in _LEFT_OUT}
    for key in mapping:
        if key not in _TOP:
            raise _inexpressible(key)
    method = recipe.document.merge_method or ""
    if method not in PARAMETERS:
        raise RecipeError(
            f"mergekit has no method called {method!r}, so the recipe cannot be written for it."
        )
    spec = registry.get(method)
    translated = _translated(mapping, "", spec, recipe.semantics)
    if recipe.semantics == "paper":
        _write_out_defaults(translated, spec)
    return dump_yaml({key: translated[key] for key in _TOP if key in translated})


def _translated(data: Any, path: str, spec: registry.MethodSpec, semantics: str) -> Any:
    """The same data with every parameter in mergekit's words."""
    if isinstance(data, list):
        return [_translated(v, f"{path}[{i}]", spec, semantics) for i, v in enumerate(data)]
    if not isinstance(data, dict):
        return data
    _require_known_parts(data, path)
    result = {}
    for key, value in data.items():
        inner = f"{path}.{key}" if path else key
        if key == "parameters":
            result[key] = {
                name: _parameter(spec, name, setting, semantics, f"{inner}.{name}")
                for name, setting in value.items()
            }
        else:
            result[key] = _translated(value, inner, spec, semantics)
    return result


def _require_known_parts(data: dict[str, Any], path: str) -> None:
    if not path:
        return
    if "merge_method" in data or "expression" in data or "weightsmith" in data:
        raise _inexpressible(f"{path} (a method or recipe of its own)")
    for key in ("match", "semantics"):
        if key in data:
            raise _inexpressible(f"{path}.{key}")
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
        if semantics == "mergekit":
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


def _write_out_defaults(mapping: dict[str, Any], spec: registry.MethodSpec) -> None:
    """Give every parameter whose default differs between paper and mergekit the paper's value."""
    paper, theirs = spec.defaults("paper"), spec.defaults("mergekit")
    parameters = mapping.setdefault("parameters", {})
    for key, default in paper.items():
        if theirs[key] == default or default is registry.REQUIRED:
            continue
        if key in parameters and not _has_gaps(parameters[key]):
            continue
        written = _word_for(spec, key, default)
        if written is None or key in parameters:
            raise RecipeError(
                f"mergekit cannot express {key}: {default} of method {spec.name}, the paper's rule; "
                "set `semantics: mergekit` to take its rule instead."
            )
        parameters[key] = written
    if not parameters:
        del mapping["parameters"]


def _word_for(spec: registry.MethodSpec, key: str, default: Any) -> Any:
    """A default in mergekit's words, or None where it has none."""
    try:
        return _parameter(spec, key, default, "paper", key)
    except RecipeError:
        return None


def _has_gaps(setting: Any) -> bool:
    """Whether there may be tensors for which a setting has no value."""
    if not isinstance(setting, list):
        return False
    if not setting or not isinstance(setting[0], dict):
        return not setting
    return all(condition.get("filter") not in (None, "*") for condition in setting)
