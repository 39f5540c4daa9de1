"""How two checkpoints differ, streamed tile by tile: memory does not depend on their size."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.adapters import open_model, place_of
from weightsmith.checkpoints import Checkpoint, respelled
from weightsmith.engine import JobSettings, count_differing, measure_each, measure_group
from weightsmith.errors import CompatibilityError
from weightsmith.graph import Scalar, count, dot, peak, source
from weightsmith.inspection.measures import Measures, together
from weightsmith.naming import natural_key
from weightsmith.tensors import DType, LazyTensor


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A tensor that both checkpoints have, but not in the same form: `a` and `b` are its two shapes or dtypes."""

    name: str
    a: str
    b: str

    def to_mapping(self) -> dict[str, str]:
        """As JSON has it."""
        return {"name": self.name, "a": self.a, "b": self.b}


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """The measures of one tensor, with its place in the first checkpoint."""

    name: str
    block: str | None
    layer: int | None
    role: str
    measures: Measures


@dataclass(frozen=True, slots=True)
class GroupDifference:
    """The measures of all tensors of one role in one block (`layer` None: outside the blocks)."""

    block: str | None
    layer: int | None
    role: str
    measures: Measures


@dataclass(frozen=True, slots=True)
class CheckpointDifference:
    """What `compare_checkpoints` found.

    `missing` are tensors that only the first has, `extra` those that only the second has, `names` those that the
    second calls otherwise, `shapes` and `dtypes` those that differ in form; tensors of different shape are not
    measured. `not_in_base` could not be compared with the base. `a`, `b` and `base` say where they lie, with their
    adapters.
    """

    a: str
    b: str
    base: str | None
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    names: tuple[Mismatch, ...]
    shapes: tuple[Mismatch, ...]
    dtypes: tuple[Mismatch, ...]
    not_in_base: tuple[str, ...]
    tensors: tuple[TensorDifference, ...]
    groups: tuple[GroupDifference, ...]
    total: Measures

    @property
    def identical(self) -> bool:
        """True if both have the same tensors in name, shape, dtype and every byte."""
        in_form = self.missing or self.extra or self.names or self.shapes or self.dtypes
        return not (in_form or self.total.other_bits)

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        has_base = self.base is not None

        def measured(one: TensorDifference | GroupDifference) -> dict[str, Any]:
            place = {"block": one.block, "layer": one.layer, "role": one.role}
            return place | one.measures.to_mapping(with_base=has_base)

        return {
            "a": str(self.a),
            "b": str(self.b),
            "base": None if self.base is None else str(self.base),
            "identical": self.identical,
            "missing": list(self.missing),
            "extra": list(self.extra),
            "names": [mismatch.to_mapping() for mismatch in self.names],
            "shapes": [mismatch.to_mapping() for mismatch in self.shapes],
            "dtypes": [mismatch.to_mapping() for mismatch in self.dtypes],
            "not_in_base": list(self.not_in_base),
            "total": self.total.to_mapping(with_base=has_base),
            "groups": [measured(group) for group in self.groups],
            "tensors": [{"name": tensor.name} | measured(tensor) for tensor in self.tensors],
        }


def compare_checkpoints(
    a: str | Path, b: str | Path, *, base: str | Path | None = None, threads: int | None = None
) -> CheckpointDifference:
    """Compare the tensors of two checkpoints by name; with `base`, also their changes from it.

    A second checkpoint or base that names the network otherwise is read in the spelling of the first.
    Reads every common tensor once, in tiles. Sums are float64 over values in work precision (float32, float64 where a
    tensor is). Raises CheckpointError for damaged files and CompatibilityError if `base` has other shapes.
    """
    first = open_model(a)
    second = respelled(open_model(b), first)
    third = None if base is None else respelled(open_model(base), first)
    common = [
        n
        for n, t in first.tensors.items()
        if n in second.tensors and second.tensors[n].shape == t.shape
    ]
    in_base = {n for n in common if third is not None and _fits(third, first.tensors[n])}
    groups = [
        [c.tensors[name] for c in (first, second, *([third] if third and name in in_base else ()))]
        for name in common
    ]
    measured = measure_each(groups, measure_tensors, threads)
    tensors = tuple(_placed(first, *found) for found in zip(common, measured, strict=True))
    return CheckpointDifference(
        a=place_of(first),
        b=place_of(second),
        base=None if third is None else place_of(third),
        missing=tuple(n for n in first.tensors if n not in second.tensors),
        extra=tuple(n for n in second.tensors if n not in first.tensors),
        names=tuple(Mismatch(name, name, " ".join(own)) for name, own in second.own_names.items()),
        shapes=_mismatches(first, second, lambda checkpoint, name: checkpoint.tensors[name].shape),
        dtypes=_mismatches(first, second, Checkpoint.dtype_of),
        not_in_base=tuple(n for n in common if third is not None and n not in in_base),
        tensors=tensors,
        groups=_groups(tensors),
        total=together(t.measures for t in tensors),
    )


