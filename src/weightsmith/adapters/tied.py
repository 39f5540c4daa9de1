"""Adapters of an embedding or an output head that are one tensor in the base.

A change of the one is a change of the other once it is in the weights, though it was not while the adapter was trained,
unless PEFT tied the adapters as well. So both must change alike, or the base must be untied first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from weightsmith.adapters.adapter import Adapter, Form, Update
from weightsmith.adapters.updates import loaded
from weightsmith.checkpoints import Checkpoint, Tying, vocabulary_embedding, vocabulary_head
from weightsmith.deltas import LowRankChange, read_matrix
from weightsmith.errors import CompatibilityError
from weightsmith.tensors import shown

# What families call a head that is not stored where it is tied.
_HEADS = frozenset({"lm_head", "embed_out", "output", "generator_lm_head"})

Settle = Callable[[dict[str, Update]], None]


def joined_with_ties(
    base: Checkpoint, adapter: Adapter, updates: Sequence[Update]
) -> tuple[list[Update], Settle]:
    """The updates without that of a head that the base does not store, and what settles the resolved ones.

    It gives tensors that the base ties the one update that PEFT writes of them where it tied their changes too, and
    raises CompatibilityError where tied tensors do not change alike.
    """
    kept = list(updates)
    embedding = vocabulary_embedding(base.tensors, base.places)
    unstored: Update | None = None
    is_lone = base.tying is Tying.TIED and vocabulary_head(base.tensors, base.places) is None
    if is_lone:
        unstored = next((u for u in kept if _is_head(u)), None)
        kept = [u for u in kept if u is not unstored]

    def settle(found: dict[str, Update]) -> None:
        for group in base.ties:
            names = sorted(group)
            _check_group(base, adapter, [found.get(name) for name in names])
            changed = next((found[name] for name in names if name in found), None)
            if changed is not None:
                found.update({n: replace(changed, target=n) for n in names if n not in found})
        if is_lone:
            _check_group(base, adapter, [found.get(embedding or ""), unstored])

    return kept, settle


def _check_group(base: Checkpoint, adapter: Adapter, group: Sequence[Update | None]) -> None:
    changed = [update for update in group if update is not None]
    if not changed or (len(changed) == 1 and _is_tied(adapter, changed[0])):
        return
    if len(changed) == len(group) and all(_alike(changed[0], other) for other in changed[1:]):
        return
    raise CompatibilityError(
        f"Adapter {shown(adapter.source)} changes {shown(changed[0].key)} in another way than the tensor that it is "
        f"tied to in {base.identity}, which no weights of a tied model can show: untie the base first (store its "
        "embedding as a head of its own and set tie_word_embeddings to false)."
    )


def _is_head(update: Update) -> bool:
    module = update.target.rpartition(".")[0]
    return update.target.endswith(".weight") and module.rpartition(".")[2] in _HEADS


def _is_tied(adapter: Adapter, update: Update) -> bool:
    """Whether PEFT tied the other tensors' change to this one, of which alone it then writes."""
    return update.form is Form.ROWS or bool(adapter.config.get("ensure_weight_tying"))


def _alike(below: Update, head: Update) -> bool:
    """Whether two updates of tensors of one shape are the same change."""
    if any(u.effect is not None or u.rewrite is not None for u in (below, head)):
        return False
    if (below.replacement is None, below.load is None) != (
        head.replacement is None,
        head.load is None,
    ):
        return False
    if below.replacement is not None and head.replacement is not None:
        one, other = read_matrix(below.replacement), read_matrix(head.replacement)
        if below.rows != head.rows or not np.array_equal(one, other):
            return False
        if below.load is None:
            return True
    if below.magnitude is not None or head.magnitude is not None:
        return False
    first, second = loaded(below)(), loaded(head)()
    if not isinstance(first, LowRankChange) or not isinstance(second, LowRankChange):
        return False
    return (
        first.scale == second.scale
        and np.array_equal(first.left, second.left)
        and np.array_equal(first.right, second.right)
    )
