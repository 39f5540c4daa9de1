"""The merge of each tensor taken apart into what a bundle stores of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weightsmith.checkpoints import Checkpoint, part_names
from weightsmith.deltas import MASK
from weightsmith.engine.outputs.made_tensors import MadeTensor, Reading
from weightsmith.engine.outputs.storage import BITS, CONSTANT, PLAIN, StorageForm
from weightsmith.errors import RecipeError
from weightsmith.graph import work_dtype
from weightsmith.methods import registry
from weightsmith.recipes import (
    Formula,
    Leaf,
    Merge,
    OutputTensor,
    RecipeDocument,
    Same,
    distinct_leaves,
)
from weightsmith.tensors import DType

# Methods that rebuild each expert from base, shared vector and mask, and whether they have rescalers.
_METHODS = {"tall_masks": False, "emr": True, "localize_and_stitch": False}
_NAMED = ", ".join(list(_METHODS)[:-1]) + f" or {list(_METHODS)[-1]}"


@dataclass(frozen=True, slots=True)
class BundleTensor:
    """One tensor of a bundle's members: its dtype, the base's leaf if that is referred to, and whether it is coded
    and has rescalers.
    """

    dtype: DType
    base: Leaf | None
    coded: bool
    scaled: bool


@dataclass(frozen=True, slots=True)
class TaskBundle:
    """What a recipe with `bundle:` makes: the method and its parameters, labels of base and tasks, tensors by name."""

    method: str
    parameters: Mapping[str, Any]
    base: str
    tasks: tuple[str, ...]
    stores_base: bool
    tensors: Mapping[str, BundleTensor]


def bundled(
    document: RecipeDocument,
    outputs: Sequence[OutputTensor],
    checkpoints: Mapping[str, Checkpoint],
) -> tuple[tuple[Reading, ...], TaskBundle]:
    """The tensors that a bundle stores instead of `outputs`, by reading, and what it is made of.

    Raises RecipeError where the recipe is not one merge by a method of bundles, has assertions, or merges from a
    base that is to be referred to and is no checkpoint.
    """
    assert document.bundle is not None
    if document.assertions or document.then:
        raise RecipeError(
            "A recipe with `bundle:` stores parts of tensors, so `assert:` and `then:` do not apply; leave them out."
        )
    coded = [_merge_of(tensor) for tensor in outputs]
    first = next((merge for merge in coded if merge is not None), None)
    if first is None:
        raise RecipeError(
            "A recipe with `bundle:` merges no tensor, so there is nothing to bundle."
        )
    label = first.base.checkpoint if isinstance(first.base, Leaf) else ""
    readings: list[Reading] = []
    tensors: dict[str, BundleTensor] = {}
    stores_base = document.bundle.base == "stored"
    shared_dtype = document.bundle.shared_dtype
    for tensor, merge in zip(outputs, coded, strict=True):
        if merge is not None and (merge.method, merge.labels) != (first.method, first.labels):
            raise RecipeError(
                f"Tensor {tensor.name!r} of the bundle is merged by {merge.method} of {', '.join(merge.labels)}, "
                f"others by {first.method} of {', '.join(first.labels)}; a bundle has one method and one list of tasks."
            )
        if merge is None:
            tensors[tensor.name] = BundleTensor(tensor.dtype, None, coded=False, scaled=False)
            readings.append((MadeTensor(tensor),))
            continue
        base = None if stores_base else _base_leaf(tensor, merge, label)
        scaled = _is_scaled(merge)
        tensors[tensor.name] = BundleTensor(tensor.dtype, base, coded=True, scaled=scaled)
        if base is None:
            assert merge.base is not None
            own = _own_dtype(merge.base, tensor, checkpoints)
            readings.append((MadeTensor(replace(tensor, formula=merge.base, dtype=own)),))
        work = _work(merge, checkpoints)
        shared = DType.parse(shared_dtype) if shared_dtype else work
        readings.append(_parts(tensor, merge, shared, work, scaled))
    made = TaskBundle(first.method, dict(first.shared), label, first.labels, stores_base, tensors)
    return tuple(readings), made


def _merge_of(tensor: OutputTensor) -> Merge | None:
    """The merge that a tensor is, or None for one that is carried over."""
    formula = tensor.formula
    if isinstance(formula, (Leaf, Same)):
        return None
    if isinstance(formula, Merge) and formula.method in _METHODS:
        if dict(formula.shared).get("part", "model") != "model":
            raise RecipeError(
                "A recipe with `bundle:` stores all parts; leave the parameter `part` out."
            )
        return formula
    raise RecipeError(
        f"Tensor {tensor.name!r} is not merged by {_NAMED}, which a recipe with `bundle:` asks for; "
        "name one of them as merge_method, with no other step after it."
    )


def _is_scaled(merge: Merge) -> bool:
    spec = registry.get(merge.method)
    if not _METHODS[merge.method]:
        return False
    return bool(dict(merge.shared).get("rescale", spec.defaults(merge.preset)["rescale"]) != "none")


def _base_leaf(tensor: OutputTensor, merge: Merge, base: str) -> Leaf:
    """The base's tensor that a bundle refers to."""
    if isinstance(merge.base, Leaf) and merge.base.checkpoint == base:
        return merge.base
    raise RecipeError(
        f"The base of tensor {tensor.name!r} is not the checkpoint {base!r} itself, so a bundle cannot refer to it; "
        "store it with `bundle: {base: stored}`."
    )


def _own_dtype(
    formula: Formula, tensor: OutputTensor, checkpoints: Mapping[str, Checkpoint]
) -> DType:
    if isinstance(formula, Leaf):
        return checkpoints[formula.checkpoint].tensors[formula.tensor].dtype
    return tensor.dtype


def _work(merge: Merge, checkpoints: Mapping[str, Checkpoint]) -> DType:
    return work_dtype(
        checkpoints[leaf.checkpoint].tensors[leaf.tensor].dtype for leaf in distinct_leaves(merge)
    )


def _parts(tensor: OutputTensor, merge: Merge, shared: DType, work: DType, scaled: bool) -> Reading:
    forms: dict[str, tuple[DType, StorageForm]] = {
        "shared": (shared, PLAIN),
        "mask": (MASK, BITS),
        "scale": (work, CONSTANT),
    }
    found = []
    for part, name in part_names(tensor.name, len(merge.experts), scaled=scaled).items():
        kind, _, task = part.partition("::")
        if kind == "scale" and not all(tensor.shape):
            continue
        dtype, storage = forms[kind]
        formula = replace(merge, shared=_asking(merge.shared, kind, _task(merge, task)))
        part_of = replace(tensor.renamed(name), formula=formula, dtype=dtype)
        found.append(MadeTensor(part_of, storage))
    return tuple(found)


def _task(merge: Merge, number: str) -> str:
    """The label of a task, since a label may look like a number; the number where experts share a label."""
    label = merge.labels[int(number) - 1] if number else ""
    return label if merge.labels.count(label) == 1 else number


def _asking(shared: Sequence[tuple[str, Any]], part: str, task: str) -> tuple[tuple[str, Any], ...]:
    others = tuple((key, value) for key, value in shared if key not in ("part", "task"))
    return (*others, ("part", part), *((("task", task),) if task else ()))
