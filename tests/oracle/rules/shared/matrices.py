"""Tensors as matrices W of y = W x, of shape (outputs, inputs), and what becomes of tensors that are none.

    2 axes      one matrix, turned where it is stored input first (GPT-2's Conv1D)
    3 axes      a stack (E, outputs, inputs), matrix by matrix
    4 or more   none, or with kernels: matrix one of (first axis, all others)
    fused       with fused: split the rows of q, k, v (of gate, up) are matrices of their own

0-d and 1-d tensors are none, nor are those of the roles, or families of roles, that are exempt. Embeddings and heads
are matrices unless `embeddings` says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .values import each, shared

if TYPE_CHECKING:
    from ...families import Family, Place

RULES: dict[str, Any] = {
    "others": "average",
    "embeddings": "spectral",
    "stacks": "slices",
    "kernels": "others",
    "fused": "whole",
    "orientation": "auto",
    "exempt": "",
    "rank_tolerance": None,
}
LOOKED_UP = ("embedding", "position_embedding", "type_embedding", "head")

# Every rule away from its default, in few combinations.
RULE_VARIANTS: list[dict[str, Any]] = [
    {"kernels": "matrix", "fused": "split", "others": "sum"},
    {"stacks": "others", "embeddings": "average"},
    {"orientation": "output_first", "others": "base", "embeddings": "sum"},
    {"orientation": "input_first", "embeddings": "base", "exempt": "attention.q mlp"},
]
# Weak directions count, although rounding of the stored weights may have made them.
EXACT_RANKS = {"rank_tolerance": 1e-9}
PATHS: list[dict[str, Any]] = [{"svd": "exact"}, {"svd": "gram"}]


def is_matrix(place: Place, how: Mapping[str, Any]) -> bool:
    """Whether a tensor is one matrix or several."""
    if place.role in LOOKED_UP and how["embeddings"] != "spectral":
        return False
    if any(f"{place.role}.".startswith(f"{role}.") for role in how["exempt"].split()):
        return False
    axes = len(place.shape)
    if axes == 3:
        return bool(how["stacks"] == "slices")
    return axes == 2 or (axes > 3 and how["kernels"] == "matrix")


def is_turned(place: Place, how: Mapping[str, Any]) -> bool:
    """Whether matrices are stored as (inputs, outputs)."""
    if len(place.shape) > 3:
        return False
    if how["orientation"] == "auto":
        return bool(place.input_first)
    return bool(how["orientation"] == "input_first")


def fused_rows(role: str, outputs: int, inputs: int) -> list[int]:
    """Rows of each projection of a fused one: q as wide as the inputs, k and v sharing the rest; halves of gate, up."""
    if role == "attention.qkv":
        rest = outputs - inputs
        if rest > 0 and rest % 2 == 0:
            return [inputs, rest // 2, rest // 2]
        return [outputs // 3] * 3 if outputs % 3 == 0 else [outputs]
    if role in ("attention.kv", "mlp.fused", "expert.fused") and outputs % 2 == 0:
        return [outputs // 2] * 2
    return [outputs]


def cut(array: np.ndarray, place: Place, how: Mapping[str, Any]) -> list[np.ndarray]:
    """The matrices of a tensor, one behind the other."""
    if array.ndim > 3:
        stack = array.reshape(1, array.shape[0], math.prod(array.shape[1:]))
    else:
        stack = array.reshape(-1, *array.shape[-2:])
    if is_turned(place, how):
        stack = stack.transpose(0, 2, 1)
    outputs, inputs = stack.shape[1:]
    rows = fused_rows(place.role, outputs, inputs) if how["fused"] == "split" else [outputs]
    ends = np.cumsum(rows)[:-1]
    return [block for matrix in stack for block in np.split(matrix, ends)]


def put_together(
    matrices: Sequence[np.ndarray], place: Place, how: Mapping[str, Any]
) -> np.ndarray:
    """The tensor of the stored shape that `cut` takes apart into these matrices."""
    count = place.shape[0] if len(place.shape) == 3 else 1
    each_has = len(matrices) // count
    whole = [np.vstack(matrices[i * each_has : (i + 1) * each_has]) for i in range(count)]
    if is_turned(place, how):
        whole = [matrix.T for matrix in whole]
    return np.array(whole).reshape(place.shape)


def rule_of(place: Place, how: Mapping[str, Any]) -> str:
    """What becomes of a tensor that is no matrix: average, sum or base."""
    own = how["embeddings"] if place.role in LOOKED_UP else how["others"]
    return str(how["others"] if own == "spectral" else own)


def unmerged(
    deltas: Sequence[np.ndarray], weights: Sequence[float], place: Place, how: Mapping[str, Any]
) -> np.ndarray:
    """The change of a tensor that is no matrix: the mean or sum of w_i tau_i, or nothing."""
    rule = rule_of(place, how)
    total = sum(w * d for w, d in zip(weights, deltas, strict=True))
    return np.asarray({"average": total / len(deltas), "sum": total, "base": 0.0 * total}[rule])


def merged_by_matrix(
    family: Family,
    how: Mapping[str, Any],
    function: Callable[[list[np.ndarray], list[float]], np.ndarray],
    *,
    is_mean: bool = False,
) -> dict[str, np.ndarray]:
    """theta_0 + lambda T: T of the tasks' matrices and weights by `function`, of all other tensors by their rule.

    An average is that of w_i tau_i, or with `is_mean` the weighted mean.
    """
    merged = {}
    for name, base in family.base.items():
        place, deltas = family.places[name], family.deltas(name)
        weights = each(how, "weight", name, len(deltas))
        if is_matrix(place, how):
            groups = zip(*(cut(delta, place, how) for delta in deltas), strict=True)
            blocks = [function(list(group), weights) for group in groups]
            change = put_together(blocks, place, how)
        else:
            averaged = is_mean and rule_of(place, how) == "average"
            shares = [w * len(deltas) / sum(weights) for w in weights] if averaged else weights
            change = unmerged(deltas, shares, place, how)
        merged[name] = base + shared(how, "lambda", name) * change
    return merged
