"""A contributor is taken out again: the bits of a merge that never had it, or within a bound that is stated."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import weightsmith
from weightsmith.engine.records.rollback import RolledBack, Way, roll_back
from weightsmith.errors import CheckpointError, RecipeError, UsageError, VerificationError

from ..adapters.peft_family import llama, lora  # noqa: TID252 - two rooms share it
from .conftest import Family

WEIGHTS = (0.3, 0.9, 0.5)


def weighted(family: Family, method: str, **more: Any) -> dict[str, Any]:
    """A recipe whose experts have the weights WEIGHTS."""
    recipe = family.recipe(method, **more)
    for model, weight in zip(recipe["models"], WEIGHTS, strict=True):
        model["parameters"] = {"weight": weight}
    return recipe


def fresh(
    family: Family, recipe: dict[str, Any], removed: int
) -> weightsmith.engine.records.manifest.Manifest:
    """The merge that never had one of the models."""
    models = [m for i, m in enumerate(recipe["models"]) if i != removed]
    return weightsmith.merge({**recipe, "models": models}, family.root / "fresh")


def wide(family: Family, name: str) -> dict[str, np.ndarray[Any, Any]]:
    """Tensors as float64."""
    return {k: v.double().numpy() for k, v in family.tensors(name).items()}


def excess(family: Family, made: RolledBack, others: tuple[str, ...]) -> tuple[float, float]:
    """How far `new` exceeds its bound against `fresh` anywhere, and the largest difference over its bound."""
    new, expected, merged = (wide(family, n) for n in ("new", "fresh", "out"))
    inputs = [wide(family, n) for n in others]
    over, used = -np.inf, 0.0
    assert new.keys() == expected.keys() == made.bounds.keys()
    for name, bound in made.bounds.items():
        largest = np.max([abs(i[name]) for i in (merged, *inputs)], axis=0)
        allowed = bound.at(merged[name], new[name], largest)
        difference = abs(new[name] - expected[name])
        over = max(over, float((difference - allowed).max()))
        used = max(used, float((difference[allowed > 0] / allowed[allowed > 0]).max(initial=0.0)))
    return over, used


EVERYTHING = ("base", "e1", "e2", "e3")


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_ties", "della"])
def test_a_replay_has_the_bits_of_a_merge_that_never_had_it(family: Family, method: str) -> None:
    """Whatever the method, random masks included; its own record replays again."""
    recipe = weighted(family, method, seed=5)
    weightsmith.merge(recipe, family.root / "out")
    made = roll_back(family.root / "out", family.root / "new", "e2")
    assert made.way is Way.REPLAY
    assert made.manifest.digest == fresh(family, recipe, 1).digest
    weightsmith.replay(family.root / "new", family.root / "again")
    assert weightsmith.verify(family.root / "new", recompute=9).ok


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("linear", {}),
        ("linear", {"parameters": {"normalize": False}}),
        ("task_arithmetic", {}),
        ("task_arithmetic", {"parameters": {"lambda": 0.7, "normalize": True}}),
        ("linear", {"dtype": "float32"}),
        ("task_arithmetic", {"dtype": "float16", "then": [{"lines": {"alpha": 0.4}}]}),
    ],
)
@pytest.mark.parametrize("removed", [0, 1])
def test_a_subtraction_is_within_its_bound_of_a_fresh_merge(
    family: Family, method: str, more: dict[str, Any], removed: int
) -> None:
    """With both other experts gone; normalised averages, unnormalised sums, steps with weights by depth."""
    recipe = weighted(family, method, **more)
    weightsmith.merge(recipe, family.root / "out")
    fresh(family, recipe, removed)
    keep = f"e{removed + 1}"
    gone = [n for n in ("e1", "e2", "e3") if n != keep]
    for name in gone:
        shutil.move(family.root / name, family.root / f"away-{name}")
    made = roll_back(family.root / "out", family.root / "new", keep)
    assert made.way is Way.SUBTRACTION
    assert made.gone == tuple(str(family.root / n) for n in gone)
    for name in gone:
        shutil.move(family.root / f"away-{name}", family.root / name)
    over, used = excess(family, made, EVERYTHING)
    assert over <= 0.0
    assert used > 0.02, "the bound says nothing"


def test_a_subtraction_is_a_merge_like_any_other(family: Family) -> None:
    """It verifies, its tensors can be computed again, and it replays."""
    weightsmith.merge(weighted(family, "task_arithmetic"), family.root / "out")
    made = roll_back(family.root / "out", family.root / "new", "e3", by=Way.SUBTRACTION)
    assert {Path(i.reference).name for i in made.manifest.inputs.values()} == {"out", "e3", "base"}
    assert weightsmith.verify(family.root / "new", recompute=9).ok
    assert (
        weightsmith.replay(family.root / "new", family.root / "again").digest
        == made.manifest.digest
    )


def test_weights_by_depth_and_by_name_are_taken_out_tensor_by_tensor(family: Family) -> None:
    """Gradients and conditions give each tensor its own coefficients; where the model had none, bits stay."""
    recipe = weighted(family, "linear")
    recipe["models"][1]["parameters"] = {
        "weight": [
            {"filter": "norm", "value": 0.0},
            {"match": {"role": "head"}, "value": 0.25},
            {"value": [0.2, 0.8]},
        ]
    }
    recipe["parameters"] = {"normalize": True}
    weightsmith.merge(recipe, family.root / "out")
    fresh(family, recipe, 1)
    made = roll_back(family.root / "out", family.root / "new", "e2", by=Way.SUBTRACTION)
    assert excess(family, made, EVERYTHING)[0] <= 0.0
    before, after = family.tensors("out"), family.tensors("new")
    assert all(torch.equal(before[n], after[n]) for n in before if "norm" in n)


def test_what_all_models_share_stays_to_the_bit(family: Family) -> None:
    """A ratio of weights rounds nothing where there is nothing to average."""
    for name in ("e1", "e2", "e3"):
        tensors = family.tensors(name) | {
            "lm_head.weight": family.tensors("base")["lm_head.weight"]
        }
        save_file(tensors, family.root / name / "model.safetensors", metadata={"format": "pt"})
    weightsmith.merge(weighted(family, "linear"), family.root / "out")
    roll_back(family.root / "out", family.root / "new", "e1", by=Way.SUBTRACTION)
    assert torch.equal(
        family.tensors("new")["lm_head.weight"], family.tensors("base")["lm_head.weight"]
    )


def test_a_result_of_a_roll_back_is_taken_out_of_a_merge(family: Family) -> None:
    """Two thirds of a merge that has a subtracted model in it leave the third."""
    weightsmith.merge(weighted(family, "linear", dtype="float32"), family.root / "out")
    roll_back(family.root / "out", family.root / "one", "e1", by=Way.SUBTRACTION)
    recipe = {
        "weightsmith": 1,
        "merge_method": "linear",
        "models": [
            {"model": str(family.root / "one"), "parameters": {"weight": 2}},
            {"model": str(family.root / "e2")},
        ],
        "dtype": "float32",
    }
    weightsmith.merge(recipe, family.root / "three")
    roll_back(family.root / "three", family.root / "new", "one", by=Way.SUBTRACTION)
    left, expected = family.tensors("new"), family.tensors("e2")
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, expected[name].float(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", ["ties", "dare_ties", "model_stock"])
def test_a_merge_that_is_not_linear_is_not_subtracted_from(family: Family, method: str) -> None:
    """The sentence says so, and that another way is open."""
    weightsmith.merge(family.recipe(method), family.root / "out")
    with pytest.raises(RecipeError, match=r"cannot be subtracted; give every other input"):
        roll_back(family.root / "out", family.root / "new", "e2", by=Way.SUBTRACTION)
    assert not (family.root / "new").exists()


def test_an_input_that_is_gone_is_named_where_it_is_needed(family: Family) -> None:
    """A replay needs the others; subtraction from a TIES merge is no way out."""
    weightsmith.merge(family.recipe("ties"), family.root / "out")
    shutil.rmtree(family.root / "e3")
    with pytest.raises(CheckpointError, match=r"e3'.*subtraction"):
        roll_back(family.root / "out", family.root / "new", "e1", by=Way.REPLAY)
    with pytest.raises(RecipeError, match=r"constant coefficients.*Not found: .*e3"):
        roll_back(family.root / "out", family.root / "new", "e1")


def test_a_method_that_needs_two_models_is_not_left_with_one(family: Family) -> None:
    """SLERP between a model and nothing has no meaning."""
    recipe = family.recipe("slerp", experts=2, parameters={"t": 0.4}) | {
        "base_model": str(family.root / "e1")
    }
    weightsmith.merge(recipe, family.root / "out")
    with pytest.raises(RecipeError, match=r"slerp"):
        roll_back(family.root / "out", family.root / "new", "e2")


def test_a_donor_may_go_and_its_papers_stay_after_a_subtraction(family: Family) -> None:
    """A replay takes config and tokenizer from another model; a subtraction has those of MERGED and says so."""
    config = (family.root / "e1" / "config.json").read_text()
    marked = config.replace("{", '{"note": "first", ', 1)
    (family.root / "e1" / "config.json").write_text(marked)
    recipe = weighted(family, "linear", donor=str(family.root / "e1"))
    weightsmith.merge(recipe, family.root / "out")
    again = roll_back(family.root / "out", family.root / "again", "e1")
    assert not again.was_config_source
    assert "first" not in (family.root / "again" / "config.json").read_text()
    made = roll_back(family.root / "out", family.root / "new", "e1", by=Way.SUBTRACTION)
    assert made.was_config_source
    assert "first" in (family.root / "new" / "config.json").read_text()


def test_rounded_inputs_are_subtracted_as_they_were_rounded(family: Family) -> None:
    """In mergekit's semantics float32 models are rounded to the recipe's dtype before they are merged."""
    for name in ("e1", "e2", "e3"):
        tensors = {
            k: v.float() + 1e-5 * torch.arange(v.numel()).view(v.shape) / v.numel()
            for k, v in family.tensors(name).items()
        }
        save_file(tensors, family.root / name / "model.safetensors", metadata={"format": "pt"})
    recipe = weighted(family, "linear", semantics="mergekit")
    weightsmith.merge(recipe, family.root / "out")
    fresh(family, recipe, 0)
    made = roll_back(family.root / "out", family.root / "new", "e1", by=Way.SUBTRACTION)
    assert excess(family, made, EVERYTHING)[0] <= 0.0
    wider = recipe | {"out_dtype": "float32"}
    weightsmith.merge(wider, family.root / "wider")
    with pytest.raises(RecipeError, match="rounded before it was merged"):
        roll_back(family.root / "wider", family.root / "newer", "e1", by=Way.SUBTRACTION)


def test_a_moved_input_is_given_by_name(family: Family) -> None:
    """As for a replay."""
    recipe = weighted(family, "linear")
    weightsmith.merge(recipe, family.root / "out")
    expected = fresh(family, recipe, 0).digest
    shutil.move(family.root / "e3", family.root / "elsewhere")
    inputs = {str(family.root / "e3"): family.root / "elsewhere"}
    made = roll_back(family.root / "out", family.root / "new", "e1", inputs=inputs)
    assert made.manifest.digest == expected


@pytest.mark.parametrize("by", [Way.REPLAY, Way.SUBTRACTION])
@pytest.mark.parametrize("changed", ["e1", "out"])
def test_inputs_are_those_on_record(family: Family, by: Way, changed: str) -> None:
    """One changed bit of what is read leaves no output."""
    weightsmith.merge(weighted(family, "linear"), family.root / "out")
    file = family.root / changed / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-2] ^= 64
    file.write_bytes(data)
    out = "e1" if by is Way.SUBTRACTION else "e2"
    if by is Way.REPLAY and changed == "out":
        roll_back(family.root / "out", family.root / "new", out, by=by)
        return
    with pytest.raises(VerificationError, match="not the one on record"):
        roll_back(family.root / "out", family.root / "new", out, by=by)
    assert not (family.root / "new").exists()


def test_names_that_mean_no_input_or_several_are_refused(family: Family) -> None:
    """With the inputs that there are."""
    recipe = family.recipe("linear")
    (family.root / "other").mkdir()
    shutil.copytree(family.root / "e1", family.root / "other" / "e1")
    recipe["models"].append({"model": str(family.root / "other" / "e1")})
    weightsmith.merge(recipe, family.root / "out")
    with pytest.raises(UsageError, match=r"no input 'e9'; it has .*e1"):
        roll_back(family.root / "out", family.root / "new", "e9")
    made = roll_back(family.root / "out", family.root / "new", str(family.root / "other" / "e1"))
    assert len(made.manifest.inputs) == 3


def _modular(**more: Any) -> dict[str, Any]:
    return {"weightsmith": 1, "merge_method": "linear", "dtype": "bfloat16"} | more


def _written(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe with models and sources in short as the language has them."""
    for part in (recipe, *recipe.get("modules", {}).values()):
        if "models" in part:
            part["models"] = [{"model": m} for m in part["models"]]
    for part in recipe.get("slices", ()):
        part["sources"] = [{"model": m, "layer_range": r} for m, r in part["sources"]]
    return recipe


