"""Configurations of strangers: a network is built only if the checkpoint could have it.

Any number may stand in a config.json, and networks are built from it module by module.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from weightsmith.checkpoints import sections
from weightsmith.errors import CompatibilityError
from weightsmith.live.model_source import Source
from weightsmith.wording import counted, literal, shown

if TYPE_CHECKING:
    from torch.nn import Module

# Numbers that a configuration gives of modules that are made one by one; `max_window_layers` bounds what there is.
_COUNT = re.compile(
    r"^(?:num|n)_(?:.*_)?(?:layers?|blocks?|experts?|labels|stages?|heads?)$|^(?!max_).*(?:^|_)(?:layers|depths?)$"
)
_LAYERS = re.compile(r"layers?$|blocks?$|stages?$|depths?$")
# Classes that a network may have whatever its tensors; what its tables may be larger than the checkpoint's.
_MOST_CLASSES = 100_000
_MOST_TIMES, _MOST_MORE = 4, 2**26


def check_counts(source: Source) -> None:
    """Refuse numbers of layers and experts that are made one by one and that the checkpoint cannot have."""
    longest = max((max(t.shape, default=1) for t in source.tensors.values()), default=1)
    for section in sections(dict(source.config)):
        for key, value in section.items():
            if not _COUNT.search(key):
                continue
            most = len(source.tensors) if _LAYERS.search(key) else max(longest, _MOST_CLASSES)
            for count in value if isinstance(value, list) else [value]:
                if _number(count) > most:
                    raise CompatibilityError(
                        f"The config.json of {source.name!r} says {key}: {literal(count)}, but there are "
                        f"{counted(len(source.tensors), 'tensor')} of at most {longest} rows or columns; correct it."
                    )


def _number(value: Any) -> float:
    """A number however JSON has it, since networks are built with `int(value)`; 0 for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0
    except OverflowError:
        return math.inf


def check_size(source: Source, planned: Module) -> None:
    """Refuse a network that is far larger than the checkpoint, or whose tensors have other sizes."""
    made = {**dict(planned.named_parameters()), **dict(planned.named_buffers())}
    described, stored = (
        sum(t.numel() for t in made.values()),
        sum(t.numel for t in source.tensors.values()),
    )
    if described > _MOST_TIMES * stored + _MOST_MORE:
        raise CompatibilityError(
            f"The config.json of {source.name!r} describes a network of {counted(described, 'number')}, but the "
            f"checkpoint has {stored:,}; correct it."
        )
    for name in sorted(made.keys() & source.tensors.keys()):
        own, theirs = tuple(made[name].shape), source.tensors[name].shape
        if own != theirs and math.prod(own) != math.prod(theirs):
            raise CompatibilityError(other_shape(source.name, name, theirs, own))


def other_shape(source: str, name: str, stored: tuple[int, ...], own: tuple[int, ...]) -> str:
    """The sentence about a tensor that is no tensor of the network."""
    return (
        f"{shown(name)} of {source!r} has the shape {list(stored)}, but in the network that config.json "
        f"describes it has {list(own)}; correct config.json."
    )
