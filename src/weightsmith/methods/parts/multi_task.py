"""The multi-task vector of TALL masks and Consensus merging, and the masks of its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weightsmith.errors import RecipeError
from weightsmith.graph import Extent, Site, Value, above, add_all, largest_share
from weightsmith.methods.parts.registry import per_expert, shared
from weightsmith.methods.parts.task_vectors import keep_largest, merge_vectors

PARTS = ("model", "shared", "mask")


def vector_parameter() -> Any:
    """What tau is."""
    return shared(
        "sum",
        choices=("sum", "ties"),
        doc="the multi-task vector: the sum of the task vectors, or TIES' trimmed, elected sum",
    )


def trim_parameter() -> Any:
    """Density of the TIES vector."""
    return shared(
        0.2, low=0.0, high=1.0, doc="with vector ties: share of elements that the trim keeps"
    )


def mask_rule_parameter() -> Any:
    """How masks come about."""
    return shared(
        "tall",
        choices=("tall", "magnitude"),
        doc="a task's mask: where its vector outweighs what others add (tall), or where it is largest",
    )


def mask_lambda_parameter() -> Any:
    """lambda_t."""
    return per_expert(
        0.4,
        low=0.0,
        doc="lambda_t of a task's mask, larger for fewer elements; the paper takes 0.2 to 0.6 by validation",
    )


def mask_density_parameter() -> Any:
    """The baseline's share."""
    return shared(
        0.1,
        low=0.0,
        high=1.0,
        doc="with masks magnitude: share of elements in a mask, over the whole model",
    )


def task_parameter() -> Any:
    """Which expert is rebuilt."""
    return shared(
        "1", doc="the expert to rebuild: its label, or its number counted from 1 in the recipe"
    )


def part_parameter(choices: tuple[str, ...]) -> Any:
    """A whole model, or what a bundle stores of it."""
    return shared(
        "model",
        choices=choices,
        doc="what to give: the task's weights, or one of the parts that a bundle stores",
    )


def task_number(task: str, experts: int, site: Site, method: str) -> int:
    """Index of the expert called `task`; raises RecipeError if there is none."""
    if task in site.labels:
        return site.labels.index(task)
    if task.isdecimal() and 1 <= int(task) <= experts:
        return int(task) - 1
    known = ", ".join(repr(label) for label in site.labels) or "none is labelled"
    raise RecipeError(
        f"{method} has no task {task!r} at tensor {site.name!r}; give a number from 1 to {experts} "
        f"or a label ({known})."
    )


def multi_task_vector(deltas: Sequence[Value], vector: str, density: float, site: Site) -> Value:
    """sum_i tau_i, or the sum of the trimmed task vectors that agree with the elected sign."""
    if vector == "sum":
        return add_all(deltas)
    trimmed = [
        keep_largest(d, density, site.over_model("trim", i, density), site)
        for i, d in enumerate(deltas)
    ]
    return merge_vectors(
        trimmed, [1.0] * len(trimmed), site=site, normalize="none", zero_sum="zero"
    )


def task_mask(
    delta: Value,
    together: Value,
    rule: str,
    mask_lambda: float,
    mask_density: float,
    extent: Extent,
) -> Value:
    """Mask of the elements of the multi-task vector that serve one task.

    tall:       |tau_t| > lambda_t |tau - tau_t|
    magnitude:  the floor(density N) largest |tau_t| of the extent, the model
    """
    if rule == "tall":
        return abs(delta) > abs(together - delta) * mask_lambda
    if mask_density >= 1.0:
        return abs(delta) > 0.0
    return above(abs(delta), largest_share(abs(delta), mask_density, extent))
