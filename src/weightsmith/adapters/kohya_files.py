"""Files of kohya's scripts and of LyCORIS: flat keys, `<prefix>_<module path with _ for .>.<part>`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from weightsmith.adapters.adapter import Update
from weightsmith.adapters.components import OF_KOHYA_PREFIX
from weightsmith.adapters.module_parts import LYCORIS_PARTS, PARTS, foreign, keep, module_updates
from weightsmith.errors import CheckpointError
from weightsmith.tensors import LazyTensor

_KEY = re.compile(rf"^(?P<prefix>{'|'.join(OF_KOHYA_PREFIX)})_(?P<module>[^.]+)\.(?P<part>.+)$")
_WORDS = {"lora_A": "lora_down", "lora_B": "lora_up"}


def is_flat(tensors: Sequence[LazyTensor]) -> bool:
    """Whether the first tensor's key is one of these files."""
    return bool(tensors) and _KEY.match(tensors[0].name) is not None


def kohya_updates(tensors: Sequence[LazyTensor]) -> tuple[dict[str, Update], str]:
    """What each tensor of a file does, by `Update.key` with flat names, and the dialect: `kohya` or `lycoris`.

    Raises CheckpointError, naming the key, for one that is unknown, and as `module_updates` does.
    """
    modules: dict[tuple[str | None, str], dict[str, LazyTensor]] = {}
    for tensor in tensors:
        found = _KEY.match(tensor.name)
        if found is None:
            raise foreign(tensor, tensor.name.rpartition(".")[2])
        part = part_of(found["part"])
        if part is None:
            raise foreign(tensor, found["part"])
        place = (OF_KOHYA_PREFIX[found["prefix"]], found["module"])
        keep(modules.setdefault(place, {}), part, tensor)
    dialect = "kohya"
    updates: dict[str, Update] = {}
    for (component, module), parts in modules.items():
        if LYCORIS_PARTS & parts.keys():
            dialect = "lycoris"
        for update in module_updates(module, parts, None, component):
            if update.key in updates:
                raise CheckpointError(
                    f"{update.sources[0].location} is one of two changes of {update.key!r}: save the adapter again."
                )
            updates[update.key] = update
    return updates, dialect


def part_of(text: str) -> str | None:
    """The part that the end of a key names, in kohya's words, or None for an unknown one."""
    stem, _, last = text.partition(".")
    stem = _WORDS.get(stem, stem)
    if last == "bias" and stem == "lora_up":
        return "up_bias"
    if stem not in PARTS or stem == "up_bias" or last not in ("", "weight"):
        return None
    return stem
