"""Changes of fused experts, for a base that stores its experts apart.

In memory the experts of a block are one tensor each of `gate_up_proj` (a gate's rows above those of an up projection)
and `down_proj`, and so an adapter has factors for these; files may have `experts.0.gate_proj.weight` and so on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from weightsmith.adapters.adapter import Update
from weightsmith.adapters.updates import loaded
from weightsmith.deltas import Change, LowRankChange, Stacked
from weightsmith.errors import CompatibilityError
from weightsmith.tensors import shown

# The tensors of one expert that a fused one is made of, in the order of its rows, as families name them.
_APART = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}
# Fused changes that are held while their experts are read one after the other.
_HELD = 8


def apart(updates: Sequence[Update], find: Callable[[str], str | None]) -> list[Update]:
    """The updates, those of fused experts replaced by one for each tensor that the base has in their place.

    `find` gives the base's name for a target, or None. Raises CompatibilityError where a fused change does not divide
    into the base's tensors.
    """
    found: list[Update] = []
    for update in updates:
        parts = _parts_in_base(update, find)
        found.extend([update] if parts is None else _divided(update, parts))
    return found


def _parts_in_base(update: Update, find: Callable[[str], str | None]) -> tuple[str, ...] | None:
    module, _, leaf = update.target.rpartition(".")
    if leaf not in _APART or update.load is None or len(update.shape or ()) != 3:
        return None
    if find(update.target) is not None:
        return None
    for parts in _APART[leaf]:
        if all(find(f"{module}.0.{part}.weight") is not None for part in parts):
            return parts
    return None


def _divided(update: Update, parts: tuple[str, ...]) -> Iterator[Update]:
    assert update.shape is not None
    experts, rows, columns = update.shape
    height, rest = divmod(rows, len(parts))
    if rest:
        raise CompatibilityError(
            f"{shown(update.target)} has {rows} rows for each expert, which are not those of {len(parts)} matrices: "
            "give the base that the adapter was trained on."
        )
    module = update.target.rpartition(".")[0]
    for expert in range(experts):
        for number, part in enumerate(parts):
            first = number * height
            yield replace(
                update,
                target=f"{module}.{expert}.{part}.weight",
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
