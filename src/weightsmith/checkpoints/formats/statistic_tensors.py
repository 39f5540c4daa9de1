"""The tensors of a statistics file as dense ones, whatever form they are stored in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from weightsmith.checkpoints.formats.statistics_header import DESCRIPTIVE
from weightsmith.errors import CheckpointError
from weightsmith.tensors import (
    STATISTIC_DTYPES,
    BlockConstant,
    Checked,
    LazyTensor,
    LowRankProduct,
    OuterProduct,
    UpperTriangle,
    shown,
)

if TYPE_CHECKING:
    from weightsmith.checkpoints.formats.statistics_header import StatisticsHeader

# Kinds whose numbers are means of squares.
_SQUARES = ("fisher", "adam")
# What sums up the gradients of all samples, beside those of single ones.
SUMMARIES = frozenset({"mean", "absolute", "taylor", "sensitivity"})


def dense_tensors(
    name: str, stored: Mapping[str, LazyTensor], header: StatisticsHeader, identity: str
) -> dict[str, LazyTensor]:
    """The dense tensors, by their names, of the statistic of the weight `name`.

    `stored` maps what follows `name::` to the tensor ("" for a dense one). Raises CheckpointError for a form that the
    kind does not have.
    """
    for tensor in stored.values():
        if tensor.dtype not in STATISTIC_DTYPES:
            raise CheckpointError(
                f"{identity}: {shown(tensor.name)} holds {tensor.dtype} numbers, but statistics are float16, "
                "bfloat16, float32 or float64: convert it."
            )
    marks = set(stored)
    has_gradients = all(mark.isdecimal() or mark in SUMMARIES for mark in marks)
    if header.kind in DESCRIPTIVE or (header.kind == "gradients" and has_gradients):
        return {t.name: Checked(t, negative=True) for t in stored.values()}
    if header.kind == "gram" and "upper" in marks and marks <= {"upper", "tokens"}:
        made: dict[str, LazyTensor] = {name: _symmetric(name, stored["upper"], identity)}
        if "tokens" in stored:
            made[stored["tokens"].name] = Checked(stored["tokens"], negative=False)
        return made
    if marks == {""}:
        return {name: Checked(stored[""], negative=header.kind not in _SQUARES)}
    if header.kind in _SQUARES and marks == {"rows", "columns"}:
        return {name: _outer_product(name, stored, header, identity)}
    if header.kind in _SQUARES and marks == {"left", "right"}:
        return {name: _low_rank(name, stored, identity)}
    if header.kind in _SQUARES and header.block and len(marks) == 1:
        return {name: _blocks(name, stored, header, identity)}
    if header.kind == "repair" and len(marks) == 1:
        return {name: _factors(name, stored, identity)}
    listed = ", ".join(shown(tensor.name) for tensor in stored.values())
    raise CheckpointError(
        f"{identity}: {listed} are no form in which statistics of kind {header.kind} are stored: collect them again."
    )


def _symmetric(name: str, upper: LazyTensor, identity: str) -> UpperTriangle:
    """`name::upper` has the rows of a matrix from the diagonal on, (n (n + 1) / 2), or those of each of a stack."""
    numel = upper.shape[-1] if upper.shape else 0
    width = (math.isqrt(8 * numel + 1) - 1) // 2
    if len(upper.shape) not in (1, 2) or width * (width + 1) // 2 != numel:
        raise CheckpointError(
            f"{identity}: {shown(upper.name)} has shape {list(upper.shape)}, which is no triangle of a matrix: "
            "collect the statistics again."
        )
    return UpperTriangle(name, (*upper.shape[:-1], width, width), Checked(upper, negative=True))


def _outer_product(
    name: str, stored: Mapping[str, LazyTensor], header: StatisticsHeader, identity: str
) -> OuterProduct:
    rows, columns = stored["rows"], stored["columns"]
    stack, m = rows.shape[:-1], rows.shape[-1:]
    if not m or columns.shape[:-1] != stack or not columns.shape:
        raise _unfit(name, rows, columns, identity)
    shape = (*stack, *m, columns.shape[-1])
    return OuterProduct(
        name, shape, Checked(rows, negative=False), Checked(columns, negative=False), header.means
    )


def _low_rank(name: str, stored: Mapping[str, LazyTensor], identity: str) -> LowRankProduct:
    left, right = stored["left"], stored["right"]
    if len(left.shape) != 2 or len(right.shape) != 2 or left.shape[1] != right.shape[0]:
        raise _unfit(name, left, right, identity)
    shape = (left.shape[0], right.shape[1])
    return LowRankProduct(name, shape, Checked(left, negative=True), Checked(right, negative=True))


def _blocks(
    name: str, stored: Mapping[str, LazyTensor], header: StatisticsHeader, identity: str
) -> BlockConstant:
    """`name::blocks:32,64` has one number per block of a tensor of shape (32, 64)."""
    blocks, shape = _shaped(stored, "blocks", identity)
    if blocks.numel != -(-math.prod(shape) // header.block):
        raise CheckpointError(
            f"{identity}: {shown(blocks.name)} has {blocks.numel} blocks of {header.block} for {math.prod(shape)} "
            "weights: collect the statistics again."
        )
    return BlockConstant(name, shape, Checked(blocks, negative=False), header.block)


def _factors(name: str, stored: Mapping[str, LazyTensor], identity: str) -> BlockConstant:
    """`name::factors:32,64` has one number per row of a tensor of shape (32, 64)."""
    factors, shape = _shaped(stored, "factors", identity)
    if factors.shape != shape[:1] or 0 in shape:
        raise CheckpointError(
            f"{identity}: {shown(factors.name)} has shape {list(factors.shape)}, but a weight of shape {list(shape)} "
            "takes one factor per row: collect the statistics again."
        )
    return BlockConstant(
        name, shape, Checked(factors, negative=True), math.prod(shape) // factors.numel
    )


def _shaped(
    stored: Mapping[str, LazyTensor], form: str, identity: str
) -> tuple[LazyTensor, tuple[int, ...]]:
    """The only tensor, and the shape of its weight, which is in its name behind the form's."""
    ((mark, found),) = stored.items()
    word, _, extent = mark.partition(":")
    lengths = extent.split(",") if extent else []
    if word != form or not all(length.isdecimal() for length in lengths):
        raise CheckpointError(
            f"{identity}: {shown(found.name)} does not say the shape of its weight: collect the statistics again."
        )
    return found, tuple(int(length) for length in lengths)


def _unfit(name: str, first: LazyTensor, second: LazyTensor, identity: str) -> CheckpointError:
    return CheckpointError(
        f"{identity}: the factors of {shown(name)} have shapes {list(first.shape)} and {list(second.shape)}, which do "
        "not belong to one matrix: collect the statistics again."
    )
