"""Recipes of many forms, each with what an oracle makes of it in one or two steps.

A structure takes a rule, a variant and a stored family, and gives a `Case`: the recipe, and the oracle's result. It
gives None where the family has nothing to try it on. `applies` tells beforehand which rules and variants it is for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from weightsmith.methods.parts import registry

from .catalogue import MODIFIERS, ORACLES, Rule, Variant
from .families import Family, Place, Tensors
from .running import Stored, models_of, plain_recipe, recipe, takes_base

# No share times a number of elements is next to a whole number, where rounding would decide about an element.
SHARE_LISTS = ([0.41, 0.61], [0.5], [0.33, 0.53, 1.0], [0.4])
WEIGHT_LISTS = ([0.0, 1.0], [1.0, 0.5], [0.25, 1.0, 0.0], [0.5])


@dataclass(frozen=True)
class Case:
    """A recipe, what it should give, and the base that the change is measured from."""

    recipe: dict[str, Any]
    want: Tensors
    base: Tensors


@dataclass(frozen=True)
class Structure:
    """A form of recipe."""

    make: Callable[[Rule, Variant, Stored], Case | None]
    applies: Callable[[Rule, Variant], bool]


STRUCTURES: dict[str, Structure] = {}
# In which weights are rounded to a narrow dtype.
ROUNDED = frozenset({"rounded_expert", "storage", "rounded_inputs"})
# Whose work precision is float32.
SINGLE = frozenset({"rounded_inputs"})


def structure(
    *needs: Callable[[Rule, Variant], bool],
) -> Callable[[Callable[..., Case | None]], Callable[..., Case | None]]:
    """Register a structure for the rules and variants that meet all needs."""

    def register(make: Callable[..., Case | None]) -> Callable[..., Case | None]:
        def applies(rule: Rule, variant: Variant) -> bool:
            return make.__name__ not in rule.skips and all(need(rule, variant) for need in needs)

        STRUCTURES[make.__name__] = Structure(make, applies)
        return make

    return register


# Needs ----------------------------------------------------------------------------------------------------------------


def unmeasured(rule: Rule, _: Variant) -> bool:
    """Nothing was measured on a value that a recipe computes."""
    return rule.statistics is None


def has_base(rule: Rule, variant: Variant) -> bool:
    """The method is given a base."""
    return takes_base(rule, variant)


def has_several(rule: Rule, variant: Variant) -> bool:
    """More than one expert."""
    return rule.count(variant) > 1


def has_weights(rule: Rule, _: Variant) -> bool:
    """The method takes a weight of each expert."""
    return "weight" in registry.get(rule.name).parameters


def has_shares(rule: Rule, _: Variant) -> bool:
    """The method takes a density of each expert."""
    density = registry.get(rule.name).parameters.get("density")
    return density is not None and density.per_expert


def as_mergekit(_: Rule, variant: Variant) -> bool:
    """mergekit's defaults, which also count the base among the models."""
    return variant.get("preset") == "mergekit"


def knows_base(rule: Rule, variant: Variant) -> bool:
    """A base may stand in the recipe and is no model of its own."""
    return variant.get("base", True) and (
        takes_base(rule, variant) or not as_mergekit(rule, variant)
    )


# Structures -----------------------------------------------------------------------------------------------------------


@structure(unmeasured)
def nested_expert(rule: Rule, variant: Variant, stored: Stored) -> Case:
    """The first expert is a recipe that averages two models and keeps one's embeddings."""
    family, one, other = stored.family, 0, 3
    average = {n: (family.experts[one][n] + family.experts[other][n]) / 2 for n in family.places}
    embeddings = [n for n, p in family.places.items() if p.role == "embedding"]
    made = average | {n: family.experts[one][n] for n in embeddings}
    inner = {
        "weightsmith": 1,
        "name": "blend",
        "merge_method": "linear",
        "semantics": "paper",
        "models": [{"model": stored.expert(k)} for k in (one, other)],
        "rules": [{"match": {"role": "embedding"}, "keep": stored.expert(one)}],
    }
    return _with_first(rule, variant, stored, inner, made, "blend")


