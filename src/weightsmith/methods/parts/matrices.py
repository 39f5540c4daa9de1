"""Which tensors are matrices, and how: the declared rules that all matrix methods share.

A weight is seen as a stack of matrices of shape (outputs, inputs), so that y = W x. The rules say what becomes of
stacked experts, convolution kernels, fused projections, embeddings and weights stored input first; every rule is a
parameter of every method of the family (`MatrixRules`), and `MatrixRules.view` applies them to one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightsmith.graph import Site, Value
from weightsmith.methods.parts.named_roles import has_role
from weightsmith.methods.parts.registry import shared
from weightsmith.methods.parts.span import plain_sum
from weightsmith.tensors import kernel_shape

# Roles whose rows are looked up by token, position or class: no linear maps between activations.
EMBEDDING_ROLES = ("embedding", "position_embedding", "type_embedding", "head")
# Roles of projections that are stored side by side along the output axis, and how many they are.
_FUSED_PARTS = {"attention.kv": 2, "mlp.fused": 2, "expert.fused": 2}


@dataclass(frozen=True, slots=True)
class MatrixView:
    """One tensor as `count` groups of matrices (outputs, inputs), each cut into `parts` along its outputs.

    `shape` is the stored shape, `input_first` tells that matrices are stored as (inputs, outputs).
    """

    shape: tuple[int, ...]
    count: int
    outputs: int
    inputs: int
    input_first: bool = False
    parts: tuple[int, ...] = ()

    @property
    def matrix(self) -> tuple[int, int]:
        """(outputs, inputs) of an uncut matrix."""
        return self.outputs, self.inputs

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of each matrix that a group is cut into."""
        return [(stop - start, self.inputs) for start, stop in self._thresholds()]

    def split(self, array: Any) -> list[Any]:
        """The matrices of an array of the stored shape, group by group and part by part."""
        stored = (self.inputs, self.outputs) if self.input_first else self.matrix
        stack = array.reshape((self.count, *stored))
        found: list[Any] = []
        for i in range(self.count):
            matrix = stack[i].T if self.input_first else stack[i]
            found.extend(matrix[start:stop] for start, stop in self._thresholds())
        return found

    def join(self, linalg: Any, matrices: Sequence[Any]) -> Any:
        """The array of the stored shape that `split` takes apart into these matrices."""
        per_group = len(self._thresholds())
        groups = []
        for i in range(self.count):
            pieces = list(matrices[i * per_group : (i + 1) * per_group])
            group = pieces[0] if per_group == 1 else linalg.concatenate(pieces)
            groups.append(group.T if self.input_first else group)
        joined = groups[0] if self.count == 1 else linalg.stack(groups)
        return joined.reshape(self.shape)

    def _thresholds(self) -> list[tuple[int, int]]:
        sizes = self.parts or (self.outputs,)
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return [(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def others_parameter(default: str = "average") -> Any:
    """The rule for tensors that are no matrix."""
    return shared(
        default,
        choices=("average", "sum", "base"),
        doc="what becomes of task vectors that are no matrix: their mean, their sum, or nothing",
    )


def embeddings_parameter(default: str = "spectral") -> Any:
    """The rule for embeddings and heads."""
    return shared(
        default,
        choices=("spectral", "average", "sum", "base"),
        doc="how embeddings and heads are taken: as matrices, or by one of the rules of `others`",
    )


def kernels_parameter(default: str = "others") -> Any:
    """The rule for tensors of four or more axes."""
    return shared(
        default,
        choices=("others", "matrix"),
        doc="how tensors of four or more axes are taken: like the others, or as matrices (first axis, all others)",
    )


@dataclass(frozen=True, slots=True)
class MatrixRules:
    """The parameters that say which tensors a matrix method works on; methods inherit them.

    Two-axis weights are matrices. Three-axis ones are stacks of experts (E, outputs, inputs), taken one by one
    (stacks: slices), or like the others. Kernels, embeddings and heads follow their own rules; 0-d and 1-d tensors
    follow `others`, and so do the roles that are exempt.
    """

    others: str = others_parameter()
    embeddings: str = embeddings_parameter()
    stacks: str = shared("slices", choices=("slices", "others"), doc="how 3-d tensors are taken")
    kernels: str = kernels_parameter()
    fused: str = shared(
        "whole",
        choices=("whole", "split"),
        doc="fused q, k, v and gate, up: as one matrix, or cut into the blocks that lie behind each other, each with "
        "ranks of its own",
    )
    orientation: str = shared(
        "auto",
        choices=("auto", "output_first", "input_first"),
        doc="axes of stored matrices; auto: as inferred from the checkpoint (input first for GPT-2's Conv1D)",
    )

    exempt: str = shared(
        "", doc="roles, separated by spaces, of tensors that are not taken as matrices"
    )

    def view(self, site: Site) -> MatrixView | None:
        """How the tensor is seen as matrices; None where it follows the rule for others."""
        if has_role(site, self.exempt, "exempt"):
            return None
        if site.role in EMBEDDING_ROLES and self.embeddings != "spectral":
            return None
        shape = site.shape
        if len(shape) == 2 or (len(shape) == 3 and self.stacks == "slices"):
            first, last = shape[-2:]
            turned = self._input_first(site)
            outputs, inputs = (last, first) if turned else (first, last)
            parts = fused_parts(site.role, outputs, inputs) if self.fused == "split" else ()
            count = shape[0] if len(shape) == 3 else 1
            return MatrixView(shape, count, outputs, inputs, turned, parts)
        if len(shape) > 3 and self.kernels == "matrix":
            return MatrixView(shape, 1, *kernel_shape(shape))
        return None

    def rule(self, site: Site) -> str:
        """What becomes of a tensor that is no matrix: average, sum or base."""
        asked = self.embeddings if site.role in EMBEDDING_ROLES else self.others
        return self.others if asked == "spectral" else asked

    def without_matrix(
        self, deltas: Sequence[Value], weights: Sequence[float], site: Site
    ) -> Value | None:
        """The merged task vector of a tensor that is no matrix; None where it stays at the base."""
        rule = self.rule(site)
        if rule == "base":
            return None
        merged = plain_sum(deltas, weights)
        return merged if rule == "sum" or len(deltas) == 1 else merged / float(len(deltas))

    def _input_first(self, site: Site) -> bool:
        if self.orientation == "auto":
            return site.input_first
        return self.orientation == "input_first"


def fused_parts(role: str, outputs: int, inputs: int) -> tuple[int, ...]:
    """Sizes along the outputs of projections stored one behind the other; () where the role is of one projection.

    Of q, k, v, q has as many outputs as the matrix has inputs and k and v share the rest equally (grouped heads),
    or all three are equal. Layouts that interleave the heads are cut the same way, and are better left whole.
    """
    if role == "attention.qkv":
        rest = outputs - inputs
        if rest > 0 and rest % 2 == 0:
            return (inputs, rest // 2, rest // 2)
        return (outputs // 3,) * 3 if outputs % 3 == 0 else ()
    n = _FUSED_PARTS.get(role)
    return (outputs // n,) * n if n is not None and outputs and outputs % n == 0 else ()


def in_float64(linalg: Any, array: Any) -> Any:
    """The array in float64, so that results of different linear-algebra libraries agree after rounding."""
    return _cast(array, linalg.float64)


class WideMatrix:
    """Room for one matrix in float64, which numpy fills again and again; torch gets new ones, for gradients.

    Pages that are new to a process cost more than what is written to them.
    """

    def __init__(self) -> None:
        self._room: Any = None

    def hold(self, linalg: Any, array: Any) -> Any:
        """The array in float64, until the next one is held; not to be changed."""
        if linalg is not np or array.dtype == np.float64:
            return in_float64(linalg, array)
        if self._room is None or self._room.shape != array.shape:
            self._room = np.empty(array.shape)
        np.copyto(self._room, array)
        return self._room


def in_dtype_of(reference: Any, array: Any) -> Any:
    """The array rounded to the dtype of `reference`."""
    return _cast(array, reference.dtype)


def _cast(array: Any, dtype: Any) -> Any:
    return array.to(dtype) if hasattr(array, "to") else array.astype(dtype, copy=False)
