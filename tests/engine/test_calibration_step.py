"""Singular value calibration as a step of `then:`, which sees the experts of the merge behind what was merged."""

from __future__ import annotations

import pytest
import torch

import weightsmith
from weightsmith.errors import RecipeError

from .conftest import Family

MERGED = {"density": 0.5, "trim_scope": "tensor"}
CALIBRATED = {"alpha": 0.3, "merged": "first"}


def expected(family: Family, **more: object) -> dict[str, torch.Tensor]:
    """The merge, calibrated in memory."""
    base, *experts = (
        {name: tensor.float() for name, tensor in family.tensors(label).items()}
        for label in ("base", "e1", "e2", "e3")
    )
    made = weightsmith.merge_state_dicts("ties", experts, base=base, parameters=MERGED)
    parameters = {**CALIBRATED, **more}
    return weightsmith.merge_state_dicts("svc", [made, *experts], base=base, parameters=parameters)


def test_a_step_calibrates_the_merge_by_the_recipes_experts(family: Family) -> None:
    """The same as the method with the merge as its first expert; vectors stay as merged."""
    recipe = family.recipe(
        "ties", parameters=MERGED, then=[{"svc": {"alpha": 0.3}}], dtype="float32"
    )
    weightsmith.merge(recipe, family.root / "out")
    plain = family.recipe("ties", parameters=MERGED, dtype="float32")
    weightsmith.merge(plain, family.root / "plain")
    merged, uncalibrated = family.tensors("out"), family.tensors("plain")
    for name, tensor in expected(family).items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=1e-7)
        differs = not torch.equal(merged[name], uncalibrated[name])
        assert differs == (tensor.ndim == 2), name


def test_a_step_after_another_step_calibrates_what_that_one_gave(family: Family) -> None:
    """The recipe's experts are still those of the merge, not the step before."""
    steps = [{"lines": {"alpha": 0.5, "beta": 0.0}}, {"svc": {"alpha": 0.3}}]
    recipe = family.recipe("ties", parameters=MERGED, then=steps, dtype="float32")
    weightsmith.merge(recipe, family.root / "out")
    # LiNeS with slope 0 halves the merged change, as lambda does.
    halved = expected(family, **{"lambda": 0.5})
    for name, tensor in family.tensors("out").items():
        torch.testing.assert_close(tensor, halved[name], rtol=0, atol=1e-7)


def test_tensors_that_were_not_merged_are_left_alone(family: Family) -> None:
    """A tensor kept by a rule has no experts to be calibrated by."""
    rules = [{"match": {"name": "q_proj"}, "keep": str(family.root / "e1")}]
    recipe = family.recipe("ties", parameters=MERGED, rules=rules, then=["svc"])
    weightsmith.merge(recipe, family.root / "out")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(family.tensors("out")[name], family.tensors("e1")[name])


def test_what_a_step_calibrates_is_not_the_recipes_to_say(family: Family) -> None:
    """A step has what was merged first, whatever the recipe would like."""
    recipe = family.recipe("ties", then=[{"svc": {"merged": "sum"}}])
    with pytest.raises(RecipeError, match=r"then\[0\]: method svc has merged 'first' as a step"):
        weightsmith.merge(recipe, family.root / "out")