@structure(unmeasured, has_base)
def rounded_expert(rule: Rule, variant: Variant, stored: Stored) -> Case:
    """The first expert is a recipe with weights along the depth whose result is rounded to bfloat16."""
    family = stored.family
    made = {}
    for name, place in family.places.items():
        deltas = family.deltas(name)
        weight = gradient([0.2, 1.0], place)
        made[name] = bfloat16(family.base[name] + weight * deltas[0] + weight * deltas[3])
    inner = {
        "weightsmith": 1,
        "name": "blend",
        "merge_method": "task_arithmetic",
        "semantics": "paper",
        "base_model": stored.base,
        "models": [{"model": stored.expert(k)} for k in (0, 3)],
        "parameters": {"weight": [0.2, 1.0]},
        "dtype": "bfloat16",
    }
    return _with_first(rule, variant, stored, inner, made, "blend")


@structure(unmeasured, has_base)
def nested_base(rule: Rule, variant: Variant, stored: Stored) -> Case:
    """The base is a recipe that moves to the last expert but keeps its norms."""
    family = stored.family
    norms = [n for n, p in family.places.items() if p.role == "norm"]
    moved = {n: family.base[n] + 0.25 * family.deltas(n)[3] for n in family.places}
    base = moved | {n: family.base[n] for n in norms}
    inner = {
        "weightsmith": 1,
        "name": "moved",
        "merge_method": "wise_ft",
        "semantics": "paper",
        "base_model": stored.base,
        "models": [{"model": stored.expert(3)}],
        "parameters": {"alpha": 0.25},
        "rules": [{"match": {"role": "norm"}, "keep": stored.base}],
    }
    merged = rule(replace(rule.cut(family, variant), base=base), variant)
    made = recipe(rule, variant, models_of(rule, variant, stored), inner, donor=stored.base)
    return Case(made, merged, base)


@structure(unmeasured)
def slices(rule: Rule, variant: Variant, stored: Stored) -> Case | None:
    """Layers [0, 2) and [1, L) of the models on top of each other."""
    family = rule.cut(stored.family, variant)
    stacks = {(p.stack, p.layers) for p in family.places.values() if p.stack}
    if len(stacks) > 1:
        return None
    ((_, layers),) = stacks
    order = [0, 1, *range(1, layers)]
    stacked = _restacked(family, order)
    whole = plain_recipe(rule, variant, stored)
    parts = []
    for start, stop in ((0, 2), (1, layers)):
        models = list(whole["models"])
        if as_mergekit(rule, variant) and takes_base(rule, variant):
            models.append({"model": stored.base})
        sources = [{**model, "layer_range": [start, stop]} for model in models]
        parts.append({"sources": sources})
    made = {k: v for k, v in whole.items() if k != "models"} | {"slices": parts}
    return Case(made, rule(stacked, variant), stacked.base)


@structure()
def rules(rule: Rule, variant: Variant, stored: Stored) -> Case:
    """Norms are kept, attention is averaged, and the other layers' matrices have weights of their own."""
    family = rule.cut(stored.family, variant)
    based = takes_base(rule, variant)
    keep, kept = (stored.base, family.base) if based else (stored.expert(0), family.experts[0])
    norms = _of_role(family, "norm")
    attention = _of_role(family, "attention")
    inner = _of_role(family, "mlp")
    ways: list[dict[str, Any]] = [
        {"match": {"role": "norm"}, "keep": keep},
        {"match": {"role": "attention"}, "merge_method": "soup", "semantics": "paper"},
    ]
    parameters = dict(variant)
    if has_weights(rule, variant):
        ways.append({"match": {"role": "mlp"}, "parameters": {"weight": 0.5}})
        presets = getattr(sys.modules[rule.function.__module__], "PRESETS", {})
        usual = presets.get(variant.get("preset"), {}).get("weight", 1.0)
        given = variant.get("weight", usual)
        parameters["weight"] = {n: 0.5 if n in inner else given for n in family.places}
    rest = [n for n in family.places if n not in norms and n not in attention]
    merged = rule(family.only(rest), parameters)
    merged |= {n: kept[n] for n in norms}
    merged |= {n: sum(e[n] for e in family.experts) / len(family.experts) for n in attention}
    return Case(plain_recipe(rule, variant, stored, rules=ways), merged, family.base)


