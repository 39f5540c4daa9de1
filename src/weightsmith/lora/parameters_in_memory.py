"""Factors of tensors that are matrices of their own in files, and in memory parameters that PEFT has no module for.

    experts   in files one by one, in memory one array of all: of expert e, with factors of its gate G and of its up U,
              [L_G R_G; L_U R_U] = [L_G 0; 0 L_U] [R_G; R_U]
    routers   in memory a parameter of a module that is no linear layer

Both are targets of `target_parameters`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from weightsmith.checkpoints import STACKED, Checkpoint, keeps_routers_apart, stacks_experts
from weightsmith.deltas import LowRankChange
from weightsmith.lora.low_rank_adapters import Factors, LowRankAdapter
from weightsmith.tensors import Kind

_EXPERT = re.compile(r"(.*\.)?experts\.(\d+)\.(\w+)\.weight")
# Expert and part of it, the first of which has the first rows.
_Parts = dict[tuple[int, int], Factors]


def with_parameters(adapter: LowRankAdapter, base: Checkpoint | None) -> LowRankAdapter:
    """The adapter with the factors of experts and routers as those of the parameters that memory has for them.

    Adapter and base have the names in memory.
    """
    if base is None:
        return adapter
    factors = dict(adapter.factors)
    if stacks_experts(base.config):
        factors = _stacked(factors, base)
    if keeps_routers_apart(base.config):
        factors = {key: _router(found, base) for key, found in factors.items()}
    return replace(adapter, factors={found.key: found for found in factors.values()})


def _router(found: Factors, base: Checkpoint) -> Factors:
    role = base.places.get(found.target)
    if role is None or role.kind is not Kind.ROUTER or found.part is not None:
        return found
    return replace(found, part=0, shape=(1, *found.shape))


def _stacked(factors: Mapping[str, Factors], base: Checkpoint) -> dict[str, Factors]:
    saved_modules: dict[str, _Parts] = defaultdict(dict)
    kept: dict[str, Factors] = {}
    for key, found in factors.items():
        match = _EXPERT.fullmatch(found.target)
        whole = None if match is None else _whole(match[1] or "", match[3], base)
        if match is None or whole is None:
            kept[key] = found
            continue
        name, place = whole
        saved_modules[name][int(match[2]), place] = found
    for name, parts in saved_modules.items():
        for stacked in _experts(name, parts, base):
            kept[stacked.key] = stacked
    return kept


def _whole(start: str, part: str, base: Checkpoint) -> tuple[str, int] | None:
    """The array that a part of an expert lies in, and its place there: the one all of whose parts the files have."""
    for end, parts in STACKED.items():
        names = [start + one.format(0) for one in parts]
        own = start + f"experts.0.{part}.weight"
        if own in names and all(name in base.tensors for name in names):
            return start + end, names.index(own)
    return None


def _experts(name: str, parts: _Parts, base: Checkpoint) -> list[Factors]:
    start = name.rpartition("experts.")[0]
    of_each = STACKED[name[len(start) :]]
    count = 0
    while start + of_each[0].format(count) in base.tensors:
        count += 1
    heights = [base.tensors[start + part.format(0)].shape[0] for part in of_each]
    found = []
    for expert in sorted({expert for expert, _ in parts}):
        own = [parts.get((expert, place)) for place in range(len(of_each))]
        change = _below_one_another(own, heights)
        shape = (count, *change.shape)
        found.append(Factors(name, change, shape, part=expert))
    return found


def _below_one_another(own: Sequence[Factors | None], heights: Sequence[int]) -> LowRankChange:
    given = [(place, factors.change) for place, factors in enumerate(own) if factors is not None]
    if len(given) == len(own) == 1:
        return given[0][1]
    ranks = [change.rank for _, change in given]
    left = np.zeros((sum(heights), sum(ranks)))
    first = 0
    for (place, change), rank in zip(given, ranks, strict=True):
        top = sum(heights[:place])
        left[top : top + heights[place], first : first + rank] = change.left * change.scale
        first += rank
    return LowRankChange(left, np.concatenate([change.right for _, change in given]), 1.0)
