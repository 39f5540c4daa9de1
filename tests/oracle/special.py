"""Families whose task vectors are special: of low rank, opposed, alike, orthogonal, or none at all.

All numbers are exact in float32, and so are their differences.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .families import Family, Place, Tensors

_Draw = Callable[[np.random.Generator, tuple[int, ...]], Sequence[np.ndarray]]
_Shapes = Mapping[str, tuple[int, ...]]

PLAIN: _Shapes = {
    "self_attn.q_proj.weight": (8, 8),
    "mlp.up_proj.weight": (12, 8),
    "mlp.down_proj.weight": (8, 12),
    "input_layernorm.weight": (8,),
}
NARROW: _Shapes = {
    "self_attn.q_proj.weight": (2, 8),
    "mlp.up_proj.weight": (8, 2),
    "mlp.down_proj.weight": (1, 5),
    "input_layernorm.weight": (1,),
}
"""Fewer rows or columns than tasks."""
_ROLES = {"q_proj": "attention.q", "up_proj": "mlp.up", "down_proj": "mlp.down"}


def _drawn(
    rng: np.random.Generator, shape: tuple[int, ...], size: float = 0.05, bits: int = 18
) -> np.ndarray:
    """Multiples of 2^-bits."""
    return np.asarray(np.round(rng.normal(0, size, shape) * 2.0**bits) / 2.0**bits)


def _of_rank(rng: np.random.Generator, shape: tuple[int, ...], rank: int) -> np.ndarray:
    """A matrix of low rank; a vector as any other."""
    if len(shape) < 2:
        return _drawn(rng, shape)
    left, right = _drawn(rng, (shape[0], rank), 0.05, 10), _drawn(rng, (rank, shape[1]), 1.0, 6)
    return np.asarray(left @ right)


def _low_rank(rng: np.random.Generator, shape: tuple[int, ...]) -> Sequence[np.ndarray]:
    return [_of_rank(rng, shape, 2) for _ in range(3)]


def _sharing(rng: np.random.Generator, shape: tuple[int, ...]) -> Sequence[np.ndarray]:
    common = _of_rank(rng, shape, 1)
    return [common * scale + _of_rank(rng, shape, 1) for scale in (1.0, 0.5, -2.0)]


def _opposed(rng: np.random.Generator, shape: tuple[int, ...]) -> Sequence[np.ndarray]:
    first = _drawn(rng, shape)
    return [first, -first, _drawn(rng, shape)]


def _alike(rng: np.random.Generator, shape: tuple[int, ...]) -> Sequence[np.ndarray]:
    return [_drawn(rng, shape)] * 3


def _silent(rng: np.random.Generator, shape: tuple[int, ...]) -> Sequence[np.ndarray]:
    return [_drawn(rng, shape), np.zeros(shape), _drawn(rng, shape)]


def _nothing(_: np.random.Generator, shape: tuple[int, ...]) -> Sequence[np.ndarray]:
    return [np.zeros(shape)] * 3


def _alone(rng: np.random.Generator, shape: tuple[int, ...]) -> Sequence[np.ndarray]:
    return [_drawn(rng, shape)]


def _untouched(rng: np.random.Generator, shape: tuple[int, ...]) -> Sequence[np.ndarray]:
    """No task has changed what the first inputs do."""
    taus = [_drawn(rng, shape) for _ in range(3)]
    for tau in taus:
        tau[..., : shape[-1] // 2] = 0.0
    return taus


def _orthogonal(rng: np.random.Generator, shape: tuple[int, ...]) -> Sequence[np.ndarray]:
    """Every task has outputs and inputs of its own."""
    taus = []
    for task in range(3):
        tau = _drawn(rng, shape)
        for axis, length in enumerate(shape):
            foreign = np.arange(length) % 3 != task
            tau[(slice(None),) * axis + (foreign,)] = 0.0
        taus.append(tau)
    return taus


KINDS: Mapping[str, _Draw] = {
    "low rank": _low_rank,
    "sharing a direction": _sharing,
    "opposed": _opposed,
    "alike": _alike,
    "one silent": _silent,
    "nothing": _nothing,
    "alone": _alone,
    "untouched inputs": _untouched,
    "orthogonal": _orthogonal,
}


def special(kind: str, seed: int = 0, shapes: _Shapes = PLAIN) -> Family:
    """A decoder of one layer with task vectors of a kind."""
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
    stack = "model.layers"
    places, base = {}, {}
    taus: list[Tensors] = []
    for part, shape in shapes.items():
        name = f"{stack}.0.{part}"
        role = _ROLES.get(part.split(".")[-2], "norm")
        places[name] = Place(name, shape, role, 0, 1, stack=stack)
        base[name] = _drawn(rng, shape, 0.3)
        drawn = KINDS[kind](rng, shape)
        taus = taus or [{} for _ in drawn]
        for own, tau in zip(taus, drawn, strict=True):
            own[name] = tau
    experts = [{n: base[n] + tau[n] for n in base} for tau in taus]
    labels = tuple(f"expert-{i}" for i in range(len(experts)))
    return Family(kind, base, experts, places, seed, labels)
