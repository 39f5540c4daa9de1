"""LyCORIS' forms of changes: LoCon with a core, LoHa, LoKr.

    LoCon  s sum_ij core[i, j] up[:, i] down[j, :]         (core: rank x rank x kernel)
    LoHa   s (w1_a w1_b) o (w2_a w2_b)                     (o by element)
    LoKr   s w1 (x) w2, each whole or a product of two     (s = 1 where both are whole)

With a core t, a product of a and b is sum_ij t[i, j] a[i, :] b[j, :]: there the rank comes first in both.
(KohakuBlueleaf 2023, arXiv:2309.14859.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from weightsmith.adapters.adapter import Form, Update
from weightsmith.adapters.updates import Array, FactorScale, finite, together, wrong
from weightsmith.deltas import Change, Hadamard, Kronecker, LowRankChange
from weightsmith.errors import CheckpointError, CompatibilityError
from weightsmith.tensors import LazyTensor, shown

Parts = Mapping[str, LazyTensor]


def product_update(
    target: str, parts: Parts, scale: FactorScale | float | None, *, in_peft: bool = False
) -> Update:
    """A LoHa or a LoKr from its parts, by LyCORIS' names for them.

    `scale` is that of PEFT's configuration, or the alpha that stands beside the factors (None: alpha = rank).
    `in_peft`: a LoKr of two whole factors is scaled as well. Raises CheckpointError for parts that are missing, are too
    many or do not fit together, and CompatibilityError for a change that only PEFT itself can merge.
    """
    if any(name.startswith("hada_") for name in parts):
        return _loha(target, parts, scale)
    return _lokr(target, parts, scale, in_peft)


def core_update(
    target: str,
    down: LazyTensor,
    core: LazyTensor,
    up: LazyTensor,
    scale: FactorScale | float | None,
) -> Update:
    """A LoCon whose kernel lies in a core between its factors; `scale` as in `product_update`."""
    if min(len(down.shape), len(up.shape)) < 2:
        raise _misfit(core, down, up)
    rank = down.shape[0]
    if core.shape[:2] != (up.shape[1], rank) or math.prod((*down.shape[2:], *up.shape[2:])) != 1:
        raise _misfit(core, down, up)
    shape = (up.shape[0], down.shape[1], *core.shape[2:])
    factor, alpha = _scaled(scale, rank, down)

    def load() -> Change:
        left = finite(up).reshape(shape[0], -1)
        right = finite(down).reshape(rank, shape[1])
        inner = np.tensordot(finite(core), right, axes=(1, 0))
        return LowRankChange(left, np.moveaxis(inner, -1, 1).reshape(len(inner), -1), factor)

    return Update(target, Form.LORA, (down, core, up), load, shape, rank, alpha, factor)


def _scaled(
    scale: FactorScale | float | None, rank: int, at: LazyTensor
) -> tuple[float, float | None]:
    if isinstance(scale, FactorScale):
        if scale.rank != rank:
            raise wrong(
                f"{at.location} has rank {rank}, but the configuration says {scale.rank} for it",
                "the file and its configuration do not belong together, fetch both again",
            )
        return scale.factor, scale.alpha
    return (1.0 if scale is None else scale / rank), scale


def _loha(target: str, parts: Parts, scale: FactorScale | float | None) -> Update:
    cores = ("hada_t1", "hada_t2") if "hada_t1" in parts or "hada_t2" in parts else ()
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", *cores)
    _refuse_others(parts, names)
    found = together(target, parts, names)
    a1, b1, a2, b2 = found[:4]
    first = _product_shape(a1, b1, found[4] if cores else None)
    if _product_shape(a2, b2, found[5] if cores else None) != first:
        raise _misfit(a1, a2, b2)
    factor, alpha = _scaled(scale, b1.shape[0], b1)

    def load() -> Change:
        t1, t2 = found[4:] if cores else (None, None)
        return Hadamard(_half(a1, b1, t1), _half(a2, b2, t2), factor)

    return Update(target, Form.LOHA, found, load, first, b1.shape[0], alpha, factor)


def _lokr(target: str, parts: Parts, scale: FactorScale | float | None, in_peft: bool) -> Update:
    names: list[str] = []
    for side in ("lokr_w1", "lokr_w2"):
        names += [side] if side in parts else [f"{side}_a", f"{side}_b"]
    if "lokr_w2" not in names and "lokr_t2" in parts:
        names.append("lokr_t2")
    _refuse_others(parts, tuple(names))
    found = dict(zip(names, together(target, parts, tuple(names)), strict=True))
    small, large = _side_shape(found, "lokr_w1"), _side_shape(found, "lokr_w2")
    shape = (small[0] * large[0], small[1] * large[1], *large[2:])
    ranked = found.get("lokr_w1_b", found.get("lokr_w2_b"))
    factor, alpha, rank = 1.0, None, None
    if ranked is not None:
        rank = ranked.shape[0]
        factor, alpha = _scaled(scale, rank, ranked)
    elif in_peft and isinstance(scale, FactorScale):
        factor, alpha = scale.factor, scale.alpha
    if in_peft and len(shape) == 3:
        raise CompatibilityError(
            f"{found['lokr_w2' if 'lokr_w2' in found else 'lokr_t2'].location} is of a LoKr of a one-dimensional "
            "convolution, whose axes PEFT mixes up (versions to 0.21 at least): merge the adapter with PEFT."
        )

    def load() -> Change:
        left, right = _side(found, "lokr_w1"), _side(found, "lokr_w2")
        return Kronecker(left, right, factor)

    return Update(target, Form.LOKR, tuple(found.values()), load, shape, rank, alpha, factor)


def _side_shape(found: Parts, side: str) -> tuple[int, ...]:
    if side not in found:
        core = found.get("lokr_t2") if side == "lokr_w2" else None
        return _product_shape(found[f"{side}_a"], found[f"{side}_b"], core)
    whole = found[side]
    if len(whole.shape) < 2 or (side == "lokr_w1" and len(whole.shape) > 2):
        raise wrong(
            f"{whole.location} has the shape {list(whole.shape)}, which no factor of a Kronecker product has",
            "the adapter is damaged, fetch it again",
        )
    return whole.shape


def _side(found: Parts, side: str) -> Array:
    if side in found:
        whole = finite(found[side])
        return whole.reshape(whole.shape[0], -1)
    core = found.get("lokr_t2") if side == "lokr_w2" else None
    half = _half(found[f"{side}_a"], found[f"{side}_b"], core)
    return half.rows(0, half.shape[0])


def _product_shape(a: LazyTensor, b: LazyTensor, core: LazyTensor | None) -> tuple[int, ...]:
    if core is None:
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[0]:
            raise _misfit(a, b)
        return a.shape[0], b.shape[1]
    if len(a.shape) != 2 or len(b.shape) != 2 or core.shape[:2] != (a.shape[0], b.shape[0]):
        raise _misfit(core, a, b)
    return a.shape[1], b.shape[1], *core.shape[2:]


def _half(a: LazyTensor, b: LazyTensor, core: LazyTensor | None) -> Change:
    left, right = finite(a), finite(b)
    if core is None:
        return LowRankChange(left, right)
    inner = np.einsum("ij...,jr->ir...", finite(core), right)
    return LowRankChange(left.T, inner.reshape(len(inner), -1))


def _refuse_others(parts: Parts, known: tuple[str, ...]) -> None:
    for name, tensor in parts.items():
        if name not in known:
            raise wrong(
                f"{tensor.location} has the part {shown(name)} beside {shown(known[0])}, which do not go together",
                "the adapter is damaged or of a newer kind, convert it with LyCORIS first",
            )


def _misfit(*tensors: LazyTensor) -> CheckpointError:
    shapes = ", ".join(f"{t.location} of shape {list(t.shape)}" for t in tensors)
    return wrong(f"{shapes} cannot be multiplied", "the adapter is damaged, fetch it again")
