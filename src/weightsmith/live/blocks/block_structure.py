"""The parts of a network that are run one after another: its blocks, and what has weights before and behind them.

Blocks are the entries of the outermost lists of modules: the layers of Llama, GPT-2, BERT and ViT, the blocks of T5's
encoder and decoder, the stages of a ResNet. What lies around them is cut as high up as no list is inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightsmith.errors import UsageError

if TYPE_CHECKING:
    from weightsmith.live.live_model import LiveModel


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A module that is called as a whole; `stack` is the list that it is a block of, or None."""

    path: str
    module: Any
    stack: str | None


def find_parts(name: str, network: Any) -> tuple[Part, ...]:
    """The parts of a network, each once; weights that are in none are those of modules around lists.

    Raises UsageError for a network without lists of modules.
    """
    found = _distinct_parts(network)
    if not found:
        raise UsageError(
            f"{name!r} is a {type(network).__name__} without a list of blocks that could be run one by one; run it "
            "whole."
        )
    return found


def count_parts(network: Any) -> int:
    """How many parts a network is run in block by block; 0 for one without lists of modules."""
    return len(_distinct_parts(network))


def block_modules(model: LiveModel) -> tuple[Any, ...]:
    """The modules that are the blocks of a network; raises UsageError for one without a list of modules."""
    parts = find_parts(model.name, model.module)
    return tuple(part.module for part in parts if part.stack is not None)


def _distinct_parts(network: Any) -> tuple[Part, ...]:
    """The parts of a network, each once; none where no list of modules is among them."""
    found: dict[int, Part] = {}
    for part in _parts(network, ""):
        found.setdefault(id(part.module), part)
    is_cut = any(part.stack is not None for part in found.values())
    return tuple(found.values()) if is_cut else ()


def _parts(module: Any, path: str) -> Iterator[Part]:
    prefix = f"{path}." if path else ""
    for key, child in module.named_children():
        if _is_list(module) and _has_weights(child):
            yield Part(f"{prefix}{key}", child, path)
        elif _has_list(child):
            yield from _parts(child, f"{prefix}{key}")
        elif _has_weights(child):
            yield Part(f"{prefix}{key}", child, None)


def _is_list(module: Any) -> bool:
    from torch import nn

    return isinstance(module, (nn.ModuleList, nn.Sequential))


def _has_list(module: Any) -> bool:
    return any(_is_list(inner) and _has_weights(inner) for inner in module.modules())


def _has_weights(module: Any) -> bool:
    return next(module.parameters(), None) is not None or bool(module.state_dict())
