"""The matrix that a tensor counts as: for who knows its shape alone, and for who knows that it is a kernel.

    axes        `matrix_stack`: count x rows x columns
    0 or 1      1 x 1 x n          one row
    2           1 x a x b          as it is
    3           a x b x c          as many matrices below each other, as fused experts lie: a row is an output of one of
                                   them, and its numbers belong to that expert's inputs
    4 or more   1 x a x (b c ...)  the kernel of a convolution: a row is an output, over channels and places

The kernel of a convolution in one dimension has three axes as well, and nothing in its shape tells it from experts. As
a stack it loses no number; but who knows that it is one takes `kernel_shape`, as adapters do, whose factors of one
are of outputs by all else. Delta packages are decoded by this rule, so it cannot change.
"""

from __future__ import annotations

import math


def matrix_stack(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """How many matrices a tensor is, with their rows and columns."""
    if len(shape) < 2:
        return 1, 1, math.prod(shape)
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    return (1, *kernel_shape(shape))


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of the whole: the matrices of `matrix_stack` below each other; 1 x 0 without an element."""
    if 0 in shape:
        return 1, 0
    count, rows, columns = matrix_stack(shape)
    return count * rows, columns


def kernel_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a matrix or kernel: the first axis by all others; a vector is a column."""
    rows = shape[0] if shape else 1
    return rows, math.prod(shape[1:])