@structure(unmeasured, has_base)
def missing(rule: Rule, variant: Variant, stored: Stored) -> Case:
    """The first expert lacks matrices, and has the base's in their place."""
    family = rule.cut(stored.family, variant)
    lacking = _of_role(family, "mlp") + _of_role(family, "expert")
    rest = {n: x for n, x in family.experts[0].items() if n not in lacking}
    path = stored.write("partial", rest)
    filled = rest | {n: family.base[n] for n in lacking}
    models = [path, *models_of(rule, variant, stored)[1:]]
    completed = family.of([filled, *family.experts[1:]], ["partial", *family.labels[1:]])
    made = recipe(rule, variant, models, stored.base, missing="base", donor=stored.base)
    return Case(made, rule(completed, variant), family.base)


@structure(has_weights)
def gradients(rule: Rule, variant: Variant, stored: Stored) -> Case:
    """Weights along the depth, 0 and 1 among them."""
    family = rule.cut(stored.family, variant)
    # A single weight of zero could not be normalised.
    lists = WEIGHT_LISTS[: len(family.experts)] if len(family.experts) > 1 else [[0.5, 1.0]]
    weights = {n: [gradient(w, p) for w in lists] for n, p in family.places.items()}
    made = plain_recipe(rule, {**variant, "weight": list(lists)}, stored)
    return Case(made, rule(family, {**variant, "weight": weights}), family.base)


@structure(has_shares)
def shares(rule: Rule, variant: Variant, stored: Stored) -> Case:
    """Densities along the depth: over the model, each share has a threshold of its own."""
    family = rule.cut(stored.family, variant)
    lists = SHARE_LISTS[: len(family.experts)]
    given = {n: [gradient(w, p) for w in lists] for n, p in family.places.items()}
    made = plain_recipe(rule, {**variant, "density": list(lists)}, stored)
    return Case(made, rule(family, {**variant, "density": given}), family.base)


@structure(has_base)
def then(rule: Rule, variant: Variant, stored: Stored) -> Case:
    """The result is moved back towards the base."""
    family = rule.cut(stored.family, variant)
    merged = rule(family, variant)
    moved = {n: family.base[n] + 0.75 * (merged[n] - family.base[n]) for n in merged}
    steps = [{"wise_ft": {"alpha": 0.75}}]
    return Case(plain_recipe(rule, variant, stored, then=steps), moved, family.base)


@structure(has_base, has_several)
def then_lines(rule: Rule, variant: Variant, stored: Stored) -> Case:
    """LiNeS after the merge, with the paper's alpha from the experts."""
    family = rule.cut(stored.family, variant)
    seen = family.of([rule(family, variant), *family.experts])
    scaled = ORACLES["lines"](seen, {"merger": "first"})
    return Case(plain_recipe(rule, variant, stored, then=["lines"]), scaled, family.base)


@structure(unmeasured, knows_base)
def modify(rule: Rule, variant: Variant, stored: Stored) -> Case:
    """Experts are sparsified and clipped over the whole model before they are merged."""
    family = rule.cut(stored.family, variant)
    steps = [
        ("sparsify", {"density": 0.6, "scope": "model"}),
        ("clip", {"limit": 0.7, "scope": "model"}),
    ]
    changed = family
    for name, parameters in steps:
        changed = MODIFIERS[name].function(changed, parameters)
    listed = [{n: p} for n, p in steps]
    made = plain_recipe(rule, variant, stored, base_model=stored.base, modify=listed)
    return Case(made, rule(changed, variant), family.base)


@structure(unmeasured)
def shards(rule: Rule, variant: Variant, stored: Stored) -> Case:
    """The experts lie in files of another order than the base."""
    family = rule.cut(stored.family, variant)
    names = [f"sharded-{i}" for i in range(len(family.experts))]
    paths = [
        stored.write(name, expert, shards=i + 2, backwards=True)
        for i, (name, expert) in enumerate(zip(names, family.experts, strict=True))
    ]
    moved = family.of(family.experts, names)
    base = stored.base if takes_base(rule, variant) else None
    return Case(recipe(rule, variant, paths, base), rule(moved, variant), family.base)


