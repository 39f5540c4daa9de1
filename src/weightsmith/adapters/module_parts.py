"""The changes that one module of a single-file adapter stores: kohya's, LyCORIS' and diffusers' files alike.

Parts go by kohya's words: `lora_down`, `lora_up`, `lora_mid`, `alpha`, `dora_scale`, LyCORIS' own, and the changes
that are stored whole: `diff` and `w_norm` of the weight, `diff_b` and `b_norm` of the bias.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from weightsmith.adapters import lycoris
from weightsmith.adapters.adapter import Update
from weightsmith.adapters.updates import (
    FactorScale,
    finite,
    full_update,
    linear_update,
    together,
    wrong,
)
from weightsmith.errors import CheckpointError, CompatibilityError
from weightsmith.tensors import LazyTensor, kernel_shape, shown

PARTS = frozenset(
    """lora_down lora_up lora_mid alpha dora_scale diff diff_b w_norm b_norm up_bias hada_w1_a hada_w1_b hada_w2_a
    hada_w2_b hada_t1 hada_t2 lokr_w1 lokr_w1_a lokr_w1_b lokr_w2 lokr_w2_a lokr_w2_b lokr_t2""".split()
)
# Beyond these, an adapter is more than LoRA.
LYCORIS_PARTS = frozenset(part for part in PARTS if not part.startswith(("lora_d", "lora_u")))
LYCORIS_PARTS -= {"alpha", "dora_scale", "up_bias"}

# Parts that other kinds of adapters have, with the kind.
_FOREIGN = {
    "on_input": "IA3",
    "oft_blocks": "OFT",
    "oft_diag": "OFT",
    "rescale": "OFT",
    "a1": "GLoRA",
    "a2": "GLoRA",
    "b1": "GLoRA",
    "b2": "GLoRA",
    "glora": "GLoRA",
    "boft": "BOFT",
    "ia3_l": "IA3",
}


def module_updates(
    module: str, parts: dict[str, LazyTensor], scale: FactorScale | None, component: str | None
) -> list[Update]:
    """The updates of one module from its parts.

    `scale` is that of a configuration; without one it is alpha / rank, alpha being the rank where it is not stored.
    Raises CheckpointError for parts without partner and of wrong shapes, and where scale and alpha are both there.
    """
    left = dict(parts)
    alpha = _alpha(left.pop("alpha", None), scale)
    magnitude = left.pop("dora_scale", None)
    found: list[Update] = []
    bias = left.pop("diff_b", left.pop("b_norm", None))
    whole = left.pop("diff", left.pop("w_norm", None))
    factor_bias = left.pop("up_bias", None)
    target = f"{module}.weight"
    if left or (whole is None and bias is None):
        built = _low_rank(target, left, parts, alpha, scale)
        found.append(built if magnitude is None else _decomposed(built, magnitude))
        if factor_bias is not None:
            found.append(full_update(f"{module}.bias", factor_bias, built.scale))
    elif magnitude is not None:
        raise wrong(
            f"{magnitude.location} stands beside no factors",
            "the adapter is damaged, fetch it again",
        )
    if whole is not None:
        found.append(full_update(target, whole))
    if bias is not None:
        found.append(full_update(f"{module}.bias", bias))
    return [replace(update, component=component) for update in found]


def foreign(tensor: LazyTensor, part: str) -> CheckpointError | CompatibilityError:
    """The error for a key that has no known part."""
    first = part.split(".")[0]
    if first in _FOREIGN:
        return CompatibilityError(
            f"{tensor.location} is of a {_FOREIGN[first]} adapter, which is no sum of a base and a change: merge it "
            "with the program that made it."
        )
    return CheckpointError(
        f"{tensor.location} has a key that no adapter of a kind that is read has: convert the adapter with the program "
        "that made it, or remove the tensor if it is a stray one."
    )


def keep(kept: dict[str, LazyTensor], part: str, tensor: LazyTensor) -> None:
    """Note a part of a module; raises CheckpointError if it is there already."""
    if part in kept:
        raise wrong(
            f"{tensor.location} and {kept[part].location} mean the same part",
            "save the adapter again",
        )
    kept[part] = tensor


def _low_rank(
    target: str,
    left: dict[str, LazyTensor],
    parts: dict[str, LazyTensor],
    alpha: float | None,
    scale: FactorScale | None,
) -> Update:
    if any(name.startswith(("hada_", "lokr_")) for name in left):
        return lycoris.product_update(target, left, scale or alpha)
    if not left:
        stray = next(iter(parts.values()))
        raise wrong(
            f"{stray.location} stands beside no factors",
            "the adapter is incomplete, fetch it again",
        )
    down, up = together(target, left, ("lora_down", "lora_up"))
    if "lora_mid" in left:
        return lycoris.core_update(target, down, left["lora_mid"], up, scale or alpha)
    rank = down.shape[0] if down.shape else 0
    if scale is None:
        stated = float(rank) if alpha is None else alpha
        scale = FactorScale(stated / max(rank, 1), rank, stated)
    return linear_update(target, down, up, scale)


def _alpha(stored: LazyTensor | None, scale: FactorScale | None) -> float | None:
    if stored is None:
        return None
    if scale is not None:
        raise wrong(
            f"{stored.location} says a scale, and so does the file's configuration",
            "remove one of them",
        )
    if stored.numel != 1:
        raise wrong(
            f"{stored.location} has the shape {list(stored.shape)}, but an alpha is one number",
            "the adapter is damaged, fetch it again",
        )
    found = _number(stored)
    if found == 0.0:
        raise wrong(
            f"{stored.location} is 0, which some programs take as the rank and others as no change at all",
            "set it to what is meant",
        )
    return found


def _number(stored: LazyTensor) -> float:
    if stored.dtype.is_float:
        return float(finite(stored).reshape(-1)[0])
    data = np.empty(stored.nbytes, np.uint8)
    stored.read_into(0, 1, data.data)
    return float(int.from_bytes(data.tobytes(), "little", signed=True))


def _decomposed(update: Update, magnitude: LazyTensor) -> Update:
    """DoRA's magnitude: one number for each output, or for each input (LyCORIS' older way)."""
    assert update.shape is not None
    rows, inputs = kernel_shape(update.shape)[0], update.shape[1]
    long = [i for i, length in enumerate(magnitude.shape) if length != 1]
    # PEFT's and diffusers' own are by output always, with the outputs second for a convolution.
    is_of_peft = "lora_magnitude_vector" in magnitude.name
    if magnitude.numel == rows and (is_of_peft or long in ([], [0])):
        by_column = False
    elif magnitude.numel == inputs and long in ([], [1]) and not is_of_peft:
        by_column = True
    else:
        raise wrong(
            f"{magnitude.location} has the shape {list(magnitude.shape)}, but the change of {shown(update.target)} has "
            f"{rows} outputs and {inputs} inputs",
            "the adapter is damaged, fetch it again",
        )
    sources = (*update.sources, magnitude)
    return replace(update, sources=sources, magnitude=magnitude, by_column=by_column)
