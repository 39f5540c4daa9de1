"""The gradient of an order statistic is that of the element it was found at."""

from __future__ import annotations

import pytest
import torch

from weightsmith.graph.backends.torch_memory import evaluate, evaluate_model
from weightsmith.graph.graph import largest, source
from weightsmith.graph.model_statistics import ModelStatistic

MODEL = ModelStatistic("merge", "threshold")


@pytest.mark.parametrize(("k", "place", "sign"), [(1, 2, -1.0), (2, 0, 1.0), (4, 1, 1.0)])
def test_it_goes_to_the_kth_largest_magnitude_with_the_sign_of_the_element(k, place, sign):
    x = torch.tensor([3.0, 0.5, -4.0, 1.0], dtype=torch.float64, requires_grad=True)
    found = evaluate(source(0) * largest(source(0), k).magnitude, [x])
    magnitude = float(x.detach()[place].abs())
    assert torch.equal(found.detach(), x.detach() * magnitude)
    found.sum().backward()
    expected = torch.full((4,), magnitude, dtype=torch.float64)
    expected[place] += sign * float(x.detach().sum())
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("k", [0, 3])
def test_it_has_none_where_no_element_is_selected(k):
    x = torch.tensor([2.0, 0.0, 0.0], requires_grad=True)
    found = evaluate(source(0) + largest(source(0), k).magnitude, [x])
    found.sum().backward()
    assert torch.equal(x.grad, torch.ones(3))


def test_of_equal_magnitudes_it_is_that_of_one():
    x = torch.tensor([1.0, -2.0, 2.0, 2.0], requires_grad=True)
    evaluate(source(0) * 0.0 + largest(source(0), 2).magnitude, [x])[0].backward()
    assert x.grad.abs().sum() == 1.0
    assert x.grad[0] == 0.0


def test_over_a_model_it_goes_to_the_tensor_that_has_the_element():
    tensors = {
        "a": torch.tensor([1.0, -7.0], requires_grad=True),
        "empty": torch.zeros(0, requires_grad=True),
        "b": torch.tensor([-5.0, 2.0, 0.0], requires_grad=True),
    }
    graph = source(0) * 0.0 + largest(source(0), 2, MODEL).magnitude
    merged = evaluate_model(dict.fromkeys(tensors, graph), {n: [t] for n, t in tensors.items()})
    assert all(bool((m == 5.0).all()) for m in merged.values())
    sum(m.sum() for m in merged.values()).backward()
    assert torch.equal(tensors["a"].grad, torch.zeros(2))
    assert torch.equal(tensors["b"].grad, torch.tensor([-5.0, 0.0, 0.0]))
