"""Changes of fused experts, for a base that stores its experts apart.

In memory the experts of a block are one tensor each of `gate_up_proj` (a gate's rows above those of an up projection)
and `down_proj`, and so an adapter has factors for these; files may have `experts.0.gate_proj.weight` and so on.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from weightsmith.adapters.adapter import Update
from weightsmith.adapters.resolving import Names
from weightsmith.adapters.updates import loaded
from weightsmith.deltas import Change, LowRankChange, Stacked
from weightsmith.errors import CompatibilityError
from weightsmith.tensors import shown

# Fused changes that are held while their experts are read one after the other.
_HELD = 8


def apart(updates: Sequence[Update], names: Names) -> list[Update]:
    """The updates, those of fused experts replaced by one for each tensor that the base has in their place.

    Raises CompatibilityError where a fused change does not divide into the base's tensors.
    """
    found: list[Update] = []
    for update in updates:
        parts = _parts_in_base(update, names)
        found.extend(_divided(update, parts) if parts else [update])
    return found


def _parts_in_base(update: Update, names: Names) -> tuple[str, ...]:
    shape = update.shape or ()
    if update.load is None or len(shape) != 3 or names.find(update.target) is not None:
        return ()
    pieces = names.spelling.pieces(names.spelling.canonical(update.target), shape)
    return pieces if all(names.find(piece) is not None for piece in pieces) else ()


def _divided(update: Update, parts: Sequence[str]) -> Iterator[Update]:
    assert update.shape is not None
    experts, rows, columns = update.shape
    of_each = len(parts) // experts
    height, rest = divmod(rows, of_each)
    if rest:
        raise CompatibilityError(
            f"{shown(update.target)} has {rows} rows for each expert, which are not those of {of_each} matrices: "
            "give the base that the adapter was trained on."
        )
    for number, part in enumerate(parts):
        expert, place = divmod(number, of_each)
        first = place * height
        yield replace(
            update,
            target=part,
            shape=(height, columns),
            load=functools.partial(_rows_of, update, expert, first, first + height),
        )


def _rows_of(update: Update, expert: int, first: int, last: int) -> Change:
    change = _experts(update)[expert]
    assert isinstance(change, LowRankChange)
    return LowRankChange(change.left[first:last], change.right, change.scale)


@functools.lru_cache(maxsize=_HELD)
def _experts(update: Update) -> tuple[Change, ...]:
    change = loaded(update)()
    assert isinstance(change, Stacked)
    return change.parts
