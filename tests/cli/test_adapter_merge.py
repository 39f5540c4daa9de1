"""`weightsmith adapter merge`, and other commands on a base with adapters or on recipes of adapters alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from weightsmith.recipes import Recipe

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj")
SHAPES = {MODULES[0]: (8, 8), MODULES[1]: (12, 8)}


def write_adapter(folder: Path, seed: int, rank: int = 2, alpha: float = 6.0) -> None:
    """A LoRA in PEFT's layout, written by hand."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for module, (rows, columns) in SHAPES.items():
        for side, shape in (("A", (rank, columns)), ("B", (rows, rank))):
            name = f"base_model.model.{module}.lora_{side}.weight"
            tensors[name] = generator.standard_normal(shape).astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(MODULES),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def change(folder: Path, module: str, scale: float = 3.0) -> np.ndarray:
    factors = load_file(folder / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.{module}.lora_{s}.weight"].astype(np.float64) for s in "AB")
    return scale * (b @ a)


@pytest.fixture
def folder(family: Path) -> Path:
    write_adapter(family / "math", 1)
    write_adapter(family / "code", 2)
    return family


@pytest.mark.parametrize(
    ("scales", "factors"),
    [((), (1.0, 1.0)), (("0.5",), (0.5, 0.5)), (("0.5", "-2"), (0.5, -2.0))],
)
def test_a_base_with_adapters_is_written(weightsmith, folder, scales, factors):
    options = [word for scale in scales for word in ("--scale", scale)]
    made = weightsmith("adapter", "merge", "base", "math", "code", "out", *options)
    assert made.code == 0, made.err
    assert made.out.startswith("out")
    before, after = (load_file(folder / name / "model.safetensors") for name in ("base", "out"))
    for name, tensor in before.items():
        module = name.removesuffix(".weight")
        exact = tensor.astype(np.float64)
        if module in MODULES:
            exact = exact + sum(
                f * change(folder / a, module)
                for f, a in zip(factors, ("math", "code"), strict=True)
            )
            np.testing.assert_allclose(after[name], exact, rtol=1e-7, atol=1e-6)
        else:
            assert (after[name] == tensor).all()
    assert weightsmith("verify", "out", "--recompute", "9").code == 0
    assert weightsmith("replay", "out", "again").code == 0


def test_the_recipe_is_printed_and_can_be_merged(weightsmith, folder):
    printed = weightsmith(
        "adapter",
        "merge",
        "base",
        "math",
        "nowhere",
        "--scale",
        "0.5",
        "--dtype",
        "bfloat16",
        "--recipe",
    )
    assert printed.code == 0
    mapping = Recipe.load(printed.out).to_mapping()
    assert mapping["models"] == [{"model": "base+math:0.5"}]
    assert mapping["dtype"] == "bfloat16"
    assert not (folder / "nowhere").exists()


@pytest.mark.usefixtures("folder")
def test_a_strength_behind_an_adapter_and_a_scale_multiply(weightsmith):
    printed = weightsmith(
        "adapter", "merge", "base+code:2", "math:0.5", "nowhere", "--scale", "0.5", "--recipe"
    )
    assert Recipe.load(printed.out).to_mapping()["models"] == [{"model": "base+code:2.0+math:0.25"}]


def test_a_dry_run_shows_the_plan(weightsmith, folder):
    shown = weightsmith("adapter", "merge", "base", "math", "nowhere", "--dry-run")
    assert shown.code == 0
    assert "base+math" in shown.out
    assert not (folder / "nowhere").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            ("base", "math", "out", "--scale", "1", "--scale", "2"),
            2,
            "2 scales do not fit 1 adapter",
        ),
        (("base", "missing", "out"), 4, "No checkpoint is at 'missing'"),
        (("math", "code", "out"), 4, "BASE+"),
        (("base", "one", "out"), 4, "holds no adapter"),
        (("base", "out"), 2, "Missing argument"),
        (("base", "math@1@2", "out"), 2, "PATH@REVISION"),
        (("base", "math", "math"), 4, "also an input"),
    ],
)
def test_mistakes_are_sentences(weightsmith, folder, arguments, code, words):
    made = weightsmith("adapter", "merge", *arguments)
    assert made.code == code
    assert words in " ".join(made.err.split())
    assert not (folder / "out").exists()


@pytest.mark.usefixtures("folder")
def test_inspect_and_diff_take_a_base_with_adapters(weightsmith):
    shown = weightsmith("inspect", "base+math", "--json")
    assert shown.code == 0, shown.err
    assert json.loads(shown.out)["adapters"] == ["math"]
    assert "math" in weightsmith("inspect", "base+math").out
    weightsmith("adapter", "merge", "base", "math", "out")
    same = weightsmith("diff", "base+math", "out", "--json")
    assert same.code == 0, same.err
    assert weightsmith("inspect", "math").code == 1


@pytest.mark.usefixtures("folder")
def test_a_recipe_of_adapters_tells_what_was_cut(weightsmith):
    Path("ties.yaml").write_text(
        "weightsmith: 1\nmerge_method: ties\nmodels: [{model: math}, {model: code}]\n"
        "parameters: {density: 0.5}\nadapter: {rank: 1}\n"
    )
    shown = weightsmith("plan", "ties.yaml")
    assert shown.code == 0, shown.err
    assert "computed dense and cut" in " ".join(shown.out.split())
    assert "no change" not in shown.out
    made = weightsmith("merge", "ties.yaml", "out", "--report", "report.html")
    assert made.code == 0, made.err
    assert made.err.count("of the norm of its change was cut") == len(MODULES)
    assert Path("report.html").is_file()
    assert set(load_file("out/adapter_model.safetensors")) == {
        f"base_model.model.{module}.lora_{side}.weight" for module in MODULES for side in "AB"
    }
    assert weightsmith("verify", "out", "--recompute", "9").code == 0
    assert weightsmith("merge", "ties.yaml", "out").code == 4
    assert weightsmith("merge", "ties.yaml", "out", "--force", "--quiet").err == ""
