"""LiNeS as a step: without alpha it takes the paper's, from the experts of the merge that it follows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

import weightsmith
from weightsmith.errors import RecipeError

from .conftest import Family

MERGES = [("task_arithmetic", {}), ("consensus", {"k": 2}), ("ties", {"density": 0.5})]


def wide(family: Family, names: Sequence[str]) -> list[dict[str, torch.Tensor]]:
    return [{n: t.double() for n, t in family.tensors(name).items()} for name in names]


def alpha_of(merged: dict[str, torch.Tensor], family: Family) -> float:
    """(||sum_i tau_i||_1 / ||tau_M||_1) / 3 over all tensors."""
    base, *experts = wide(family, ("base", "e1", "e2", "e3"))
    summed = sum((sum(e[n] - base[n] for e in experts)).abs().sum() for n in base)
    return float(summed / sum((merged[n] - base[n]).abs().sum() for n in base)) / 3


@pytest.mark.parametrize(("method", "parameters"), MERGES)
def test_alpha_of_a_step_is_the_share_of_l1_norms(
    family: Family, method: str, parameters: dict[str, float]
) -> None:
    recipe = family.recipe(method, parameters=parameters, dtype="float64")
    weightsmith.merge(recipe, family.root / "plain")
    weightsmith.merge(recipe | {"then": ["lines"]}, family.root / "scaled")
    (base,) = wide(family, ("base",))
    merged, scaled = (family.tensors(name) for name in ("plain", "scaled"))
    alpha = alpha_of(merged, family)
    assert abs(1.0 - alpha) > 0.05
    if method == "task_arithmetic":
        assert alpha == pytest.approx(1 / 3, rel=1e-6)
    for name, tensor in scaled.items():
        factor = 1.0 if "layers.1" in name else alpha
        torch.testing.assert_close(
            tensor - base[name], (merged[name] - base[name]) * factor, rtol=0, atol=1e-7
        )


def test_a_merge_that_is_given_with_its_experts_is_scaled_alike(family: Family) -> None:
    """`merger: first` is what the step does."""
    base, *experts = wide(family, ("base", "e1", "e2", "e3"))
    merged = weightsmith.merge_state_dicts("consensus", experts, base=base)
    parameters = {"merger": "first"}
    found = weightsmith.merge_state_dicts(
        "lines", [merged, *experts], base=base, parameters=parameters
    )
    alpha = alpha_of(merged, family)
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(found[name] - base[name], (merged[name] - base[name]) * alpha)


def test_a_step_with_alpha_needs_no_experts_of_the_merge(family: Family) -> None:
    then = [{"lines": {"alpha": 0.5}}]
    weightsmith.merge(family.recipe("task_arithmetic", experts=1, then=then), family.root / "one")
    rules = [{"match": {"role": "head"}, "keep": str(family.root / "e1")}]
    plan = weightsmith.plan(family.recipe("ties", rules=rules, then=then))
    formula = next(t.output.formula for t in plan.tensors if "up_proj" in t.output.name)
    assert len(formula.experts) == 1


def test_one_expert_without_alpha_is_refused(family: Family) -> None:
    """It would come out as it went in."""
    with pytest.raises(RecipeError, match="lines with one expert needs alpha"):
        weightsmith.merge(family.recipe("lines", experts=1), family.root / "out")
    recipe = family.recipe("lines", experts=1, parameters={"merger": "first"})
    with pytest.raises(RecipeError, match="needs alpha"):
        weightsmith.merge(recipe, family.root / "out")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"experts": 1}, r"then\[0\]: method lines needs 'alpha'.* is made of 1 expert\(s\)\."),
        (
            {"rules": [{"match": {"role": "head"}, "keep": "e1"}]},
            r"'lm_head\.weight' is made of 1 expert\(s\), '.*' of 3\.",
        ),
    ],
)
def test_a_step_that_cannot_tell_alpha_says_for_which_tensor(
    family: Family, how: dict[str, object], message: str
) -> None:
    if "rules" in how:
        how = {"rules": [{"match": {"role": "head"}, "keep": str(family.root / "e1")}]}
    with pytest.raises(RecipeError, match=message):
        weightsmith.plan(family.recipe("task_arithmetic", then=["lines"], **how))


def test_a_step_with_alpha_may_name_how_experts_are_merged(family: Family) -> None:
    """With alpha, its merger is one of its own one model."""
    recipe = family.recipe("task_arithmetic", parameters={})
    for name, merger in (("one", {}), ("two", {"merger": "sum"})):
        steps = [{"lines": {"alpha": 0.5, **merger}}]
        weightsmith.merge(recipe | {"then": steps}, family.root / name)
    one, two = (family.tensors(name) for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
