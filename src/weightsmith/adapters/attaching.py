"""A base seen with adapters: a checkpoint whose adapted tensors are computed while they are read."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from weightsmith.adapters.adapter import Adapter, Update, listed
from weightsmith.adapters.added_heads import Heads, heads_of, with_heads
from weightsmith.adapters.applying import combined, fitted
from weightsmith.adapters.component_places import component_of
from weightsmith.adapters.experts import apart
from weightsmith.adapters.ldm_names import joined_projections, respelled
from weightsmith.adapters.resized_vocabularies import refuse_resized, with_grown_vocabulary
from weightsmith.adapters.resolving import Names, resolve
from weightsmith.adapters.tied import joined_with_ties
from weightsmith.checkpoints import Checkpoint, stores_experts_input_first
from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.tensors import shown

Weighted = tuple[Update, float]
Turned = Mapping[str | None, bool]
_Part = tuple[Checkpoint, list[Update]]


def attach(
    base: Checkpoint,
    adapters: Sequence[tuple[Adapter, float]],
    *,
    component: str | None = None,
) -> Checkpoint:
    """The base with adapters, each with the strength that its change is multiplied with.

    A tensor W becomes W + sum_i strength_i (W_i - W), W_i being what adapter i makes of it alone: W + s B A for LoRA,
    g (W + s B A) / ||W + s B A|| for DoRA, the adapter's own tensor for one that is replaced. It reads as float32
    (float64 where the base is float64) and counts as the base's dtype (`Checkpoint.stored_as`); a tensor that is only
    replaced, at strength 1, reads as it is stored. With strength 0 an adapter is checked and leaves the base as it is.

    An adapter of several parts of a pipeline is used for all of them where the base has all (`component_places`);
    `component` names the one that it is to be used for. Other than that every tensor of every adapter must be found in
    the base. A grown vocabulary and the head of a classifier are taken whole (`resized_vocabularies`, `added_heads`).
    Raises CompatibilityError where a tensor is not there, has another shape or is quantised, or where only one of two
    tied tensors changes; UsageError for a strength that is not finite. Nothing but headers is read.
    """
    names = Names(base)
    changes: dict[str, list[Weighted]] = defaultdict(list)
    heads: list[Heads] = []
    for adapter, strength in adapters:
        if not math.isfinite(strength):
            raise UsageError(
                f"The strength {strength} of adapter {shown(adapter.source)} is not a finite number: give one."
            )
        taken = adapter if component is None else adapter.of_component(component)
        own = heads_of(taken, names, strength)
        heads += [own] if strength else []
        for name, update in _of_all_parts(own.rest, names).items():
            changes[name].append((update, strength))
    tensors = dict(base.tensors)
    stored_as = dict(base.stored_as)
    for name, updates in changes.items():
        dtype = base.dtype_of(name)
        tensors[name] = combined(base.tensors[name], updates)
        if tensors[name].dtype is not dtype:
            stored_as[name] = dtype
    changed = replace(base, tensors=tensors, stored_as=stored_as)
    places = [adapter.path for adapter, _ in adapters]
    for found in heads:
        changed = with_heads(changed, found)
    return with_grown_vocabulary(changed, base, places)


def fitted_updates(
    base: Checkpoint, adapter: Adapter, *, component: str | None = None
) -> dict[str, Update]:
    """What an adapter of one component does to each tensor of a base, by the base's names and in its orientation.

    Raises what `attach` raises, and CompatibilityError for an adapter of several components, of which `component` names
    one, and for tensors of other rows than the base's, which are no change of those.
    """
    taken = adapter if component is None else adapter.of_component(component)
    components = dict.fromkeys(update.component for update in taken.updates.values())
    if len(components) > 1:
        raise CompatibilityError(
            f"Adapter {shown(adapter.source)} changes {listed(components)}: name the one of them that is meant "
            "(component)."
        )
    found = _of_part(taken, (base, list(taken.updates.values())), Names(base))
    for name, update in found.items():
        refuse_resized(update, base.tensors[name])
    return found


def _of_all_parts(adapter: Adapter, names: Names) -> dict[str, Update]:
    """What an adapter does to each tensor of a base, which may have its components in places of their own."""
    found: dict[str, Update] = {}
    for part in _placed(adapter, names.base):
        found |= _of_part(adapter, part, names)
    return found


def _of_part(adapter: Adapter, part: _Part, names: Names) -> dict[str, Update]:
    (place, updates), base = part, names.base
    own = names if place is base else Names(place)
    turned = turned_stacks(base)
    if not adapter.flattened:
        updates = apart(updates, own)
    kept, settle = joined_with_ties(place, adapter, updates)
    kept = [u for u in kept if not u.optional or own.find(u.target) is not None]
    found = resolve(adapter, kept, own)
    beside = {u.target: place.tensors[found[u.key]].shape for u in kept}
    changed: dict[str, Update] = {}
    for update in kept:
        name = place.tensors[found[update.key]].name
        changed[name] = _fitted(base, name, update, turned, beside)
    if place is base:
        settle(changed)
    return changed


def _fitted(
    base: Checkpoint,
    name: str,
    update: Update,
    turned: Turned,
    beside: Mapping[str, tuple[int, ...]] | None = None,
) -> Update:
    input_first = stores_input_first(base, name, turned)
    return fitted(update, base.tensors[name], input_first=input_first, beside=beside)


def turned_stacks(base: Checkpoint) -> Turned:
    """For each stack whose attention is known, whether its matrices are stored as inputs x outputs."""
    found: dict[str | None, bool] = {}
    for role in base.places.values():
        if role.kind.matches("expert"):
            continue
        if role.input_first or role.kind.matches("attention"):
            found[role.stack] = found.get(role.stack, False) or role.input_first
    return found


def stores_input_first(base: Checkpoint, name: str, turned: Turned | None = None) -> bool | None:
    """Whether the base stores a tensor as inputs x outputs; None where nothing in it tells.

    `turned` are the base's `turned_stacks`, for who asks of many tensors.
    """
    if len(base.tensors[name].shape) == 3:
        return stores_experts_input_first(base.config)
    turned = turned_stacks(base) if turned is None else turned
    role = base.places.get(name)
    if any(turned.values()):
        return role is not None and role.input_first
    return False if role is not None and role.stack in turned else None


def _placed(adapter: Adapter, base: Checkpoint) -> list[_Part]:
    """The updates of each component with the part of the base that they are of: the base itself where it is one."""
    by_component: dict[str | None, list[Update]] = defaultdict(list)
    for update in adapter.updates.values():
        by_component[update.component].append(update)
    if by_component.keys() == {None}:
        return [(base, by_component[None])]
    parts = {c: _part(adapter, c, updates, base) for c, updates in by_component.items()}
    lost = [c for c, part in parts.items() if part is None]
    if len(by_component) == 1 or not lost or len(lost) == len(parts):
        return [part or (base, by_component[c]) for c, part in parts.items()]
    first = next(iter(by_component[lost[0]]))
    fits = [c for c, part in parts.items() if part is not None]
    raise CompatibilityError(
        f"Adapter {shown(adapter.source)} also changes {listed(lost)} (such as {shown(first.key)}), which "
        f"{base.identity} does not have: say that it is to be used for {listed(fits)} alone (`--component`, or "
        "`component:` beside the adapter's path in a recipe)."
    )


def _part(
    adapter: Adapter, component: str | None, updates: list[Update], base: Checkpoint
) -> _Part | None:
    """The part that updates fit, under the names that they mean, and the updates; None where they fit none."""
    own = component_of(base, component) or base
    if _fits(adapter, updates, own, base):
        return own, updates
    other = None if component is None else respelled(own)
    if other is None:
        return None if own is base else (own, updates)
    joined = joined_projections(updates, other)
    if _fits(adapter, joined, other, base):
        return other, joined
    return None if own is base else (own, updates)


def _fits(adapter: Adapter, updates: Sequence[Update], place: Checkpoint, base: Checkpoint) -> bool:
    try:
        found = resolve(adapter, updates, Names(place))
        turned = turned_stacks(base)
        for update in updates:
            _fitted(base, place.tensors[found[update.key]].name, update, turned)
    except CompatibilityError:
        return False
    return True