def _fits(base: Checkpoint, tensor: LazyTensor) -> bool:
    found = base.tensors.get(tensor.name)
    if found is None or found.dtype.is_float is not tensor.dtype.is_float:
        return False
    if found.shape != tensor.shape:
        raise CompatibilityError(
            f"{found.location} has shape {list(found.shape)} and {tensor.location} {list(tensor.shape)}: "
            "give the base that both were made from, or leave --base out."
        )
    return tensor.dtype.is_float


def _mismatches(
    first: Checkpoint,
    second: Checkpoint,
    fact: Callable[[Checkpoint, str], DType | tuple[int, ...]],
) -> tuple[Mismatch, ...]:
    found = [
        (name, fact(first, name), fact(second, name))
        for name in first.tensors
        if name in second.tensors
    ]
    return tuple(Mismatch(n, _written(one), _written(two)) for n, one, two in found if one != two)


def _written(fact: DType | tuple[int, ...]) -> str:
    return fact.value if isinstance(fact, DType) else str(list(fact))


def _placed(checkpoint: Checkpoint, name: str, measures: Measures) -> TensorDifference:
    role = checkpoint.places[name]
    return TensorDifference(name, role.stack, role.layer, role.kind.value, measures)


def _groups(tensors: Sequence[TensorDifference]) -> tuple[GroupDifference, ...]:
    members: dict[tuple[str | None, int | None, str], list[Measures]] = defaultdict(list)
    for tensor in tensors:
        members[tensor.block, tensor.layer, tensor.role].append(tensor.measures)
    order = sorted(
        members, key=lambda key: (key[0] is not None, natural_key(key[0] or ""), key[1] or 0)
    )
    return tuple(GroupDifference(*key, together(members[key])) for key in order)


# One tensor -------------------------------------------------------------------------------------------------------


def measure_tensors(tensors: Sequence[LazyTensor], settings: JobSettings) -> Any:
    """A part of a job that gives the `Measures` of two tensors of one shape, and of their base if that is the third.

    Integers, bools and complex numbers have no delta: only what is changed is counted, byte for byte.
    """
    a, b = tensors[:2]
    if a.dtype.is_float and b.dtype.is_float:
        return (yield from _measure_floats(tensors, settings))
    changed = yield from count_differing(a, b, settings)
    return Measures(tensors=1, elements=a.numel, changed=changed, other_bits=int(changed > 0))


def _measure_floats(tensors: Sequence[LazyTensor], settings: JobSettings) -> Any:
    asked = _reductions(with_base=len(tensors) > 2)
    measured = yield from measure_group(tensors, asked, settings)
    sums = dict(measured.values)
    changed = int(sums.pop("changed"))
    # The peak over nothing is -inf; one that meets a NaN depends on where it stands, a sum does not.
    largest = max(sums.pop("largest"), 0.0)
    largest = math.nan if math.isnan(sums["dd"]) else largest
    return Measures(
        tensors=1,
        elements=tensors[0].numel,
        changed=changed,
        other_bits=int(measured.digests[0] != measured.digests[1]),
        largest=largest,
        **sums,
    )


def _reductions(*, with_base: bool) -> dict[str, Scalar]:
    a, b = source(0), source(1)
    delta = b - a
    both_nan = ~a.equals(a) & ~b.equals(b)
    found = {
        "aa": dot(a, a),
        "bb": dot(b, b),
        "ab": dot(a, b),
        "dd": dot(delta, delta),
        "changed": count(~(a.equals(b) | both_nan)),
        "largest": peak(abs(delta)),
    }
    if with_base:
        base = source(2)
        u, v = a - base, b - base
        found |= {"uu": dot(u, u), "vv": dot(v, v), "uv": dot(u, v), "zz": dot(base, base)}
    return found
