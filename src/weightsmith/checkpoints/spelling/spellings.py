"""One name, many spellings: what the names in a file are called in memory, which is the name that all files share.

    canonical    the name of a tensor in the network of transformers 5, whatever the file calls it
    parts        what a tensor is made of where files keep it apart: experts of a stack, q, k and v, gate and up

A spelling is recognised from the configuration and the names. The way back needs no rules: a file's own names are there
to be looked up.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from weightsmith.checkpoints.nested_config import sections
from weightsmith.checkpoints.spelling.part_views import Layout, Parts, Rearrange
from weightsmith.checkpoints.spelling.spelling_facts import (
    ALTERNATING_EXPERTS,
    BODIES,
    EITHER_WAY_EXPERTS,
    EVERYWHERE,
    FAMILIES,
    FUSED_APART,
    HEADS,
    INPUT_FIRST_EXPERTS,
    JOINED,
    ROUTERS_APART,
    STACKED,
    STACKED_IN_MEMORY,
    NamedAlike,
    Renamings,
)
from weightsmith.deltas import renamed, turned
from weightsmith.tensors import LazyTensor

Shape = tuple[int, ...]
_CACHED = 1 << 17


@dataclass(frozen=True, slots=True)
class Spelling:
    """How one checkpoint names its tensors.

    `renamings` are those of its families, `body` what the class that its configuration names calls the part that the
    file stores without a name for it, empty for most. `experts` tells how its stacked experts are made of their parts.
    """

    renamings: Renamings = ()
    body: str = ""
    experts: Layout = Layout.ROWS
    _rules: tuple[tuple[re.Pattern[str], str], ...] = field(init=False, repr=False)
    _known: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rules", _compiled(self.renamings))

    def canonical(self, name: str) -> str:
        """The name in memory of a tensor that the file calls `name`; a name in memory stays as it is."""
        found = self._known.get(name)
        if found is None:
            found = name
            for pattern, other in self._rules:
                found = pattern.sub(other, found, count=1)
            if self.body and not found.startswith((self.body, *HEADS)):
                found = self.body + found
            self._known[name] = found
        return found

    def pieces(self, canonical: str, shape: Shape) -> tuple[str, ...]:
        """The canonical names of the parts whose rows, one below the other, are the tensor; none for most."""
        return next(
            (one.names for one in self.parts(canonical, shape) if one.layout is Layout.ROWS), ()
        )

    def parts(self, canonical: str, shape: Shape) -> tuple[Parts, ...]:
        """The ways in which files keep a tensor apart, by canonical names; none for most."""
        stem, _, leaf = canonical.rpartition(".")
        end = f"{stem.rpartition('.')[2]}.{leaf}"
        start = canonical[: -len(end)]
        if end in STACKED and len(shape) == (2 if leaf.endswith("_bias") else 3):
            ways = [way[end] for way in (STACKED, FUSED_APART) if end in way]
            return tuple(
                Parts(
                    tuple(start + part.format(n) for n in range(shape[0]) for part in way),
                    self.experts,
                    len(way),
                )
                for way in ways
            )
        if end in JOINED and len(shape) in (1, 2):
            return (Parts(tuple(start + part for part in JOINED[end])),)
        return ()

    def counterpart(self, canonical: str) -> tuple[str, Rearrange] | None:
        """None: numbers in another order have one name here."""
        return None

    def as_shaped(self, canonical: str, tensor: LazyTensor, name: str, shape: Shape) -> LazyTensor:
        """The tensor under a name, turned where files of the family have it with its last two axes in either order."""
        is_turned = tensor.shape != shape and tensor.shape == (*shape[:-2], *shape[:-3:-1])
        end = ".".join(canonical.split(".")[-2:])
        if is_turned and self.experts is Layout.EITHER and end in STACKED:
            return turned(tensor, name)
        return renamed(tensor, name)

    def is_beside_weights(self, name: str) -> bool:
        """False: every tensor of a file is one of the network."""
        return False


def spelling_of(config: Mapping[str, Any] | None, names: Iterable[str]) -> Spelling:
    """The spelling of a checkpoint with these names, of which the configuration may be unknown."""
    listed = "\n".join(names)
    types = model_types(config)
    renamings = [pair for family in _families(types, listed) for pair in family.renamings]
    around = [pair for pair in EVERYWHERE if re.search(pair[0], listed, re.MULTILINE)]
    return Spelling(
        (*around, *dict.fromkeys(renamings)),
        _body(config, listed),
        _layout(types),
    )


def _layout(types: frozenset[str]) -> Layout:
    if types & EITHER_WAY_EXPERTS:
        return Layout.EITHER
    if types & ALTERNATING_EXPERTS:
        return Layout.ALTERNATING
    return Layout.COLUMNS if types & INPUT_FIRST_EXPERTS else Layout.ROWS


def model_types(config: Mapping[str, Any] | None) -> frozenset[str]:
    """The types of models, and of their parts, that tell how a configuration's checkpoint names its tensors."""
    found = {str(part.get("model_type")) for part in sections(dict(config or {}))}
    # A vision model that stands alone has names of its own, and one that is a part has those of the whole.
    whole = str((config or {}).get("model_type"))
    if _architecture(config).endswith("WithProjection"):
        return frozenset(found - _ALONE)
    return frozenset(found - _ALONE | {whole})


_ALONE = frozenset(
    "clip_vision_model siglip_vision_model clip_text_model siglip_text_model gemma3n_text qwen3_5_text "
    "qwen3_5_moe_text".split()
)


def stacks_experts(config: Mapping[str, Any] | None) -> bool:
    """Whether the experts of a network are one array in memory that files store one by one."""
    return not model_types(config).isdisjoint(STACKED_IN_MEMORY)


def keeps_routers_apart(config: Mapping[str, Any] | None) -> bool:
    """Whether the routers of a network are parameters of modules that are no linear layers."""
    return not model_types(config).isdisjoint(ROUTERS_APART)


def _families(types: frozenset[str], listed: str) -> list[NamedAlike]:
    if types != {"None"}:
        return [family for family in FAMILIES if family.types & types]
    return [f for f in FAMILIES if f.mark and re.search(f.mark, listed, re.MULTILINE)]


def _body(config: Mapping[str, Any] | None, listed: str) -> str:
    """What stands before the names in memory of a file that stores a body for a class that has more."""
    body = BODIES.get(str((config or {}).get("model_type")), "")
    architecture = _architecture(config)
    has_more = not architecture.endswith("Model") or architecture.endswith("HeadModel")
    if not body or not architecture or not has_more:
        return ""
    return "" if re.search(rf"^{re.escape(body)}", listed, re.MULTILINE) else body


def _architecture(config: Mapping[str, Any] | None) -> str:
    declared = (config or {}).get("architectures")
    return str(declared[0]) if isinstance(declared, list) and declared else ""


@functools.lru_cache(maxsize=64)
def _compiled(renamings: Renamings) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), other) for pattern, other in renamings)
