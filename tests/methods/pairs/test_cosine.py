"""Cosine A and B: numbers worked out by hand, and the sources' formulas in torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

import weightsmith
from weightsmith.errors import RecipeError


def merged(method: str, a: torch.Tensor, b: torch.Tensor, **parameters: object) -> torch.Tensor:
    result = weightsmith.merge_state_dicts(method, [{"w": b}], base={"w": a}, parameters=parameters)
    return result["w"]


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(shape, generator=generator, dtype=torch.float64)
    return a, a + 0.7 * torch.randn(shape, generator=generator, dtype=torch.float64)


def test_a_column_is_kept_as_far_as_it_is_alike():
    # Cosines 1, 0 and -1: k is 1 - 0.25, then 0 and 0.
    a = torch.tensor([[1.0, 1.0, 2.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[3.0, 0.0, -2.0], [0.0, 4.0, 0.0]], dtype=torch.float64)
    found = merged("cosine_a", a, b, alpha=0.25)
    assert found.tolist() == [[1.5, 0.0, -2.0], [0.0, 4.0, 0.0]]


@pytest.mark.parametrize("shape", [(5, 4), (6,), (4, 3, 2, 2)])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_both_are_the_formulas_of_sd_mecha(shape, alpha):
    a, b = pair(*shape)
    columns = cosine_similarity(normalize(a, dim=0), normalize(b, dim=0), dim=0)
    whole = (a * b).sum() / (a.norm() * b.norm())
    for method, alike in (("cosine_a", columns), ("cosine_b", (columns + whole) / 2)):
        k = 1 - torch.clamp(alike - alpha, 0, 1)
        torch.testing.assert_close(
            merged(method, a, b, alpha=alpha), torch.lerp(a, b, k.expand_as(a))
        )


def test_with_the_mean_and_a_scale_it_is_the_formula_of_supermerger():
    a, b = pair(5, 4)
    unit_a, unit_b = normalize(a, dim=0), normalize(b, dim=0)
    whole = torch.dot(unit_a.view(-1), unit_b.view(-1)) / (unit_a.norm() * unit_b.norm())
    alike = (cosine_similarity(unit_a, unit_b, dim=0) + whole) / 2
    lowest, highest = 0.4, 0.97
    k = ((alike - lowest) / (highest - lowest) - 0.2).clip(0, 1)
    found = merged("cosine_a", a, b, alpha=0.2, lowest=lowest, highest=highest, with_mean=True)
    torch.testing.assert_close(found, b * (1 - k) + a * k)


def test_a_scale_that_ends_where_it_begins_is_refused():
    a, b = pair(2, 2)
    with pytest.raises(RecipeError, match=r"highest is 0\.5 and must lie above lowest"):
        merged("cosine_b", a, b, lowest=0.5, highest=0.5)