@pytest.mark.parametrize(
    ("recipe", "out", "sentence"),
    [
        (
            {"merge_method": "task_arithmetic", "base_model": "base", "models": ["e1", "e2"]},
            "base",
            "is the base",
        ),
        ({"models": ["e1"]}, "e1", "the only model"),
        (
            {
                "slices": [
                    {"sources": [("e1", [0, 1])]},
                    {"sources": [("e1", [1, 2]), ("e2", [1, 2])]},
                ]
            },
            "e1",
            r"only source of slices\[0\]",
        ),
        (
            {"models": ["e1", "e2"], "rules": [{"match": {"role": "head"}, "keep": "e1"}]},
            "e1",
            "A rule keeps",
        ),
        (
            {"expression": "0.5 * a + 0.5 * b", "checkpoints": {"a": "e1", "b": "e2"}},
            "e1",
            "The expression",
        ),
    ],
)
def test_what_cannot_be_taken_out_is_refused_in_a_sentence(
    family: Family, monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any], out: str, sentence: str
) -> None:
    """Bases, only models, only sources, what rules keep, what expressions compute with."""
    monkeypatch.chdir(family.root)
    recipe = _written(_modular(**recipe))
    if "expression" in recipe:
        del recipe["merge_method"]
    weightsmith.merge(recipe, family.root / "out")
    with pytest.raises(RecipeError, match=sentence):
        roll_back(family.root / "out", family.root / "new", out)


