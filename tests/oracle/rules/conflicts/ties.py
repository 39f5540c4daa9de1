"""TIES-Merging (Yadav et al., NeurIPS 2023, arXiv:2306.01708), and what else goes by its name.

    tau^_i = the floor(density N) elements of largest |tau_i|, N over the whole model; zero elsewhere
    g = sign(sum_i w_i tau^_i)
    tau = sum_{i: sign = g} w_i tau^_i / sum_{i: sign = g} |w_i|;    theta = theta_0 + lambda tau

The authors flatten the state dicts into one vector per task (`topk_values_mask`, which keeps one element more), and
give elements whose task vectors cancel the majority sign of the model (`resolve_zero_signs`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.consensus import disjoint
from ..shared.order import count, joined, largest, largest_of_model, parted
from ..shared.values import each, with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "weight": 1.0,
        "density": 0.2,
        "normalize": "absolute",
        "agreeing": "mean",
        "rescale": "none",
        "rescale_floor": 0.0,
        "lambda": 1.0,
        "trim_scope": "model",
        "trim_count": "floor",
        "keep_at_least": 0,
        "vote": "mass",
        "weight_stage": "before",
        "zero_sum": "zero",
    },
    "reference": {"trim_count": "one_more", "zero_sum": "majority"},
    "fusionbench": {
        "trim_count": "one_more",
        "zero_sum": "majority",
        "normalize": "none",
        "lambda": 0.3,
    },
    "mergekit": {
        "density": 1.0,
        "normalize": "signed",
        "rescale_floor": 1e-7,
        "trim_scope": "tensor",
        "keep_at_least": 1,
        "zero_sum": "positive",
    },
    "peft": {
        "trim_scope": "tensor",
        "zero_sum": "positive",
        "weight_stage": "after",
        "normalize": "count",
    },
    "sd-mecha": {"trim_scope": "tensor", "trim_count": "one_more", "vote": "count"},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"preset": "reference"},
    {"preset": "fusionbench"},
    {"preset": "mergekit", "weight": [1.0, 0.5, 0.7], "density": [0.3, 0.5, 0.9]},
    {"preset": "peft", "weight": [1.0, 0.5, 0.7], "density": 0.4},
    {"preset": "sd-mecha", "density": 0.4},
    {"weight": [0.5, 1.5, 0.25], "density": [0.3, 0.2, 0.6], "lambda": 0.7},
    {"normalize": "none"},
    {"normalize": "signed", "weight": [1.0, 0.5, 2.0]},
    {"agreeing": "max", "density": 0.5},
    {"trim_scope": "row", "density": 0.4},
    {"trim_scope": "tensor", "density": 0.3, "keep_at_least": 2},
    {"trim_count": "one_more"},
    {"rescale": "l1", "density": 0.5},
    {"vote": "count", "density": 0.6, "zero_sum": "positive"},
    {"vote": "count", "zero_sum": "majority", "density": 0.6},
    {"vote": "count", "zero_sum": "minority", "density": 0.6},
    {"weight_stage": "after", "weight": [0.5, 1.0, 2.0], "normalize": "count"},
    {"density": 1.0},
    {"experts": 1},
]
EQUAL = VARIANTS


def ties(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Trim, elect and merge."""
    given = with_preset(parameters, PRESETS)
    return disjoint(family, trimmed(family, given), given)


def trimmed(family: Family, given: dict[str, Any]) -> dict[str, list[np.ndarray]]:
    """The task vectors of each tensor with their small elements set to zero."""
    names, count_of = list(family.places), len(family.experts)
    shares = {n: each(given, "density", n, count_of) for n in names}
    if given["trim_scope"] != "model":
        return {
            n: [
                _rescaled(d, _trim_in_tensor(d, share, given), given)
                for d, share in zip(family.deltas(n), shares[n], strict=True)
            ]
            for n in names
        }
    result: dict[str, list[np.ndarray]] = {n: [] for n in names}
    for i in range(count_of):
        # Tensors that are given another share have a threshold of their own.
        for share in dict.fromkeys(shares[n][i] for n in names):
            deltas = {n: family.deltas(n)[i] for n in names if shares[n][i] == share}
            size = sum(d.size for d in deltas.values())
            masks = largest_of_model(deltas, number_kept(size, share, given))
            whole = joined(list(deltas.values()))
            kept = joined([np.where(masks[n], d, 0.0) for n, d in deltas.items()])
            parts = parted(_rescaled(whole, kept, given), list(deltas.values()))
            for n, part in zip(deltas, parts, strict=True):
                result[n].append(part)
    return result


def number_kept(size: int, share: float, given: dict[str, Any]) -> int:
    """floor(density N), or one more; all at density 1, none at density 0."""
    if share in (0, 1):
        return round(share) * size
    kept = count(share, size) + (given["trim_count"] == "one_more")
    return kept if given["trim_scope"] == "model" else max(kept, given["keep_at_least"])


def _trim_in_tensor(x: np.ndarray, share: float, given: dict[str, Any]) -> np.ndarray:
    if given["trim_scope"] == "row" and x.ndim > 1:
        rows = x.reshape(-1, x.shape[-1])
        kept = number_kept(rows.shape[1], share, given)
        return np.stack([np.where(largest(r, kept), r, 0.0) for r in rows]).reshape(x.shape)
    return np.where(largest(x, number_kept(x.size, share, given)), x, 0.0)


def _rescaled(before: np.ndarray, after: np.ndarray, given: dict[str, Any]) -> np.ndarray:
    if given["rescale"] == "none":
        return after
    old, new = np.abs(before).sum(), np.abs(after).sum()
    return after * (old / new) if old > given["rescale_floor"] and new > 0 else after
