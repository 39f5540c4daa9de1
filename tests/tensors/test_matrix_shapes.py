"""The matrix that a tensor counts as: one rule for whoever knows its shape alone."""

from __future__ import annotations

import math

import pytest

from weightsmith.tensors.matrix_shapes import kernel_shape, matrix_shape, matrix_stack


@pytest.mark.parametrize(
    ("shape", "stack", "whole", "kernel"),
    [
        ((), (1, 1, 1), (1, 1), (1, 1)),
        ((7,), (1, 1, 7), (1, 7), (7, 1)),
        ((5, 7), (1, 5, 7), (5, 7), (5, 7)),
        ((3, 5, 7), (3, 5, 7), (15, 7), (3, 35)),
        ((3, 5, 2, 2), (1, 3, 20), (3, 20), (3, 20)),
        ((3, 5, 2, 2, 2), (1, 3, 40), (3, 40), (3, 40)),
    ],
)
def test_experts_lie_below_each_other_and_kernels_are_outputs_by_all_else(
    shape, stack, whole, kernel
):
    assert (matrix_stack(shape), matrix_shape(shape), kernel_shape(shape)) == (stack, whole, kernel)
    assert math.prod(whole) == math.prod(kernel) == math.prod(shape)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0, 4)])
def test_a_tensor_without_elements_has_no_column(shape):
    assert matrix_shape(shape) == (1, 0)
