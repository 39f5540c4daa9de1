"""A contributor of a linear merge taken out of the result, as an ordinary recipe over what is left at hand."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from weightsmith.adapters import Reference
from weightsmith.checkpoints import Checkpoint, open_checkpoint
from weightsmith.engine.planning.linearity import coefficients
from weightsmith.engine.planning.trace import Tracer
from weightsmith.engine.records.manifest import Manifest
from weightsmith.engine.records.placeholders import placeholder
from weightsmith.engine.records.rounding_bounds import RoundingBound, bound_of
from weightsmith.errors import CheckpointError, RecipeError
from weightsmith.findings import Severity
from weightsmith.recipes import (
    Opener,
    OutputTensor,
    Recipe,
    Resolved,
    Same,
    merged_references,
    reference_data,
    resolve,
)
from weightsmith.tensors import DType

_SAME = 1e-9


class InputPlace(NamedTuple):
    """A tensor of an input, by the input's reference, and the dtype that it is rounded to before it is merged."""

    reference: str
    tensor: str
    rounded_to: DType | None


@dataclass(frozen=True, slots=True)
class Share:
    """How one tensor without the contributor comes about: merged * MERGED + sum_i terms_i x_i."""

    merged: float
    terms: Mapping[InputPlace, float]

    def weight(self, reference: str) -> float:
        """The coefficient of an input."""
        return math.fsum(c for place, c in self.terms.items() if place.reference == reference)


@dataclass(frozen=True, slots=True)
class Subtraction:
    """The recipe that takes a contributor out, and for each tensor how far from a fresh merge it may be."""

    recipe: Recipe
    bounds: Mapping[str, RoundingBound]


@dataclass(slots=True)
class _Merge:
    """What is on record about a merge, with stand-ins for the inputs that are gone."""

    folder: Path
    manifest: Manifest
    merged: Checkpoint
    opener: Opener
    at_hand: dict[str, Checkpoint] = field(default_factory=dict)

    def see(self, reference: Reference) -> Checkpoint:
        """The input, or one that has its tensors' names, and shapes as far as they can be told."""
        name = str(reference)
        try:
            self.at_hand[name] = self.opener(reference)
        except CheckpointError:
            recorded = [i for i in self.manifest.inputs.values() if i.reference == name]
            if not recorded:
                raise
            known = [self.merged, *self.at_hand.values()]
            return placeholder(name, recorded[0].tensors, known)
        return self.at_hand[name]


def subtraction(
    folder: Path, manifest: Manifest, contributor: str, reduced: Recipe, opener: Opener
) -> Subtraction:
    """The recipe over MERGED, the contributor and, where its coefficient changes, the base that gives what `reduced`
    would.

        NEW = r MERGED - r c_k x_k + (d_b - r c_b) x_b

    c are the coefficients of the merge on record and d those of the reduced recipe, for each tensor; r = d_j / c_j is
    the same for all inputs that are gone. Raises RecipeError where a tensor is not linear in the inputs with constant
    coefficients, where what is left of inputs that are gone changes by different ratios, or where the recipe has a
    tokenizer section.
    """
    recipe = Recipe.load(manifest.recipe)
    if recipe.document.tokenizer is not None or recipe.document.tokenizer_source is not None:
        raise RecipeError(
            "The recipe brings vocabularies together, so rows of the result have no constant coefficients; "
            "give every other input and roll back by replay."
        )
    merge = _Merge(folder, manifest, open_checkpoint(folder), opener)
    merge.at_hand[contributor] = opener(Reference(contributor))
    old, new = resolve(recipe, merge.see), resolve(reduced, merge.see)
    shares, bounds = _shares(merge, old, new, contributor)
    made = _recipe(merge, recipe, shares)
    _check(made, merge, shares)
    return Subtraction(made, bounds)


def merged_opener(folder: Path, opener: Opener) -> Opener:
    """Opens MERGED by the reference that the recipe of a subtraction has for it, and inputs as before."""
    return lambda reference: (
        open_checkpoint(folder) if str(reference) == str(folder) else opener(reference)
    )