@structure(unmeasured)
def storage(rule: Rule, variant: Variant, stored: Stored) -> Case:
    """The first expert's tensors are stored in different dtypes."""
    family = rule.cut(stored.family, variant)
    half = dict.fromkeys(_of_role(family, "mlp"), "bfloat16")
    single = dict.fromkeys(_of_role(family, "attention"), "float32")
    first = dict(family.experts[0])
    first |= {n: bfloat16(first[n]) for n in half}
    first |= {n: first[n].astype(np.float32).astype(np.float64) for n in single}
    path = stored.write("mixed", first, dtypes=half | single)
    models = [path, *models_of(rule, variant, stored)[1:]]
    changed = family.of([first, *family.experts[1:]], ["mixed", *family.labels[1:]])
    base = stored.base if takes_base(rule, variant) else None
    made = recipe(rule, variant, models, base, out_dtype="float64")
    return Case(made, rule(changed, variant), family.base)


@structure(unmeasured, as_mergekit)
def rounded_inputs(rule: Rule, variant: Variant, stored: Stored) -> Case:
    """Inputs that mergekit's `dtype` rounds to float32, some of which are stored so, and that are computed so."""
    family = rule.cut(stored.family, variant)
    base = float32(family.base)
    experts = [float32(e) for e in family.experts]
    single = dict.fromkeys(_of_role(family, "mlp"), "float32")
    first = family.experts[0] | {n: experts[0][n] for n in single}
    models = [stored.write("partly", first, dtypes=single), *models_of(rule, variant, stored)[1:]]
    labels = ["partly", *family.labels[1:]]
    changed = replace(family, base=base, experts=experts, labels=tuple(labels))
    origin = stored.base if takes_base(rule, variant) else None
    made = recipe(rule, variant, models, origin, dtype="float32", donor=stored.base)
    return Case(made, rule(changed, variant), base)


# Pieces ---------------------------------------------------------------------------------------------------------------


def _with_first(
    rule: Rule,
    variant: Variant,
    stored: Stored,
    inner: Mapping[str, Any],
    made: Tensors,
    name: str,
) -> Case:
    """The case whose first expert is the recipe `inner`, which makes `made` and is called `name`."""
    family = rule.cut(stored.family, variant)
    changed = family.of([made, *family.experts[1:]], [name, *family.labels[1:]])
    models: list[Any] = [{"model": dict(inner)}, *models_of(rule, variant, stored)[1:]]
    base = stored.base if takes_base(rule, variant) else None
    return Case(
        recipe(rule, variant, models, base, donor=stored.base),
        rule(changed, variant),
        family.base,
    )


def _of_role(family: Family, role: str) -> list[str]:
    """Tensors of a role or of its family."""
    return [n for n, p in family.places.items() if f"{p.role}.".startswith(f"{role}.")]


def gradient(values: list[float], place: Place) -> float:
    """A list spread evenly over the depth, at a place: outside of layers at depth 0, a single layer at 1."""
    depth = 0.0 if place.layer is None else 1.0
    if place.layer is not None and place.layers > 1:
        depth = place.layer / (place.layers - 1)
    return float(np.interp(depth, np.linspace(0, 1, len(values)), values))


def float32(tensors: Tensors) -> Tensors:
    """Rounded to float32."""
    return {n: x.astype(np.float32).astype(np.float64) for n, x in tensors.items()}


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Rounded to 8 significant bits, to even at the middle."""
    mantissa, exponent = np.frexp(x)
    return np.asarray(np.ldexp(np.round(mantissa * 256) / 256, exponent))


def _restacked(family: Family, order: list[int]) -> Family:
    """The family whose layer k is the layer order[k]."""
    origin: dict[str, str] = {}
    places: dict[str, Place] = {}
    for name, place in family.places.items():
        for k, layer in enumerate(order):
            if place.layer is None:
                places[name], origin[name] = place, name
            elif place.layer == layer:
                rest = name.removeprefix(f"{place.stack}.{layer}.")
                new = f"{place.stack}.{k}.{rest}"
                places[new] = replace(place, name=new, layer=k, layers=len(order))
                origin[new] = name

    def moved(tensors: Tensors) -> Tensors:
        return {n: tensors[origin[n]] for n in places}

    return replace(
        family,
        base=moved(family.base),
        experts=[moved(e) for e in family.experts],
        places=places,
    )
