"""Adapters that were initialised from their base: PiSSA, OLoRA, CorDA and LoRA-GA as plain LoRA.

Such training begins with factors B0, A0 taken out of the base, W_res = W - s B0 A0, and ends with W_res + s B A. With
the adapter as it was before training this is W + s [B | -B0] [A ; A0], of rank 2 r and with the same s.
(PiSSA: Meng et al. 2024, arXiv:2404.02948; OLoRA: Buyukakyuz 2024, arXiv:2406.01775.)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from weightsmith.adapters.adapter import Adapter, Form, Update
from weightsmith.adapters.updates import loaded
from weightsmith.deltas import Change, LowRankChange
from weightsmith.errors import CompatibilityError
from weightsmith.tensors import shown


def against_base(adapter: Adapter, initial: Adapter) -> Adapter:
    """The adapter as a change of the base before anything was taken out of it.

    Raises CompatibilityError where the two do not change the same tensors with factors of the same shapes.
    """
    pairs = {key: u for key, u in adapter.updates.items() if u.load is not None and u.rank}
    before = {key: u for key, u in initial.updates.items() if u.load is not None and u.rank}
    odd = sorted(pairs.keys() ^ before.keys())
    if odd:
        raise CompatibilityError(
            f"{shown(odd[0])} is changed by only one of {shown(adapter.source)} and its initial adapter "
            f"{shown(initial.source)}: give the initial adapter of the same training."
        )
    updates = {
        key: _joined(update, before[key], initial) if key in before else update
        for key, update in adapter.updates.items()
    }
    config = {**adapter.config, "init_lora_weights": True}
    return replace(adapter, updates=updates, config=config, initial=initial.path)


def _joined(update: Update, before: Update, initial: Adapter) -> Update:
    if update.form is not Form.LORA or before.form is not Form.LORA or update.shape != before.shape:
        raise CompatibilityError(
            f"{shown(update.target)} has other factors in the initial adapter {shown(initial.source)}: give the "
            "initial adapter of the same training."
        )
    after_load, before_load = loaded(update), loaded(before)

    def load() -> Change:
        after, first = after_load(), before_load()
        if not isinstance(after, LowRankChange) or not isinstance(first, LowRankChange):
            raise CompatibilityError(
                f"{shown(update.target)} holds fused experts, which no initialisation from a base is known for: merge "
                "the adapter with PEFT."
            )
        ratio = first.scale / after.scale
        left = np.concatenate([after.left, -ratio * first.left], axis=1)
        return LowRankChange(left, np.concatenate([after.right, first.right]), after.scale)

    return replace(
        update,
        load=load,
        sources=(*update.sources, *before.sources),
        rank=(update.rank or 0) + (before.rank or 0),
        alpha=None if update.alpha is None or before.alpha is None else update.alpha + before.alpha,
    )