def _shares(
    merge: _Merge, old: Resolved, new: Resolved, contributor: str
) -> tuple[dict[str, Share], dict[str, RoundingBound]]:
    for resolved in (old, new):
        wrong = next((f for f in resolved.findings if f.severity is Severity.ERROR), None)
        if wrong is not None:
            raise RecipeError(f"The recipe without {contributor!r} has no result: {wrong.sentence}")
    was = {tensor.name: tensor for tensor in old.outputs}
    will = {tensor.name: tensor for tensor in new.outputs}
    odd = sorted(was.keys() ^ will.keys() or was.keys() ^ merge.manifest.outputs.keys())
    if odd:
        raise RecipeError(
            f"The result would not have the same tensors without {contributor!r} (the first is tensor {odd[0]!r}); "
            "give every other input and roll back by replay."
        )
    shares: dict[str, Share] = {}
    bounds: dict[str, RoundingBound] = {}
    tracers = Tracer(), Tracer()
    for name, tensor in was.items():
        before = _terms(tensor, old, tracers[0])
        after = _terms(will[name], new, tracers[1])
        shares[name] = _share(merge, name, before, after, contributor)
        stored = merge.merged.tensors[name].dtype
        bounds[name] = bound_of(
            shares[name].merged,
            shares[name].terms.values(),
            before.values(),
            after.values(),
            stored,
        )
    return shares, bounds


_MERGED = InputPlace("", "", None)


def _terms(tensor: OutputTensor, resolved: Resolved, tracer: Tracer) -> dict[InputPlace, float]:
    """The coefficients of a tensor's inputs; tensors that all inputs share count as one of their own."""
    if isinstance(tensor.formula, Same):
        return {_MERGED: 1.0}
    traced = tracer.trace(tensor)
    found = coefficients(traced.output)
    if found is None:
        raise RecipeError(
            f"Tensor {tensor.name!r} is not a sum of the inputs with constant coefficients, so a contributor cannot be "
            "subtracted; give every other input and roll back by replay."
        )
    places = {}
    for term, coefficient in found.items():
        leaf = traced.sources[term.index]
        reference = resolved.checkpoints[leaf.checkpoint].source
        places[InputPlace(reference, leaf.tensor, term.rounded_to)] = coefficient
    return places


def _share(
    merge: _Merge,
    name: str,
    before: Mapping[InputPlace, float],
    after: Mapping[InputPlace, float],
    contributor: str,
) -> Share:
    if _MERGED in before:
        return Share(1.0, {})
    others = [p for p in dict.fromkeys((*before, *after)) if p.reference != contributor]
    ratio = _ratio(merge, name, before, after, others)
    terms = {}
    for place in (*others, *(p for p in before if p.reference == contributor)):
        wanted, given = after.get(place, 0.0), ratio * before.get(place, 0.0)
        if not _is_same(wanted, given):
            terms[place] = wanted - given
    return Share(ratio, terms)


def _ratio(
    merge: _Merge,
    name: str,
    before: Mapping[InputPlace, float],
    after: Mapping[InputPlace, float],
    others: Sequence[InputPlace],
) -> float:
    """What every input that is gone is multiplied by; where all are at hand, what most models are."""
    gone = [p for p in others if p.reference not in merge.at_hand]
    wanted = [after.get(p, 0.0) / before[p] if before.get(p) else math.inf for p in gone]
    if wanted:
        if math.inf in wanted or not all(_is_same(r, wanted[0]) for r in wanted):
            listed = ", ".join(repr(p.reference) for p in gone)
            raise RecipeError(
                f"In tensor {name!r} what is left of {listed} changes by different factors, and these inputs are gone; "
                "give them and roll back by replay."
            )
        return wanted[0]
    base = Recipe.load(merge.manifest.recipe).document.base_model
    models = [p for p in others if p.reference != str(base) and before.get(p)]
    ratios = [after.get(p, 0.0) / before[p] for p in models]
    return max(ratios, key=lambda r: sum(_is_same(r, other) for other in ratios), default=0.0)


