"""Find the stacks of repeated blocks in a checkpoint from its names and shapes alone.

A stack is a list of blocks of one pattern: `model.layers.0 ... model.layers.31`. The layer of
a tensor is its block's number there, not any integer in its name: T5's `block.3.layer.1` and
an expert's number are not layers. Where the outer list is one of stages (blocks of different
widths that hold lists of equal blocks, as in ResNet and Swin), the inner lists are the stacks.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from weightsmith.naming import blocks_in, natural_key

# Names under which a list of a single block is still a stack.
_LIST_NAMES = frozenset({"layers", "layer", "h", "block", "blocks", "resblocks"})
_MINIMUM_LONE_BLOCK = 4

_Shape = tuple[int, ...]
_Children = dict[int, dict[str, _Shape]]


@dataclass(frozen=True, slots=True)
class Stack:
    """One stack: its name prefix, the block numbers present (ascending), and its elements."""

    prefix: str
    layers: tuple[int, ...]
    elements: int

    @property
    def count(self) -> int:
        """Number of blocks, counting from 0 to the highest present."""
        return self.layers[-1] + 1

    @property
    def family(self) -> str:
        """The prefix with its numbers blotted out: stages of one network share it."""
        return re.sub(r"\d+", "*", self.prefix)


def find_stacks(shapes: Mapping[str, _Shape]) -> dict[str, Stack]:
    """All stacks by prefix, in natural order of the prefixes."""
    lists = _outer_lists(shapes)
    blocks = {prefix: c for prefix, c in lists.items() if _is_block_list(prefix, c)}
    # A list of bare modules (`classifier.0.weight`) is a stack only in a network of nothing else.
    chosen = blocks or {prefix: c for prefix, c in lists.items() if len(c) > 1}
    stacks: dict[str, Stack] = {}
    for prefix in sorted(chosen, key=natural_key):
        for inner, children in _stages(prefix, chosen[prefix]).items():
            elements = sum(math.prod(s) for block in children.values() for s in block.values())
            stacks[inner] = Stack(inner, tuple(sorted(children)), elements)
    return stacks


def place(name: str, stacks: Mapping[str, Stack]) -> tuple[str | None, int | None]:
    """The stack prefix and layer of a tensor name; both None outside every stack."""
    for prefix, number, _ in blocks_in(name):
        if prefix in stacks:
            return prefix, number
    return None, None


def depths(stacks: Iterable[Stack]) -> dict[tuple[str, int], tuple[int, int]]:
    """Position in depth of every block: (stack, layer) -> (position from 0, number of blocks).

    Stages of one network count on from each other, so depth runs through them.
    """
    families: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for stack in stacks:
        families[stack.family].extend((stack.prefix, layer) for layer in stack.layers)
    return {
        block: (position, len(blocks))
        for blocks in families.values()
        for position, block in enumerate(blocks)
    }


def _outer_lists(shapes: Mapping[str, _Shape]) -> dict[str, _Children]:
    lists: dict[str, _Children] = defaultdict(dict)
    for name, shape in shapes.items():
        for prefix, number, rest in blocks_in(name):
            lists[prefix].setdefault(number, {})[rest] = shape
            break
    return dict(lists)


def _is_block_list(prefix: str, children: _Children) -> bool:
    """Whether the elements are blocks of one pattern, and not a sequence of bare modules."""
    suffixes = Counter(suffix for block in children.values() for suffix in block)
    if not any("." in suffix for suffix in suffixes):
        return False
    if len(children) == 1:
        return prefix.rpartition(".")[2] in _LIST_NAMES or len(suffixes) >= _MINIMUM_LONE_BLOCK
    shared = {suffix for suffix, count in suffixes.items() if count > 1}
    alike = sum(len(shared & block.keys()) / len(block) for block in children.values())
    return alike / len(children) >= 0.5


def _stages(prefix: str, children: _Children) -> dict[str, _Children]:
    """The inner lists by prefix where `children` are stages, else the list itself."""
    whole = {prefix: children}
    if len(children) < 2 or not _widths_differ(children):
        return whole
    paths: Counter[str] = Counter()
    inner: dict[str, dict[str, _Children]] = defaultdict(dict)
    for stage, block in children.items():
        for path, blocks in _outer_lists(block).items():
            if _is_block_list(path, blocks):
                paths[path] += 1
                inner[path][f"{prefix}.{stage}.{path}"] = blocks
    if not paths:
        return whole
    path, stages = paths.most_common(1)[0]
    repeated = any(len(blocks) > 1 for blocks in inner[path].values())
    return inner[path] if repeated and 2 * stages > len(children) else whole


def _widths_differ(children: _Children) -> bool:
    """Whether most tensors that several blocks have are of different shapes there."""
    seen: dict[str, set[_Shape]] = defaultdict(set)
    counts: Counter[str] = Counter()
    for block in children.values():
        for suffix, shape in block.items():
            seen[suffix].add(shape)
            counts[suffix] += 1
    shared = [suffix for suffix, count in counts.items() if count > 1]
    return 2 * sum(len(seen[suffix]) > 1 for suffix in shared) > len(shared)
