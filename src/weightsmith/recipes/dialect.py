"""mergekit's dialect: what its files may hold, what it would make of them, and recipes written as its YAML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from weightsmith.errors import RecipeError
from weightsmith.findings import Finding, Severity
from weightsmith.methods import registry
from weightsmith.recipes.document import Place, YamlDocument, dump_yaml, number

if TYPE_CHECKING:
    from weightsmith.recipes.recipe import Recipe

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
# Parameters that mergekit reads for these methods without any effect on the result.
WITHOUT_EFFECT = frozenset({"int8_mask"})
# Words of older versions that today's mergekit ignores, and with it this dialect.
LEGACY = frozenset({"embed_slerp", "consensus_method"})
_DTYPES = frozenset({"float16", "bfloat16", "float32", "float64"})
_TOP = (
    "merge_method models slices modules base_model dtype out_dtype parameters tokenizer_source tokenizer chat_template"
).split()


def findings(document: YamlDocument) -> list[Finding]:
    """What is noteworthy in a document of mergekit's dialect before its keys are checked."""
    found = [_number_note(document, place, text) for place, text in _numbers_as_text(document.data, ())]
    for key in ("dtype", "out_dtype"):
        given = document.data.get(key)
        if isinstance(given, str) and given.removeprefix("torch.") not in _DTYPES:
            found.append(
                Finding(
                    Severity.NOTE,
                    "dtype-spelling",
                    key,
                    f"{document.where((key,))}: mergekit does not know the spelling {given!r} and would stop while merging",
                )
            )
    for place in _places_of(document.data, "residual_weight", ()):
        found.append(
            Finding(
                Severity.NOTE,
                "unused-key",
                "residual_weight",
                f"{document.where(place)}: residual_weight is accepted and never used, by mergekit and here",
            )
        )
    return found


def _number_note(document: YamlDocument, place: Place, text: str) -> Finding:
    return Finding(
        Severity.NOTE,
        "number-as-text",
        ".".join(str(step) for step in place),
        f"{document.where(place)}: YAML 1.1 reads {text!r} as text, and versions of mergekit refuse it or read it "
        "differently from place to place; it is taken as a number here",
        f"write {float(text):.1e}" if "." not in text else "write it without quotes",
    )


def _numbers_as_text(data: Any, place: Place) -> Iterator[tuple[Place, str]]:
    """Every text inside a `parameters:` mapping that spells a number."""
    if isinstance(data, dict):
        for key, value in data.items():
            inside = "parameters" in place or key == "parameters"
            if inside and key == "filter":
                continue
            yield from _numbers_as_text(value, (*place, key))
    elif isinstance(data, list):
        for i, item in enumerate(data):
            yield from _numbers_as_text(item, (*place, i))
    elif isinstance(data, str) and "parameters" in place and number(data) is not None:
        yield place, data


def _places_of(data: Any, wanted: str, place: Place) -> Iterator[Place]:
    steps = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for step, value in steps:
        if step == wanted:
            yield (*place, step)
        elif step != "parameters":
            yield from _places_of(value, wanted, (*place, step))


def to_mergekit(recipe: Recipe) -> str:
    """A recipe as mergekit's YAML, with mergekit's defaults that differ written out.

    Raises RecipeError that names the first construct for which mergekit has no words.
    """
    mapping = recipe.to_mapping()
    for key in ("weightsmith", "semantics", "name"):
        mapping.pop(key, None)
    # What decides where the files go and how errors are treated is no part of the result.
    for key in ("seed", "shard_size"):
        mapping.pop(key, None)
    for key in mapping:
        if key not in _TOP:
            raise _inexpressible(key)
    _require_mergekit_parts(mapping, "")
    method = recipe.document.merge_method or ""
    if method not in PARAMETERS:
        raise RecipeError(f"mergekit has no method called {method!r}, so the recipe cannot be written for it.")
    if recipe.semantics == "paper":
        _write_out_defaults(mapping, method)
    return dump_yaml({key: mapping[key] for key in _TOP if key in mapping})


def _require_mergekit_parts(data: Any, path: str) -> None:
    if isinstance(data, list):
        for i, item in enumerate(data):
            _require_mergekit_parts(item, f"{path}[{i}]")
    elif isinstance(data, dict):
        is_nested = path and ("merge_method" in data or "expression" in data)
        native = ({"match", "semantics", "merge_method"} & data.keys()) if path else set()
        if is_nested or native:
            raise _inexpressible(f"{path}.{sorted(native)[0]}" if native else path)
        if path.startswith("modules.") and path.count(".") == 1 and "base_model" in data:
            raise _inexpressible(f"{path}.base_model")
        for key, value in data.items():
            _require_mergekit_parts(value, f"{path}.{key}" if path else key)


def _inexpressible(what: str) -> RecipeError:
    return RecipeError(f"mergekit cannot express `{what}` of this recipe, so it cannot be written for it.")


def _write_out_defaults(mapping: dict[str, Any], method: str) -> None:
    """Give every parameter whose default differs between paper and mergekit the paper's value."""
    spec = registry.get(method)
    paper, theirs = spec.defaults("paper"), spec.defaults("mergekit")
    parameters = mapping.setdefault("parameters", {})
    for key, default in paper.items():
        if key in parameters or theirs[key] == default or default is registry.REQUIRED:
            continue
        if key not in PARAMETERS[method]:
            raise RecipeError(
                f"mergekit cannot express {key}: {default} of method {method}, the paper's rule; set `semantics: mergekit` "
                "to take its rule instead."
            )
        parameters[key] = default
    if not parameters:
        del mapping["parameters"]
