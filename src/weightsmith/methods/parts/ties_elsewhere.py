"""What goes by the name of TIES elsewhere: where other code differs from the paper, and the presets that do as it does.

Each difference has a parameter, whose default is the paper's; a preset puts together those of one tool.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightsmith.methods.parts.registry import REQUIRED, shared

_REFERENCE = {"trim_count": "one_more", "zero_sum": "majority"}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "reference": _REFERENCE,
    "fusionbench": {**_REFERENCE, "normalize": "none", "lambda": 0.3},
    "mergekit": {
        "weight": REQUIRED,
        "density": 1.0,
        "trim_scope": "tensor",
        "keep_at_least": 1,
        "normalize": "signed",
        "zero_sum": "positive",
        "rescale_floor": 1e-7,
    },
    "peft": {
        "weight": REQUIRED,
        "density": REQUIRED,
        "trim_scope": "tensor",
        "zero_sum": "positive",
        "weight_stage": "after",
        "normalize": "count",
    },
    "sd-mecha": {"trim_scope": "tensor", "trim_count": "one_more", "vote": "count"},
}

ABOUT_PRESETS: Mapping[str, str] = {
    "reference": "the authors' code: keeps one element more, and all that are equal to it (here exactly "
    "floor(density N) + 1); cancelling ones take the majority sign of the model",
    "fusionbench": "the same, the sum instead of the mean, lambda 0.3",
    "mergekit": "trims per tensor, keeps at least one element of each; cancelling ones take +; divides by signed "
    "weights, which can flip signs if some are negative",
    "peft": "what PEFT does to adapters that were multiplied out (`ties_svd`): trims per tensor, elects without "
    "weights, + where they cancel, weighs after the election and divides by the number that agrees (its `ties` does so "
    "to the factors A and B, each with the square root of the weight)",
    "sd-mecha": "trims per tensor, one element more (it rounds density N up before, and keeps all that are equal), "
    "and counts signs instead of adding values",
}


def agreeing_parameter() -> Any:
    """The authors' three disjoint merges: dis-mean, dis-sum (with `normalize: none`) and dis-max."""
    return shared(
        "mean",
        choices=("mean", "max"),
        doc="what stands for those that agree: their mean (or sum, see normalize), or the largest magnitude",
    )


def trim_scope_parameter() -> Any:
    """Over what the N of density N counts."""
    return shared(
        "model", choices=("model", "tensor", "row"), doc="over what the largest elements are sought"
    )


def trim_count_parameter() -> Any:
    """How density N becomes a whole number."""
    return shared(
        "floor",
        choices=("floor", "one_more"),
        doc="how many are kept: floor(density N), or one more; all at density 1, none at density 0",
    )


def keep_at_least_parameter() -> Any:
    """What a trim leaves of small tensors."""
    return shared(
        0, low=0, doc="elements that a trim per tensor or row leaves at any density above 0"
    )


def vote_parameter() -> Any:
    """What is added up to elect a sign."""
    return shared(
        "mass",
        choices=("mass", "count"),
        doc="what elects a sign: the sum of the task vectors, or the sum of their signs",
    )


def weight_stage_parameter() -> Any:
    """Whether weights count in the election."""
    return shared(
        "before",
        choices=("before", "after"),
        doc="whether the election sees task vectors with their weights, or the weights come after it",
    )
