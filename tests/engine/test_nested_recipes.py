"""A recipe inside a recipe gives what it gives when it is merged into a folder first, bit for bit in float32."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import weightsmith

Tensors = dict[str, torch.Tensor]
LAYERS, WIDTH = 3, 8


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (12, WIDTH),
        "model.norm.weight": (WIDTH,),
        "logit_scale": (1,),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        found[prefix + "self_attn.q_proj.weight"] = (WIDTH, WIDTH)
        found[prefix + "mlp.up_proj.weight"] = (2 * WIDTH, WIDTH)
        found[prefix + "input_layernorm.weight"] = (WIDTH,)
    return found


def numbers(seed: int, base: Tensors | None = None) -> Tensors:
    """Weights on a coarse grid, so that magnitudes are often equal."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {n: torch.randint(-16, 17, s, generator=generator) / 64 for n, s in shapes().items()}
    return drawn if base is None else {n: base[n] + t / 8 for n, t in drawn.items()}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and experts; `part` lacks the feed-forward matrices, and `mixed` is stored in two dtypes."""
    root = tmp_path_factory.mktemp("nested")
    base = numbers(0)
    models = {name: numbers(i, base) for i, name in enumerate("abc", start=1)}
    models["part"] = {n: t for n, t in numbers(4, base).items() if "mlp" not in n}
    models["mixed"] = {n: t.bfloat16() if "layers" in n else t for n, t in numbers(5, base).items()}
    for name, tensors in {"base": base, **models}.items():
        (root / name).mkdir()
        save_file(tensors, root / name / "model.safetensors", metadata={"format": "pt"})
    return root


def merged(recipe: dict[str, Any], out: Path) -> Tensors:
    shutil.rmtree(out, ignore_errors=True)
    weightsmith.merge({"weightsmith": 1, **recipe}, out, threads=1)
    return {n: t for file in sorted(out.glob("*.safetensors")) for n, t in load_file(file).items()}


GRADIENTS = st.sampled_from([1.0, 0.0, 0.6, [0.0, 1.0], [1.0, 0.0], [0.5, 1.0], [0.3, 0.0, 1.0]])
NAMES = st.sampled_from(["@a", "@b", "@part", "@mixed"])
KEEPS = st.sampled_from(
    [
        None,
        {"match": {"role": "embedding"}, "keep": "@a"},
        {"match": {"role": "norm"}, "merge_method": "linear", "parameters": {"normalize": False}},
        {"match": {"layers": [0, 1]}, "keep": "@base"},
        {"match": {"glob": "*q_proj*"}, "merge_method": "ties", "parameters": {"density": 0.5}},
    ]
)
INNER = ["linear", "task_arithmetic", "ties", "dare_ties", "pcb", "localize_and_stitch", "lines"]
OUTER: list[tuple[str, dict[str, Any]]] = [
    ("ties", {"density": 0.3}),
    ("ties", {"density": 0.3, "zero_sum": "majority", "rescale": "l1"}),
    ("pcb", {}),
    ("pcb", {"between": "raw", "clamp": 0.1, "density": 0.3}),
    ("emr", {"preset": "reference"}),
    ("consensus", {"vector": "ties", "masks": "magnitude"}),
    ("tall_masks", {"vector": "ties"}),
    ("localize_and_stitch", {}),
    ("knots", {}),
    ("doge", {"density": 0.3}),
    ("lines", {}),
    ("layer_importance", {}),
    ("layer_swapping", {"select": "measured"}),
    ("opcm", {}),
]


@st.composite
def recipes(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """An inner recipe, and an outer one in which it is `INNER`."""
    method = draw(st.sampled_from(INNER))
    names = draw(st.lists(NAMES, min_size=2, max_size=2, unique=True))
    inner: dict[str, Any] = {
        "merge_method": method,
        "base_model": "@base",
        "models": [{"model": name} for name in names],
        "missing": "base",
        "semantics": "paper",
        "seed": draw(st.integers(0, 3)),
        # What is written keeps all digits, so that nothing but an inner dtype rounds.
        "dtype": draw(
            st.sampled_from(["float32", "bfloat16"] if method != "linear" else ["float32"])
        ),
    }
    if method != "localize_and_stitch":
        for model in inner["models"]:
            model["parameters"] = {"weight": draw(GRADIENTS)}
    if method == "linear":
        inner["parameters"] = {"normalize": False}
    rule = draw(KEEPS)
    if rule is not None and (rule.get("keep") in (None, "@base", *names)):
        inner["rules"] = [rule]
    if draw(st.booleans()):
        inner["shard_size"] = 2000
    outer_method, parameters = draw(st.sampled_from(OUTER))
    parameters = dict(parameters)
    outer: dict[str, Any] = {
        "merge_method": outer_method,
        "base_model": "@base",
        "models": [{"model": "INNER"}, {"model": "@c"}],
        "parameters": parameters,
        "dtype": "float32",
    }
    if parameters.pop("preset", None) is not None:
        outer["semantics"] = "reference"
    if draw(st.booleans()):
        outer["models"].reverse()
    if draw(st.booleans()):
        outer["rules"] = [
            {"match": {"role": "norm"}, "keep": draw(st.sampled_from(["@c", "@base"]))}
        ]
    if draw(st.booleans()):
        outer["modify"] = [
            {"clip": {"scope": draw(st.sampled_from(["layer", "model"])), "limit": 0.9}}
        ]
    if draw(st.booleans()) and outer_method not in ("tall_masks", "emr"):
        outer["base_model"], outer["models"] = "INNER", [{"model": "@b"}, {"model": "@c"}]
    return inner, outer


def placed(recipe: Any, root: Path, inner: Any) -> Any:
    """The recipe with folders for names, and what stands for the inner recipe."""
    if isinstance(recipe, dict):
        return {key: placed(value, root, inner) for key, value in recipe.items()}
    if isinstance(recipe, list):
        return [placed(value, root, inner) for value in recipe]
    if recipe == "INNER":
        return inner
    is_model = isinstance(recipe, str) and recipe.startswith("@")
    return str(root / recipe[1:]) if is_model else recipe


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pair=recipes())
def test_nested_is_two_steps(pair: tuple[dict[str, Any], dict[str, Any]], family: Path) -> None:
    inner, outer = (placed(recipe, family, "INNER") for recipe in pair)
    merged(inner, family / "step")
    two = merged(placed(outer, family, str(family / "step")), family / "two")
    nested = merged(placed(outer, family, {"weightsmith": 1, **inner}), family / "nested")
    assert nested.keys() == two.keys()
    different = {n: int((nested[n] != two[n]).sum()) for n in two if not nested[n].equal(two[n])}
    assert not different


def both_ways(
    family: Path, inner: dict[str, Any], outer: dict[str, Any]
) -> tuple[Tensors, Tensors]:
    """The outer recipe over the inner one, and over the folder that the inner one gives."""
    merged(placed(inner, family, ""), family / "step")
    nested = placed(outer, family, {"weightsmith": 1, **placed(inner, family, "")})
    return merged(nested, family / "nested"), merged(
        placed(outer, family, str(family / "step")), family / "two"
    )


TIES = {
    "merge_method": "ties",
    "base_model": "@base",
    "models": [{"model": "@a"}, {"model": "@b"}],
    "parameters": {"density": 0.3},
}


@pytest.mark.parametrize(
    "outer",
    [
        # Layer 0 twice and layer 2 not at all: each counts once in the statistics of the inner merge.
        {
            "merge_method": "passthrough",
            "slices": [
                {"sources": [{"model": "INNER", "layer_range": [0, 2]}]},
                {"sources": [{"model": "INNER", "layer_range": [0, 1]}]},
            ],
        },
        # Gradients of the outer merge run over the stack that the inner one made.
        {
            "merge_method": "task_arithmetic",
            "base_model": "@base",
            "models": [{"model": "INNER", "parameters": {"weight": [0.0, 0.5, 1.0]}}],
        },
        # The outer method takes some layers from one model alone.
        {
            "merge_method": "layer_swapping",
            "base_model": "@base",
            "models": [{"model": "@c"}, {"model": "INNER"}],
            "parameters": {"bottom": 1, "rest": "first"},
        },
        {
            "expression": "base + 0.5 * ties(m, c, base=base, density=0.4) - 0.5 * base",
            "checkpoints": {"base": "@base", "m": "INNER", "c": "@c"},
        },
    ],
    ids=["slices", "gradient", "swapped", "expression"],
)
def test_tensors_that_are_moved_used_twice_or_dropped(family: Path, outer: dict[str, Any]) -> None:
    nested, two = both_ways(family, TIES, outer)
    assert nested.keys() == two.keys()
    for name, tensor in two.items():
        assert nested[name].equal(tensor), name


def test_an_inner_recipe_made_of_slices_has_its_layers_by_depth(family: Path) -> None:
    def stacked(first: str, second: str, layers: list[int]) -> dict[str, Any]:
        parts = [{"model": first, "layer_range": [0, 2]}, {"model": second, "layer_range": layers}]
        return {"merge_method": "passthrough", "slices": [{"sources": [part]} for part in parts]}

    other = merged(placed(stacked("@c", "@c", [1, 3]), family, ""), family / "other")
    assert len(other) == len(shapes()) + 3
    outer = {
        "merge_method": "linear",
        "models": [
            {"model": "INNER", "parameters": {"weight": [0.0, 1.0]}},
            {"model": str(family / "other"), "parameters": {"weight": 1.0}},
        ],
    }
    nested, two = both_ways(family, stacked("@a", "@b", [1, 3]), outer)
    for name, tensor in two.items():
        assert nested[name].equal(tensor), name


def test_tied_tensors_of_an_inner_recipe_count_once(tmp_path: Path) -> None:
    """Counted twice, their magnitudes would raise the threshold of all other tensors."""
    base = {n: t for n, t in numbers(0).items() if "layers" not in n}
    for i, name in enumerate(("base", "a", "b")):
        drawn = base if name == "base" else {n: t for n, t in numbers(i).items() if n in base}
        shared = drawn["model.embed_tokens.weight"]
        (tmp_path / name).mkdir()
        states = {**drawn, "encoder": shared, "decoder": shared}
        torch.save(states, tmp_path / name / "pytorch_model.bin")
        (tmp_path / name / "config.json").write_text('{"model_type": "t5"}')
    alone = merged(placed(TIES, tmp_path, ""), tmp_path / "alone")
    inside = {"weightsmith": 1, **placed(TIES, tmp_path, "")}
    wrapped = {"merge_method": "linear", "models": [{"model": inside}]}
    found = merged({**wrapped, "parameters": {"weight": 1.0}}, tmp_path / "wrapped")
    for name, tensor in alone.items():
        assert found[name].equal(tensor), name


def test_a_seed_of_an_inner_recipe_is_its_own(family: Path) -> None:
    inner = {**TIES, "merge_method": "dare_ties", "seed": 5}
    outer = {"merge_method": "linear", "models": [{"model": "INNER"}, {"model": "@c"}], "seed": 6}
    outer["parameters"] = {"weight": 1.0}
    nested, two = both_ways(family, inner, outer)
    for name, tensor in two.items():
        assert nested[name].equal(tensor), name
    other, _ = both_ways(family, {**inner, "seed": 6}, outer)
    assert any(not other[name].equal(tensor) for name, tensor in nested.items())


def test_the_plan_counts_what_is_read_for_statistics_alone(family: Path) -> None:
    outer = {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": "INNER", "layer_range": [0, 1]}]}],
    }
    recipe = placed(outer, family, {"weightsmith": 1, **placed(TIES, family, "")})
    plan = weightsmith.plan({"weightsmith": 1, **recipe})
    names = {t.output.name for t in plan.measured}
    assert names == {f"{n} of merge" for n in shapes() if "layers.1" in n or "layers.2" in n}
    layer = sum(4 * torch.Size(s).numel() for n, s in shapes().items() if "layers.0" in n)
    rest = sum(4 * torch.Size(s).numel() for n, s in shapes().items() if "layers" not in n)
    assert plan.read_bytes == 3 * (2 * (layer + rest) + 2 * layer)
