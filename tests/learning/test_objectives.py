"""Objectives against their formulas in plain float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from weightsmith.learning.draws import drawn
from weightsmith.learning.objectives import Outputs, parse_objective

SHAPE = (2, 3, 4)
LABELS = [[0, 3, -100], [2, -100, -100]]


def tensors(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def of(text: str, temperature: float = 1.0, labels: bool = True) -> np.ndarray:
    z, t, *blocks = tensors(0, SHAPE, SHAPE, (2, 5), (2, 3, 5), (2, 5), (2, 3, 5))
    found = parse_objective(text, temperature).of(
        Outputs(z, blocks[:2]), torch.tensor(LABELS) if labels else None, Outputs(t, blocks[2:])
    )
    return found.double().numpy()


def logs(which: int, temperature: float = 1.0) -> np.ndarray:
    return log_softmax(tensors(0, SHAPE, SHAPE)[which].double().numpy() / temperature, -1)


def mean_counted(losses: np.ndarray, labels: bool = True) -> np.ndarray:
    kept = np.array(LABELS) != -100 if labels else np.ones_like(losses, bool)
    return np.array([row[own].mean() for row, own in zip(losses, kept, strict=True)])


@pytest.mark.parametrize("labels", [True, False])
def test_entropy_is_that_of_the_predictions_that_count(labels):
    p = np.exp(logs(0))
    wanted = mean_counted(-(p * logs(0)).sum(-1), labels)
    assert of("entropy", labels=labels) == pytest.approx(wanted, rel=1e-5)


def test_cross_entropy_is_that_of_the_labels():
    chosen = np.take_along_axis(logs(0), np.maximum(LABELS, 0)[..., None], -1)[..., 0]
    assert of("cross_entropy") == pytest.approx(mean_counted(-chosen), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_is_that_of_the_student_from_the_teacher(temperature):
    student, teacher = logs(0, temperature), logs(1, temperature)
    wanted = temperature**2 * (np.exp(teacher) * (teacher - student)).sum(-1)
    assert of("kl", temperature) == pytest.approx(mean_counted(wanted), rel=1e-5)


def test_hidden_is_the_mean_over_blocks_of_mean_squares():
    _, _, *b = (
        t.double().numpy() for t in tensors(0, SHAPE, SHAPE, (2, 5), (2, 3, 5), (2, 5), (2, 3, 5))
    )
    first, second = ((b[i] - b[i + 2]) ** 2 for i in range(2))
    wanted = (first.mean(1) + second.reshape(2, -1).mean(1)) / 2
    assert of("hidden") == pytest.approx(wanted, rel=1e-5)


def test_a_sum_has_its_weights():
    wanted = of("entropy") + 2.5 * of("hidden")
    assert of("entropy,hidden:2.5") == pytest.approx(wanted, rel=1e-6)


def test_every_epoch_sees_all_items_once_in_an_order_of_its_own():
    steps = [drawn(3, 1, 10, step, 4) for step in range(10)]
    flat = [number for step in steps for number in step]
    epochs = [flat[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert drawn(3, 1, 10, 7, 4) == steps[7]
