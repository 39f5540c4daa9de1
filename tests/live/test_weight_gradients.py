"""Gradients of weights as what they are made of, against the arrays that autograd makes."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional

from weightsmith.live import (
    BlockGradients,
    BlockRun,
    GradientCatcher,
    WeightGradient,
    gradients_of,
    load_model,
)
from weightsmith.live.blocks.activations import ActivationStore
from weightsmith.live.weight_gradients import Looked, Product, Whole

from .architectures import ARCHITECTURES


class Scaled(nn.Embedding):
    """An embedding of its own kind, as Gemma's."""

    def forward(self, places):
        return super().forward(places).mul_(3)


class Mixed(nn.Module):
    """Weights that are multiplied, looked up, used twice, and used by themselves."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = Scaled(12, 6, padding_idx=3)
        self.matrix = nn.Linear(6, 5)
        self.transposed = nn.Parameter(torch.randn(5, 6))
        self.bias = nn.Parameter(torch.randn(6))
        self.norm = nn.LayerNorm(6)

    def forward(self, places):
        states = self.norm(self.table(places))
        states = functional.leaky_relu_(self.matrix(states)).flatten(0, 1)
        states = torch.addmm(self.bias, states, self.transposed)
        states = self.matrix(states) @ self.matrix.weight
        return functional.linear(states, self.table.weight).square().sum()


PLACES = torch.tensor([[1, 3, 7, 7], [1, 0, 7, 11]])


def caught(module):
    parameters = dict(module.named_parameters())
    catcher = GradientCatcher()
    with catcher.training(parameters):
        with catcher:
            value = module(PLACES)
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    terms = {n: catcher.take(n, g) for n, g in zip(parameters, found, strict=True)}
    return gradients_of(terms, parameters)


def test_gradients_in_terms_are_those_of_autograd(monkeypatch):
    module = Mixed()
    value = module(PLACES)
    expected = torch.autograd.grad(value, list(module.parameters()))
    found = caught(module)
    monkeypatch.setattr("weightsmith.live.weight_gradients._PIECE", {"cpu": 13})
    for (name, own), gradient in zip(module.named_parameters(), expected, strict=True):
        assert found[name].shape == own.shape
        torch.testing.assert_close(found[name].dense(), gradient)
        torch.testing.assert_close(found[name].compact().dense(), gradient)
        flat = torch.zeros(own.numel())
        for first, last in found[name].ranges():
            flat[first * found[name].row : last * found[name].row] = found[name].rows(first, last)
        torch.testing.assert_close(flat.view(own.shape), gradient)
    kinds = {name: {type(term) for term in gradient.terms} for name, gradient in found.items()}
    assert kinds == {
        "table.weight": {Looked, Product},
        "matrix.weight": {Product, Whole},
        "matrix.bias": {Whole},
        "transposed": {Product},
        "bias": {Whole},
        "norm.weight": {Whole},
        "norm.bias": {Whole},
    }


def test_nothing_is_caught_of_other_weights_and_without_gradients():
    module, catcher = Mixed(), GradientCatcher()
    with catcher.training({}), catcher:
        module(PLACES).backward()
    assert not catcher.take("matrix.weight")
    with catcher.training(dict(module.named_parameters())), catcher, torch.no_grad():
        assert not module(PLACES).requires_grad


def test_rows_that_nobody_looked_up_are_left_out():
    gradient = WeightGradient((1 << 20, 4), [Looked(torch.tensor([5, 900_000]), torch.ones(2, 4))])
    ranges = list(gradient.ranges())
    assert len(ranges) == 2
    assert [float(gradient.rows(*own).sum()) for own in ranges] == [4.0, 4.0]


def losses_of(live):
    return lambda batch: live.loss(batch, batch["input_ids"])


def test_the_gradient_of_a_tied_head_is_computed_again_and_waits_nowhere(saved, monkeypatch):
    live = load_model(saved("llama tied"), filled=False)
    batch = {"input_ids": ARCHITECTURES["llama tied"].batch()["input_ids"][:1]}
    vocabulary = live.config["vocab_size"]
    shapes = []
    put = ActivationStore.put
    monkeypatch.setattr(
        ActivationStore,
        "put",
        lambda self, key, tensor: shapes.append(tuple(tensor.shape)) or put(self, key, tensor),
    )
    with BlockRun(live, losses_of(live), [batch], with_gradients=True) as run:
        run.run()
        found = {}
        for part in BlockGradients(run).parts():
            for _, gradients in part.in_terms():
                found.update(gradients)
    assert shapes
    assert not [shape for shape in shapes if vocabulary in shape]
    assert {type(term) for term in found["model.embed_tokens.weight"].terms} == {Looked, Product}


def references(live, around):
    placed = live.parameters(live.residency.placed).values()
    return [weakref.ref(own) for own in placed if id(own) not in around]


@pytest.mark.parametrize("name", ["llama tied", "albert masked"])
def test_the_weights_of_a_part_are_gone_when_its_turn_is_over(saved, name):
    live = load_model(saved(name), filled=False)
    with BlockRun(live, losses_of(live), [ARCHITECTURES[name].batch()], with_gradients=True) as run:
        run.run()
        before: list[weakref.ref] = []
        around = {id(p) for p in live.parameters(run.loose()).values()}
        for part in BlockGradients(run).parts():
            assert not [own for own in before if own() is not None]
            for _ in part.in_terms():
                before = references(live, around)