def _is_same(one: float, other: float) -> bool:
    return abs(one - other) <= _SAME * max(abs(one), abs(other))


def _recipe(merge: _Merge, recipe: Recipe, shares: Mapping[str, Share]) -> Recipe:
    """A weighted average with weights for each tensor; tensors that are MERGED's or an input's own are copied."""
    merged = str(merge.folder)
    written = {str(model): model for model in merged_references(recipe.document)}
    references = [merged, *dict.fromkeys(p.reference for s in shares.values() for p in s.terms)]
    models = {name: reference_data(written.get(name, Reference(name))) for name in references}
    weights = {
        name: tuple(s.merged if r == merged else s.weight(r) for r in references)
        for name, s in shares.items()
    }
    copied = {
        name: w.index(1.0) for name, w in weights.items() if max(w) == 1.0 == sum(map(abs, w))
    }
    mixed = {name: w for name, w in weights.items() if name not in copied}
    known = recipe.document
    content: dict[str, Any] = {
        "weightsmith": 1,
        "semantics": known.semantics,
        "merge_method": "linear",
        "models": [
            {
                "model": models[r],
                "parameters": {"weight": _setting({n: w[i] for n, w in mixed.items()})},
            }
            for i, r in enumerate(references)
        ],
        "donor": models[merged],
        "parameters": {"normalize": all(abs(math.fsum(w) - 1.0) < _SAME for w in mixed.values())},
        "rules": [
            {"match": {"name": _names(n for n, k in copied.items() if k == i)}, "keep": models[r]}
            for i, r in enumerate(references)
            if i in copied.values()
        ],
        "dtype": known.dtype,
        "out_dtype": known.out_dtype,
        "shard_size": known.shard_size,
        "nonfinite": known.nonfinite,
        "missing": None if known.missing is None else "skip",
        "untie": known.untie,
        "accept": list(known.accept or ()),
    }
    return Recipe.load({key: value for key, value in content.items() if value not in (None, [])})


def _setting(values: Mapping[str, float]) -> Any:
    """One value where all tensors have it, else the most frequent one after conditions for the others."""
    counted = Counter(values.values()).most_common()
    if len(counted) <= 1:
        return counted[0][0] if counted else 0.0
    usual = counted[0][0]
    conditions: list[dict[str, Any]] = [
        {"match": {"name": _names(n for n, v in values.items() if v == value)}, "value": value}
        for value, _ in counted[1:]
    ]
    return [*conditions, {"value": usual}]


def _names(names: Iterable[str]) -> str:
    return f"^(?:{'|'.join(map(re.escape, names))})$"


def _check(made: Recipe, merge: _Merge, shares: Mapping[str, Share]) -> None:
    """Require that the recipe reads what it should with the coefficients that it should."""
    resolved = resolve(made, merged_opener(merge.folder, merge.opener))
    wrong = next((f for f in resolved.findings if f.severity is Severity.ERROR), None)
    if wrong is not None:
        raise RecipeError(f"The contributor cannot be subtracted: {wrong.sentence}")
    tracer = Tracer()
    merged = str(merge.folder)
    for tensor in resolved.outputs:
        share = shares[tensor.name]
        found = _terms(tensor, resolved, tracer)
        own = [p for p in found if p.reference in (merged, _MERGED.reference)]
        wanted = dict(share.terms) | ({own[0]: share.merged} if own else {})
        fits = (not own and share.merged == 0.0) or (own and own[0].rounded_to is None)
        if not fits or any(
            abs(found.get(p, 0.0) - wanted.get(p, 0.0)) > _SAME
            for p in found.keys() | wanted.keys()
        ):
            raise RecipeError(
                f"Tensor {tensor.name!r} was read from another place or rounded before it was merged, so the "
                "contributor cannot be subtracted; give every other input and roll back by replay."
            )
