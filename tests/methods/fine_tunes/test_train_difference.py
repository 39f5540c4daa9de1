"""Train difference: numbers worked out by hand, and supermerger's steps in torch."""

from __future__ import annotations

import torch

import weightsmith


def merged(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor, **parameters: float) -> torch.Tensor:
    return weightsmith.merge_state_dicts(
        "train_difference", [{"w": a}, {"w": b}], base={"w": c}, parameters=parameters
    )["w"]


def test_the_change_is_added_by_how_far_the_models_are_apart():
    c = torch.tensor([0.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    a = torch.tensor([0.0, 2.0, 5.0, 2.0], dtype=torch.float64)
    b = torch.tensor([2.0, 2.0, 1.0, 2.0], dtype=torch.float64)
    # 0 + 1.8 * 2/(2 + 2) * 2; nothing where A is at B, where B did not change, and where all are equal.
    torch.testing.assert_close(
        merged(c, a, b), torch.tensor([1.8, 2.0, 5.0, 2.0], dtype=torch.float64)
    )


def test_it_is_what_supermerger_does_step_by_step():
    generator = torch.Generator().manual_seed(5)
    c, a, b = (torch.randn(40, generator=generator, dtype=torch.float64) for _ in range(3))
    b[:5] = c[:5]
    a[5:9] = b[5:9]
    near, far = torch.abs(b - c), torch.abs(b - a)
    total = near + far
    scale = torch.where(total != 0, far / total, torch.tensor(0.0, dtype=torch.float64))
    new_difference = torch.sign(b - c) * scale * near
    torch.testing.assert_close(merged(c, a, b, alpha=0.6), a + new_difference * (0.6 * 1.8))