def test_a_model_goes_from_slices_modules_and_recipes_inside(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a recipe inside that merges nothing else goes with it."""
    monkeypatch.chdir(family.root)
    inner = {
        "name": "only-e1",
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "e1"}],
    }
    both = inner | {"name": "both", "models": [{"model": "e1"}, {"model": "e2"}]}
    recipe = _modular(models=[{"model": inner}, {"model": both}, {"model": "e3"}])
    weightsmith.merge(recipe, "out")
    made = roll_back(Path("out"), Path("new"), "e1")
    expected = _modular(models=[{"model": both | {"models": [{"model": "e2"}]}}, {"model": "e3"}])
    assert made.manifest.digest == weightsmith.merge(expected, "expected").digest


@pytest.mark.parametrize(
    ("part", "reduced"),
    [
        (
            {"slices": [{"sources": [("e1", [0, 2]), ("e2", [0, 2])]}]},
            {"slices": [{"sources": [("e2", [0, 2])]}]},
        ),
        (
            {"modules": {"layers": {"models": ["e1", "e2"]}, "lm_head": {"models": ["e2", "e3"]}}},
            {"modules": {"layers": {"models": ["e2"]}, "lm_head": {"models": ["e2", "e3"]}}},
        ),
    ],
)
def test_a_model_goes_from_slices_and_modules(
    family: Family, monkeypatch: pytest.MonkeyPatch, part: dict[str, Any], reduced: dict[str, Any]
) -> None:
    """What is left is the recipe that would have been written without it."""
    monkeypatch.chdir(family.root)
    weightsmith.merge(_written(_modular(base_model="base", **part)), "out")
    made = roll_back(Path("out"), Path("new"), "e1")
    expected = weightsmith.merge(_written(_modular(base_model="base", **reduced)), "expected")
    assert made.manifest.digest == expected.digest


def test_a_model_with_an_adapter_is_taken_out_like_any_other(tmp_path: Path) -> None:
    """By its whole reference, afresh and by subtraction."""
    pytest.importorskip("peft")
    base = llama(tmp_path)
    first, second = (lora(base, name, seed) for seed, name in enumerate(("a", "b"), start=1))
    models = [f"{base}+{first}", f"{base}+{second}:0.5", str(base)]
    recipe = {
        "weightsmith": 1,
        "merge_method": "linear",
        "models": [{"model": m} for m in models],
        "dtype": "float32",
    }
    weightsmith.merge(recipe, tmp_path / "out")
    expected = weightsmith.merge({**recipe, "models": recipe["models"][1:]}, tmp_path / "fresh")
    replayed = roll_back(tmp_path / "out", tmp_path / "again", models[0])
    assert replayed.manifest.digest == expected.digest
    made = roll_back(tmp_path / "out", tmp_path / "new", models[0], by=Way.SUBTRACTION)
    for name, tensor in load_file(tmp_path / "new" / "model.safetensors").items():
        fresh_one = load_file(tmp_path / "fresh" / "model.safetensors")[name]
        torch.testing.assert_close(tensor, fresh_one, rtol=0, atol=1e-6)
    assert weightsmith.verify(tmp_path / "new", recompute=5).ok
    assert made.bounds
