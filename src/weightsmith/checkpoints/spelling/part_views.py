"""A tensor as the whole of its parts, and the parts of a whole, in the layouts that files of models have: lazy views.

Of a stack E x a x b of experts, expert e of which has the parts P_0, P_1 (outputs x inputs, as of its gate and its up):

    ROWS          whole[e] = [P_0; P_1]
    COLUMNS       whole[e] = [P_0^T, P_1^T]
    ALTERNATING   whole[e][:, 2 j + p] = P_p[j, :]
    EITHER        ROWS where shapes allow it, else COLUMNS

Biases have one axis less, and the same layouts along it. Parts of what is no stack lie as ROWS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from weightsmith.deltas import JoinedColumns, StackedTensors, Stretch, StridedView, turned
from weightsmith.tensors import LazyTensor

Shape = tuple[int, ...]
# A tensor and a name to its view under that name.
Rearrange = Callable[[LazyTensor, str], LazyTensor]


class Layout(Enum):
    """How a whole is made of its parts."""

    ROWS = auto()
    COLUMNS = auto()
    ALTERNATING = auto()
    EITHER = auto()


@dataclass(frozen=True, slots=True)
class Parts:
    """The names of a whole's parts and how it is made of them; of a stack, as many of each expert as `of_each`."""

    names: tuple[str, ...]
    layout: Layout = Layout.ROWS
    of_each: int = 1


def joined(
    name: str, shape: Shape, sources: Sequence[LazyTensor], parts: Parts
) -> LazyTensor | None:
    """The whole of `sources`, which are in the order of `parts`; None where they do not make up `shape`."""
    layout = _fitting(shape, [source.shape for source in sources], parts)
    if layout is None or len({source.dtype for source in sources}) > 1:
        return None
    if layout is Layout.ROWS:
        return StackedTensors(name, shape, tuple(sources))
    experts = []
    for start in range(0, len(sources), parts.of_each):
        own = [_turned(source) for source in sources[start : start + parts.of_each]]
        experts.append(JoinedColumns(name, tuple(own), layout is Layout.ALTERNATING))
    return StackedTensors(name, shape, tuple(experts))


def cut(
    whole: LazyTensor, names: Sequence[str], shapes: Sequence[Shape], parts: Parts
) -> tuple[LazyTensor, ...] | None:
    """The parts of a whole, called `names`; None where parts of these shapes do not make it up."""
    layout = _fitting(whole.shape, shapes, parts)
    if layout is None:
        return None
    if layout is Layout.ROWS:
        firsts = _firsts(shapes)
        made = zip(names, firsts, shapes, strict=True)
        return tuple(Stretch(name, whole, first, shape) for name, first, shape in made)
    return tuple(_columns(whole, names, shapes, parts.of_each, layout))


def _columns(
    whole: LazyTensor, names: Sequence[str], shapes: Sequence[Shape], of_each: int, layout: Layout
) -> Iterator[LazyTensor]:
    """Parts that lie side by side in the matrix, or vector, of each expert."""
    size, width = math.prod(whole.shape[1:]), whole.shape[-1]
    step = of_each if layout is Layout.ALTERNATING else 1
    for number, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        expert, place = divmod(number, of_each)
        before = shapes[number - place : number]
        first = place if layout is Layout.ALTERNATING else sum(other[0] for other in before)
        strides = (step, width)[: len(shape)]
        yield StridedView(name, whole, expert * size + first, shape, strides)


def _turned(part: LazyTensor) -> LazyTensor:
    return part if len(part.shape) == 1 else turned(part, part.name)


def _firsts(shapes: Sequence[Shape]) -> list[int]:
    firsts, first = [], 0
    for shape in shapes:
        firsts.append(first)
        first += math.prod(shape)
    return firsts


def _fitting(shape: Shape, parts: Sequence[Shape], how: Parts) -> Layout | None:
    """The layout in which parts of these shapes make up the whole; a vector's columns are its rows."""
    if sum(map(math.prod, parts)) != math.prod(shape):
        return None
    wanted = (Layout.ROWS, Layout.COLUMNS) if how.layout is Layout.EITHER else (how.layout,)
    return next((one for one in wanted if _fits(one, shape, parts, how.of_each)), None)


def _fits(layout: Layout, shape: Shape, parts: Sequence[Shape], of_each: int) -> bool:
    if layout is Layout.ROWS:
        return all(part[1:] == shape[len(shape) - len(part) + 1 :] for part in parts)
    is_alike = layout is not Layout.ALTERNATING or len(set(parts[:of_each])) == 1
    outputs = sum(part[0] for part in parts[:of_each])
    inputs = shape[1:-1]
    return (
        is_alike
        and outputs == shape[-1]
        and all(part[1:] == inputs for part in parts)
        and all(part == parts[number % of_each] for number, part in enumerate(parts))
    )
