"""Masks that stand in recipes: statistics of kind mask without a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from weightsmith.checkpoints import Checkpoint, Statistics, StatisticsHeader, read_statistics
from weightsmith.errors import RecipeError
from weightsmith.recipes.language.free_forms import FreeMask, MaskForm
from weightsmith.recipes.resolution.formula import OutputTensor, distinct_leaves
from weightsmith.recipes.resolution.measured_statistics import MeasuredStatistics
from weightsmith.tensors import ConstantTensor, LazyTensor, StandIn
from weightsmith.wording import literal

# Numbers that are looked at together.
_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class MaskNumbers:
    """The numbers of a free mask: `shapes` are those of its tensors, by the names of the model's.

    `tensors` has what merges read for them, in the shapes of the weights; `of` is the model.
    """

    form: FreeMask
    of: Checkpoint
    shapes: Mapping[str, tuple[int, ...]]
    tensors: Mapping[str, StandIn]

    @property
    def name(self) -> str:
        """Its name in the recipe."""
        return self.form.name

    @property
    def low(self) -> float:
        """What no number is below."""
        return self.form.free_mask[0]

    @property
    def high(self) -> float:
        """What no number is above."""
        return self.form.free_mask[1]

    @property
    def start(self) -> float:
        """What all numbers start from."""
        return self.form.start

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return sum(int(np.prod(shape, dtype=np.int64)) for shape in self.shapes.values())


def mask_statistics(form: MaskForm, owner: Checkpoint, label: str) -> MeasuredStatistics:
    """A mask of the recipe as if it were a file of `owner`: of all float tensors that it is for."""
    number = float(np.float32(form.start if isinstance(form, FreeMask) else form.mask))
    tensors: dict[str, LazyTensor] = {}
    for name, weight in owner.tensors.items():
        own = owner.own_names.get(name, (name,))
        is_meant = form.match is None or form.match.matches(owner.places[name])
        if weight.dtype.is_float and len(own) == 1 and is_meant:
            start = ConstantTensor(own[0], weight.shape, number, f"{label}: {own[0]}")
            tensors[own[0]] = StandIn(start) if isinstance(form, FreeMask) else start
    if not tensors:
        raise RecipeError(
            f"{label}: its `match` selects no tensor of {owner.identity}; correct it."
        )
    checkpoint = replace(owner, source=label, tensors=tensors, config=None, ties=(), own_names={})
    header = StatisticsHeader("mask", owner.name, "", "the recipe", 1)
    return MeasuredStatistics(label, Statistics(header, checkpoint, {n: (n,) for n in tensors}))


def free_mask_numbers(
    masks: Iterable[FreeMask], checkpoints: Mapping[str, Checkpoint], made: Iterable[OutputTensor]
) -> Iterator[MaskNumbers]:
    """The numbers of free masks that tensors are made with; raises RecipeError for a mask that none is."""
    read: dict[str, dict[str, None]] = {}
    for output in made:
        for leaf in distinct_leaves(output.formula):
            read.setdefault(leaf.checkpoint, {})[leaf.tensor] = None
    for form in masks:
        if form.name not in read:
            raise RecipeError(
                f"The free mask {form.name!r} is of no tensor that is merged; leave it out."
            )
        checkpoint = checkpoints[form.name]
        found = {name: checkpoint.tensors[name] for name in read[form.name]}
        tensors = {name: one for name, one in found.items() if isinstance(one, StandIn)}
        shapes = {name: form.shape(one.shape) for name, one in tensors.items()}
        yield MaskNumbers(form, checkpoint, shapes, tensors)


def file_of_values(mask: MaskNumbers, given: object) -> Path:
    """The mask file that is the value of a free mask; raises RecipeError for anything else.

    The file is read once, since its numbers must lie within the bounds. Raises CheckpointError for a damaged one.
    """
    if not isinstance(given, (str, Path)):
        lacking = "has no value" if given is None else f"cannot be {literal(given)}"
        raise RecipeError(
            f"The free mask {mask.name!r} {lacking}; name a safetensors file of kind mask."
        )
    path = Path(given).absolute()
    found = read_statistics(path)
    if found.header.kind != "mask":
        raise RecipeError(
            f"The free mask {mask.name!r} was given {str(given)!r}, which holds statistics of kind "
            f"{found.header.kind}; name a file of kind mask."
        )
    for tensor in found.checkpoint.tensors.values():
        require_within(mask, tensor)
    return path


def require_within(mask: MaskNumbers, tensor: LazyTensor) -> None:
    """Raise RecipeError unless all numbers of a tensor lie within the bounds of a mask, as its dtype has them."""
    from weightsmith.tensors import read_range

    for start in range(0, tensor.numel, _AT_ONCE):
        numbers = read_range(tensor, start, min(start + _AT_ONCE, tensor.numel))
        low, high = (np.float32(bound) for bound in (mask.low, mask.high))
        outside = (numbers < min(low, mask.low)) | (numbers > max(high, mask.high))
        outside |= np.isnan(numbers)
        if outside.any():
            number = numbers[int(np.argmax(outside))]
            raise RecipeError(
                f"The free mask {mask.name!r} lies in [{mask.low:g}, {mask.high:g}], but {tensor.location} has "
                f"{number:g}."
            )
