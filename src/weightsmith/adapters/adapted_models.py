"""A model by its reference: a checkpoint, or one with adapters that are applied while it is read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsmith.adapters.references import AdapterReference, Reference, parse_reference
from weightsmith.checkpoints import (
    Attached,
    BareAdapter,
    Checkpoint,
    find_location,
    open_checkpoint,
)
from weightsmith.errors import CheckpointError
from weightsmith.tensors import LazyTensor

if TYPE_CHECKING:
    from weightsmith.adapters.adapter import Adapter

# How factors are called in all dialects.
_FACTOR = re.compile(
    r"[._](lora_(embedding_)?[AB]|lora_(up|down|mid)|lora(_linear_layer)?\.(up|down)|hada_w[12]_[ab]"
    r"|lokr_w[12](_[ab])?|ia3_l|b?oft_(embedding_)?R|hira_(embedding_)?[AB]|vera_lambda_[bd]|randlora_lambda|miss_block"
    r"|fourierft_spectrum|shira_weight|delora_[AB])(\.|$)"
    r"|^(lora_(unet|transformer|te[0-9]?)|lycoris)_.*\.(diff|diff_b|w_norm|b_norm)$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class PlacedAdapter:
    """An adapter, and where it is opened: `place` is a path or Hub id with revision."""

    reference: AdapterReference
    place: str


def open_model(
    reference: str | Path | Reference, *, bases: Mapping[str, Path] | None = None
) -> Checkpoint:
    """Open `BASE[@REVISION][+ADAPTER[@REVISION][:STRENGTH]]...` from headers and configurations.

    A text is parsed here, a `Reference` is taken as it is. Without adapters this is `open_checkpoint`. With them the
    checkpoint has the base's tensors, those that adapters change being computed as they are read, tile by tile:
    W + sum_i strength_i s_i B_i A_i in float64, rounded once to float32. A local path that exists is taken as it is,
    with `+` in it. `bases` is as for `open_checkpoint`. Raises CheckpointError for a reference of no such form, for an
    adapter where a checkpoint must stand, and what opening and attaching raise.
    """
    parts = reference if isinstance(reference, Reference) else _parsed(str(reference))
    placed = [PlacedAdapter(adapter, adapter.place) for adapter in parts.adapters]
    return open_with(parts.base, placed, source=str(reference), bases=bases)


def _parsed(text: str) -> Reference:
    try:
        return parse_reference(text)
    except ValueError as problem:
        raise CheckpointError(str(problem)) from None


def open_with(
    base: str,
    adapters: Sequence[PlacedAdapter],
    *,
    source: str,
    bases: Mapping[str, Path] | None = None,
) -> Checkpoint:
    """The checkpoint at `base` with adapters, called `source` in messages and records; raises as `open_model` does."""
    try:
        checkpoint = open_checkpoint(base, bases=bases)
        _refuse_adapter(checkpoint)
    except BareAdapter as problem:
        if adapters:
            # With another behind it, it is no adapter that stands alone.
            raise CheckpointError(str(problem)) from None
        raise
    if not adapters:
        return replace(checkpoint, source=source)
    from weightsmith.adapters.attaching import attach

    opened = [_opened(placed) for placed in adapters]
    changed = attach(
        checkpoint,
        [(adapter, found.strength) for adapter, found in opened],
    )
    attached = tuple(found for _, found in opened)
    return replace(changed, source=source, base_source=base, attached=attached)


def called(checkpoint: Checkpoint, reference: Reference) -> Checkpoint:
    """A checkpoint, its base and its adapters under the names that `reference` has for them, wherever they lie."""
    named = replace(checkpoint, source=str(reference))
    if not checkpoint.attached:
        return named
    is_whole = checkpoint.base_source == checkpoint.source
    if is_whole or len(checkpoint.attached) != len(reference.adapters):
        # Records of 0.1.0 may call the base like the whole, and masks are drawn by that. Else what lies there now has
        # other adapters than the reference says.
        return replace(named, base_source=named.source)
    pairs = zip(checkpoint.attached, reference.adapters, strict=True)
    attached = tuple(replace(adapter, source=written.place) for adapter, written in pairs)
    return replace(named, base_source=reference.base, attached=attached)


def place_of(checkpoint: Checkpoint) -> str:
    """Where a checkpoint lies, with its task and the names of its adapters, in the form of a reference."""
    return f"{checkpoint.path}{form_of(checkpoint)}"


def form_of(checkpoint: Checkpoint) -> str:
    """What stands behind the place of a checkpoint in a reference to it: `#task`, `+adapter:0.5`."""
    task = "" if checkpoint.member is None else f"#{checkpoint.member}"
    named = (AdapterReference(a.name, None, a.strength, a.component) for a in checkpoint.attached)
    return task + "".join(f"+{adapter}" for adapter in named)


def _opened(placed: PlacedAdapter) -> tuple[Adapter, Attached]:
    from weightsmith.adapters.adapter_reading import open_adapter

    location = find_location(placed.place)
    reference = placed.reference
    adapter = replace(open_adapter(location.path), source=reference.place)
    if reference.component is not None:
        adapter = adapter.of_component(reference.component)
    found = Attached(
        path=location.path,
        source=reference.place,
        strength=reference.strength,
        tensors=tuple(stored_tensors(adapter)),
        configuration=_digest(adapter.config),
        hub_id=location.hub_id,
        revision=location.revision,
        unsaved=adapter.unsaved,
        component=reference.component,
    )
    return adapter, found


def _digest(config: Mapping[str, Any]) -> str:
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def stored_tensors(adapter: Adapter) -> Iterator[LazyTensor]:
    """Everything that an adapter stores, tensor by tensor of its base."""
    for update in adapter.updates.values():
        yield from update.stored


def _refuse_adapter(checkpoint: Checkpoint) -> None:
    # One search over all names, which have no line breaks, is faster than one per name.
    if _FACTOR.search("\n".join(checkpoint.tensors)):
        raise BareAdapter(checkpoint.path, checkpoint.identity)
