"""A base seen with adapters: a checkpoint whose adapted tensors are computed while they are read."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from weightsmith.adapters.adapter import Adapter, Update
from weightsmith.adapters.applying import INPUT_FIRST_EXPERTS, combined, fitted
from weightsmith.adapters.experts import apart
from weightsmith.adapters.resolving import Names, resolve
from weightsmith.adapters.tied import ChangedApart, joined_with_ties
from weightsmith.checkpoints import Checkpoint, own_head_name, untied, vocabulary_embedding
from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.tensors import shown

Weighted = tuple[Update, float]
Turned = Mapping[str | None, bool]


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

    `component` names the part of a pipeline that the base is (`unet`, `text_encoder`), for an adapter of several. Other
    than that every tensor of every adapter must be found in the base. Raises CompatibilityError where one is not, has
    another shape or is quantised there; UsageError for a strength that is not
    finite. Nothing but headers is read. A base whose tied embedding and head are changed in different ways is seen with
    a head of its own.
    """
    try:
        return _attached(base, adapters, component)
    except ChangedApart:
        head = own_head_name(base)
        if head is None or any(_changes_both(base, adapter, component) for adapter, _ in adapters):
            raise
        return _attached(untied(base, head), adapters, component)


def _changes_both(base: Checkpoint, adapter: Adapter, component: str | None) -> bool:
    """Whether an adapter's one change of a tied tensor is meant for both, which an untied base would not show."""
    embedding = vocabulary_embedding(base.tensors, base.roles)
    try:
        return embedding in fitted_updates(base, adapter, component=component)
    except ChangedApart:
        return False


def _attached(
    base: Checkpoint, adapters: Sequence[tuple[Adapter, float]], component: str | None
) -> Checkpoint:
    names = Names(base)
    changes: dict[str, list[Weighted]] = defaultdict(list)
    for adapter, strength in adapters:
        if not math.isfinite(strength):
            raise UsageError(
                f"The strength {strength} of adapter {shown(adapter.source)} is not a finite number: give one."
            )
        for name, update in fitted_updates(base, adapter, component=component, names=names).items():
            changes[name].append((update, strength))
    tensors = dict(base.tensors)
    stored_as = dict(base.stored_as)
    for name, updates in changes.items():
        dtype = base.dtype_of(name)
        tensors[name] = combined(base.tensors[name], updates)
        if tensors[name].dtype is not dtype:
            stored_as[name] = dtype
    return replace(base, tensors=tensors, stored_as=stored_as)


def fitted_updates(
    base: Checkpoint,
    adapter: Adapter,
    *,
    component: str | None = None,
    names: Names | None = None,
) -> dict[str, Update]:
    """What an adapter does to each tensor of a base, by the base's names and in the base's orientation.

    Raises what `attach` raises.
    """
    names = names or Names(base)
    updates = _of_component(adapter, component, names)
    if not adapter.flattened:
        updates = apart(updates, names.find)
    updates, settle = joined_with_ties(base, adapter, updates)
    found = resolve(adapter, updates, names)
    turned = turned_stacks(base)
    fitted_ones = {
        found[update.key]: _fitted(base, found[update.key], update, turned) for update in updates
    }
    settle(fitted_ones)
    return fitted_ones


def _fitted(base: Checkpoint, name: str, update: Update, turned: Turned) -> Update:
    return fitted(update, base.tensors[name], input_first=stores_input_first(base, name, turned))


def turned_stacks(base: Checkpoint) -> Turned:
    """For each stack whose attention is known, whether its matrices are stored as inputs x outputs."""
    found: dict[str | None, bool] = {}
    for role in base.roles.values():
        if role.input_first or role.kind.matches("attention"):
            found[role.stack] = found.get(role.stack, False) or role.input_first
    return found


def stores_input_first(base: Checkpoint, name: str, turned: Turned | None = None) -> bool | None:
    """Whether the base stores a tensor as inputs x outputs; None where nothing in it tells.

    `turned` are the base's `turned_stacks`, for who asks of many tensors.
    """
    if len(base.tensors[name].shape) == 3:
        config = base.config or {}
        kinds = {
            str(config.get("model_type")),
            str((config.get("text_config") or {}).get("model_type")),
        }
        return bool(kinds & INPUT_FIRST_EXPERTS)
    turned = turned_stacks(base) if turned is None else turned
    role = base.roles.get(name)
    if any(turned.values()):
        return role is not None and role.input_first
    return False if role is not None and role.stack in turned else None


def _of_component(adapter: Adapter, component: str | None, names: Names) -> list[Update]:
    """The updates of the component that the base is."""
    by_component: dict[str | None, list[Update]] = defaultdict(list)
    for update in adapter.updates.values():
        by_component[update.component].append(update)
    if component is not None:
        if component not in by_component:
            raise CompatibilityError(
                f"Adapter {shown(adapter.source)} has nothing for {shown(component)}, but changes "
                f"{_listed(by_component)}: name one of these."
            )
        return by_component[component]
    if len(by_component) == 1:
        return next(iter(by_component.values()))
    fits = [c for c, updates in by_component.items() if _fits(adapter, updates, names)]
    if not fits:
        return [update for updates in by_component.values() for update in updates]
    others = {c: updates for c, updates in by_component.items() if c != fits[0]}
    first = next(iter(next(iter(others.values()))))
    raise CompatibilityError(
        f"Adapter {shown(adapter.source)} also changes {_listed(others)} (such as {shown(first.key)}), which "
        f"{names.base.identity} does not have: say that it is to be used for {shown(fits[0])} alone (component)."
    )


def _fits(adapter: Adapter, updates: Sequence[Update], names: Names) -> bool:
    try:
        found = resolve(adapter, updates, names)
        turned = turned_stacks(names.base)
        for update in updates:
            _fitted(names.base, found[update.key], update, turned)
    except CompatibilityError:
        return False
    return True


def _listed(components: Mapping[str | None, Sequence[Update]]) -> str:
    return ", ".join("tensors of no component" if c is None else shown(c) for c in components)
