"""The stacks and roles of a checkpoint's tensors, found once for all checkpoints that are built alike.

The models of a merge mostly have the same names, shapes and dtypes, and differ in their numbers alone.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weightsmith.checkpoints.roles import Described, Sizes, infer_roles
from weightsmith.checkpoints.stacks import Stack, find_stacks
from weightsmith.tensors import DType, Place

# A base, its experts, and a few files of other tensors beside them.
_REMEMBERED = 4


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The stacks of a checkpoint by their prefix, and the place of each of its tensors in them."""

    stacks: dict[str, Stack]
    places: dict[str, Place]


@dataclass(frozen=True, slots=True)
class _Outline:
    dtype: DType
    shape: tuple[int, ...]


def anatomy_of(tensors: Mapping[str, Described], config: dict[str, Any] | None) -> Anatomy:
    """What names, shapes, dtypes and configuration say of tensors; shared, so not to be changed."""
    described = tensors.values()
    return _anatomy(
        tuple(tensors),
        tuple([tensor.dtype for tensor in described]),
        tuple([tensor.shape for tensor in described]),
        Sizes.of(config),
    )


@functools.lru_cache(maxsize=_REMEMBERED)
def _anatomy(
    names: tuple[str, ...],
    dtypes: tuple[DType, ...],
    shapes: tuple[tuple[int, ...], ...],
    sizes: Sizes,
) -> Anatomy:
    outlines = {
        name: _Outline(dtype, shape)
        for name, dtype, shape in zip(names, dtypes, shapes, strict=True)
    }
    stacks = find_stacks(dict(zip(names, shapes, strict=True)))
    return Anatomy(stacks, infer_roles(outlines, sizes, stacks))
