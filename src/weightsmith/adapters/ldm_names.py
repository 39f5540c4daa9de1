"""Adapters of Stable Diffusion's networks for a base that names them otherwise: in single files, or in diffusers.

What OpenCLIP keeps in one matrix of query, key and value gets one change of the three.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from weightsmith.adapters.adapter import Form, Update
from weightsmith.adapters.updates import loaded
from weightsmith.checkpoints import (
    Checkpoint,
    from_openclip,
    levels_with_attention,
    to_diffusers,
    to_ldm,
)
from weightsmith.deltas import Change, LowRankChange
from weightsmith.errors import CompatibilityError
from weightsmith.tensors import shown

_APART = re.compile(r"(.*self_attn[._])([qkv])_proj\.weight")


def respelled(part: Checkpoint) -> Checkpoint | None:
    """A part of a pipeline under the names of the other spelling; None where it has none that is known."""
    names: Callable[[str], str]
    if "time_embed.0.weight" in part.tensors or any(
        n.startswith("input_blocks.") for n in part.tensors
    ):
        names = to_diffusers
    elif any(name.startswith("down_blocks.") for name in part.tensors):
        with_attention = levels_with_attention(part.tensors)
        names = lambda name: to_ldm(name, with_attention)  # noqa: E731
    elif any(name.startswith("transformer.resblocks.") for name in part.tensors):
        names = from_openclip
    else:
        return None
    return replace(
        part,
        tensors={names(name): tensor for name, tensor in part.tensors.items()},
        places={names(name): place for name, place in part.places.items()},
    )


def joined_projections(updates: Sequence[Update], part: Checkpoint) -> list[Update]:
    """The updates with those of query, key and value as one of the matrix that `part` keeps of all three.

    Raises CompatibilityError for such a one that is no product of low rank.
    """
    if not any(name.endswith("self_attn.qkv_proj.weight") for name in part.tensors):
        return list(updates)
    kept: list[Update] = []
    apart: dict[str, dict[str, Update]] = defaultdict(dict)
    for update in updates:
        found = _APART.fullmatch(update.target)
        if found is None:
            kept.append(update)
        else:
            apart[found[1]][found[2]] = update
    return [*kept, *(_joined(module, own) for module, own in apart.items())]


def _joined(module: str, own: Mapping[str, Update]) -> Update:
    for update in own.values():
        if update.form is not Form.LORA or update.magnitude is not None or update.shape is None:
            raise CompatibilityError(
                f"{shown(update.key)} is kept with two others in one matrix here, for which only plain LoRA is read: "
                "apply the adapter to the model of diffusers."
            )
    first = next(iter(own.values()))
    assert first.shape is not None
    rows, columns = first.shape[0], first.shape[1]

    def load() -> Change:
        lefts, rights = [], []
        for at, letter in enumerate("qkv"):
            change = None if letter not in own else loaded(own[letter])()
            if isinstance(change, LowRankChange):
                left = np.zeros((3 * rows, change.rank))
                left[at * rows : (at + 1) * rows] = change.left * change.scale
                lefts.append(left)
                rights.append(change.right)
        return LowRankChange(np.concatenate(lefts, axis=1), np.concatenate(rights, axis=0))

    return replace(
        first,
        target=f"{module}qkv_proj.weight",
        sources=tuple(source for update in own.values() for source in update.sources),
        load=load,
        shape=(3 * rows, columns),
    )
