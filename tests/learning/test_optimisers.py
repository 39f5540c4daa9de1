"""Frank-Wolfe between experts, on losses whose minimum is known, and rates of schedules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from weightsmith import merge
from weightsmith.graph import FreeNumber
from weightsmith.learning import learn
from weightsmith.learning.optimisers import FrankWolfe, OptimizerSettings, Slope

from .conftest import items, recipe, save


def weights(count: int, start: float = 0.0) -> dict[str, FreeNumber]:
    names = [f"models[{k}].parameters.weight" for k in range(count)]
    return {name: FreeNumber(name, 0.0, 1.0, start) for name in names}


class Quadratic:
    """L(v) = |V v - c|^2 / 2 of the vertices in the columns of V; the base lies at 0."""

    def __init__(self, vertices: Any, centre: Any) -> None:
        self.vertices, self.centre = vertices, centre

    def loss(self, v: list[float]) -> float:
        return float(((self.vertices @ v - self.centre) ** 2).sum() / 2)

    def slope(self, v: list[float]) -> Slope:
        gradient = self.vertices.T @ (self.vertices @ v - self.centre)
        return Slope(self.loss(v), torch.from_numpy(gradient), self.loss)


def drawn_quadratic(count: int = 8, size: int = 20, seed: int = 0) -> tuple[Quadratic, float]:
    """A loss whose minimum over the hull is 0, inside of it."""
    generator = np.random.default_rng(seed)
    vertices = generator.normal(size=(size, count))
    return Quadratic(vertices, vertices @ generator.dirichlet(np.ones(count))), 0.0


@pytest.mark.parametrize("step", ["diminishing", "line_search"])
def test_the_gap_bounds_the_distance_to_the_minimum_and_the_loss_goes_there(step):
    loss, least = drawn_quadratic()
    numbers = weights(8, 1 / 8)
    found = FrankWolfe(OptimizerSettings("frank_wolfe", rate=1.0, step=step), numbers)
    first = loss.loss(found.values())
    for number in range(300):
        before = loss.loss(found.values())
        gap = found.step(number, loss.slope(found.values()))
        assert gap is not None
        assert gap >= before - least - 1e-9
        values = found.values()
        assert min(values) >= 0
        assert sum(values) == pytest.approx(1)
        assert step == "diminishing" or loss.loss(values) <= before
    assert loss.loss(found.values()) < 0.02 * first


def test_the_base_is_a_vertex_where_weights_do_not_sum_to_one():
    loss = Quadratic(np.eye(3), np.array([-1.0, -2.0, -0.5]))
    found = FrankWolfe(OptimizerSettings("frank_wolfe", rate=1.0), weights(3, 0.2))
    found.step(0, loss.slope(found.values()))
    assert found.values() == [0.0, 0.0, 0.0]
    assert found.step(1, loss.slope(found.values())) == 0


def test_a_vertex_that_is_the_minimum_is_reached_at_once():
    loss = Quadratic(np.eye(3), np.array([0.0, 1.0, 0.0]))
    found = FrankWolfe(OptimizerSettings("frank_wolfe", step="line_search"), weights(3))
    found.step(0, loss.slope(found.values()))
    assert found.values() == [0.0, 1.0, 0.0]


def test_experts_that_never_win_leave_the_merge_as_it_is_to_the_bit(family):
    def merged(names: tuple[str, ...], out: str) -> str:
        given = recipe(family, "expert")
        given["parameters"]["weight"]["start"] = 0
        given["models"] = [{"model": str(family / name)} for name in names]
        found = learn(
            given, data=items(count=24), out=family / f"{out}.yaml", preset="fw_merging", steps=6
        )
        weights_of = list(found.values.values())
        assert not any(weights_of[3:])
        return merge(found.recipe, family / out).digest

    names = ("one", "two", "three")
    states = [load_file(family / name / "model.safetensors") for name in names]
    # <g, .> of a mean is never less than the least of those that it is a mean of.
    for number in range(4):
        shares = torch.tensor([0.2 + 0.1 * number, 0.5 - 0.1 * number, 0.3])
        mean = {k: sum(w * s[k] for w, s in zip(shares, states, strict=True)) for k in states[0]}
        save(family / f"mean{number}", mean)
    many = (*names, *(f"mean{number}" for number in range(4)))
    assert merged(names, "few") == merged(many, "many")


def test_a_cosine_schedule_begins_anew_after_twice_as_many_steps():
    settings = OptimizerSettings(rate=1.0, first_restart=4)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 4, 2, 0.1)
    wanted = []
    for _ in range(30):
        wanted.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert [settings.rate_at(step) for step in range(30)] == pytest.approx(wanted)
