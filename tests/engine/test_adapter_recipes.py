"""A recipe of adapters alone gives an adapter: sums stay factored, anything else is computed dense and cut."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import weightsmith
from weightsmith.checkpoints import open_checkpoint
from weightsmith.engine.adapter_api import combine_adapters
from weightsmith.engine.records.rollback import roll_back
from weightsmith.errors import (
    CheckpointError,
    CompatibilityError,
    OutputError,
    RecipeError,
    VerificationError,
)
from weightsmith.findings import Severity
from weightsmith.packages.packing import pack

from ..adapters.peft_family import llama, lora, merged  # noqa: TID252 - two rooms share it
from .interrupted import Recorder, Stop, merge_in_process

pytest.importorskip("peft")

Changes = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` with adapters `a` and `b` of rank 4, and `c` of rank 2 on other modules too."""
    root = tmp_path_factory.mktemp("family")
    base = llama(root)
    lora(base, "a", 1)
    lora(base, "b", 2, use_rslora=True)
    lora(base, "c", 3, r=2, target_modules=["q_proj", "up_proj"])
    return root


@pytest.fixture
def family(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(built, tmp_path / "family"))


def recipe(family: Path, method: str, names: str = "ab", **more: Any) -> dict[str, Any]:
    weights = more.pop("weights", None)
    models: list[dict[str, Any]] = [{"model": str(family / name)} for name in names]
    for model, weight in zip(models, weights or (), strict=False):
        model["parameters"] = {"weight": weight}
    return {"weightsmith": 1, "merge_method": method, "models": models, **more}


def changes(adapter: Path) -> Changes:
    """s B A of every tensor in float64, from peft's files and its own rules for s."""
    factors = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    found = {}
    for name, a in factors.items():
        if ".lora_A." not in name:
            continue
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        rank = a.shape[0]
        alpha = _pattern(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        b = factors[name.replace("lora_A", "lora_B")]
        found[f"{module}.weight"] = scale * (b.double() @ a.double())
    return found


def _pattern(pattern: dict[str, float], module: str, default: float) -> float:
    import re

    return next((v for k, v in pattern.items() if re.match(rf"(.*\.)?({k})$", module)), default)


def ranks(adapter: Path) -> set[int]:
    factors = load_file(adapter / "adapter_model.safetensors")
    return {tensor.shape[0] for name, tensor in factors.items() if "lora_A" in name}


def close(found: Changes, expected: Changes, tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        difference = torch.linalg.norm(found[name] - tensor) / torch.linalg.norm(tensor)
        assert difference < tolerance, name


def stored(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.glob("*.safetensors")))


def test_a_sum_stays_factored_and_is_exact(family: Path) -> None:
    made = recipe(family, "task_arithmetic", "abc", weights=(0.5, -0.25, 2.0))
    manifest = weightsmith.merge(made, family / "out")
    parts = [changes(family / name) for name in "abc"]
    expected: Changes = {}
    for weight, part in zip((0.5, -0.25, 2.0), parts, strict=True):
        for name, change in part.items():
            expected[name] = expected.get(name, 0.0) + weight * change
    close(changes(family / "out"), expected)
    assert ranks(family / "out") == {2, 8, 10}
    assert manifest.lost == {}


def test_a_linear_merge_normalises_as_it_does_for_models(family: Path) -> None:
    weightsmith.merge(recipe(family, "linear", weights=(1, 3)), family / "out")
    a, b = changes(family / "a"), changes(family / "b")
    close(changes(family / "out"), {name: a[name] / 4 + b[name] * 3 / 4 for name in a})


def test_an_expression_of_adapters_is_a_sum_too(family: Path) -> None:
    made = {
        "weightsmith": 1,
        "expression": "1.5 * a - 0.5 * b",
        "checkpoints": {"a": str(family / "a"), "b": str(family / "b")},
    }
    weightsmith.merge(made, family / "out")
    a, b = changes(family / "a"), changes(family / "b")
    close(changes(family / "out"), {name: 1.5 * a[name] - b[name] / 2 for name in a})
    assert ranks(family / "out") == {8}


def test_peft_loads_the_result_as_the_merge_of_models(family: Path) -> None:
    weightsmith.merge(recipe(family, "task_arithmetic", weights=(0.3, 0.6)), family / "out")
    models = recipe(family, "task_arithmetic", weights=(0.3, 0.6), base_model=str(family / "base"))
    for model, name in zip(models["models"], "ab", strict=True):
        model["model"] = f"{family}/base+{family}/{name}"
    weightsmith.merge(models, family / "model")
    expected = load_file(family / "model/model.safetensors")
    found = load_file(merged(family / "base", family / "out", "loaded") / "model.safetensors")
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("ties", {"density": 0.4}),
        ("dare_ties", {"density": 0.5}),
        ("dare_linear", {"density": 0.5}),
        ("della", {"density": 0.5, "epsilon": 0.1}),
        ("breadcrumbs", {"density": 0.6}),
        ("magmax", {}),
        ("sce", {"select_topk": 0.5}),
        ("consensus", {}),
        ("pcb", {}),
    ],
)
def test_a_method_gives_what_it_gives_for_dense_changes(
    family: Path, method: str, parameters: dict[str, Any]
) -> None:
    made = recipe(family, method, parameters=parameters, seed=3, adapter={"energy": 1.0})
    weightsmith.merge(made, family / "out")
    dense = [{k: v.float() for k, v in changes(family / name).items()} for name in "ab"]
    zero = {k: torch.zeros_like(v) for k, v in dense[0].items()}
    expected = weightsmith.merge_state_dicts(
        method, dense, base=zero, parameters=parameters, seed=3, labels=("a", "b")
    )
    close(changes(family / "out"), {k: v.double() for k, v in expected.items()}, 2e-5)


@pytest.mark.parametrize("method", ["knots", "tsv_m", "iso_c", "wudi"])
def test_a_matrix_method_runs_on_changes(family: Path, method: str) -> None:
    weightsmith.merge(recipe(family, method, adapter={"energy": 1.0}), family / "out")
    dense = [{k: v.float() for k, v in changes(family / name).items()} for name in "ab"]
    zero = {k: torch.zeros_like(v) for k, v in dense[0].items()}
    expected = weightsmith.merge_state_dicts(method, dense, base=zero)
    close(changes(family / "out"), {k: v.double() for k, v in expected.items()}, 1e-3)


def test_what_is_cut_is_the_best_of_its_rank_and_is_on_record(family: Path) -> None:
    made = recipe(family, "ties", parameters={"density": 0.5})
    manifest = weightsmith.merge(made, family / "out")
    whole = weightsmith.merge({**made, "adapter": {"energy": 1.0}}, family / "whole")
    assert whole.lost == {}
    assert ranks(family / "out") == {4}
    full = changes(family / "whole")
    assert manifest.lost.keys() == full.keys()
    for name, found in changes(family / "out").items():
        values = np.linalg.svd(full[name].numpy(), compute_uv=False)
        share = np.sqrt((values[4:] ** 2).sum() / (values**2).sum())
        assert manifest.lost[name] == pytest.approx(share, rel=1e-4)
        error = torch.linalg.norm(found - full[name]) / torch.linalg.norm(full[name])
        assert float(error) == pytest.approx(share, rel=1e-3)


@pytest.mark.parametrize(
    ("form", "expected"),
    [({"rank": 3}, {3}), ({"rank": 6, "energy": 0.2}, {1, 2}), ({"error": 0.999}, {1})],
)
def test_a_sum_is_cut_where_that_is_asked_for(
    family: Path, form: dict[str, Any], expected: set[int]
) -> None:
    made = recipe(family, "linear", adapter=form)
    manifest = weightsmith.merge(made, family / "out")
    assert ranks(family / "out") <= expected
    assert all(0 < share < 1 for share in manifest.lost.values())


def test_it_is_verified_replayed_and_moved(family: Path, tmp_path: Path) -> None:
    made = recipe(family, "dare_ties", parameters={"density": 0.5}, seed=5)
    first = weightsmith.merge(made, family / "out")
    expected = stored(family / "out")
    assert weightsmith.verify(family / "out", recompute=100).ok
    second = weightsmith.replay(family / "out", family / "again", threads=3)
    assert stored(family / "again") == expected
    assert first.inputs == second.inputs
    moved = tmp_path / "moved"
    family.rename(moved)
    assert weightsmith.verify(moved / "out", recompute=3).ok
    weightsmith.replay(moved / "out", moved / "third")
    assert stored(moved / "third") == expected
    (moved / "a").rename(moved / "renamed")
    weightsmith.replay(moved / "out", moved / "fourth", inputs={f"{family}/a": moved / "renamed"})
    assert stored(moved / "fourth") == expected


def test_a_changed_input_or_output_is_found_out(family: Path) -> None:
    weightsmith.merge(recipe(family, "linear"), family / "out")
    file = family / "out/adapter_model.safetensors"
    tensors = load_file(file)
    first = next(iter(tensors))
    tensors[first][0, 0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    found = weightsmith.verify(family / "out")
    assert any(first in problem for problem in found.problems)
    config = json.loads((family / "a/adapter_config.json").read_text())
    config["lora_alpha"] = 1
    (family / "a/adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(VerificationError, match="differs from the record"):
        weightsmith.replay(family / "out", family / "again")
    assert not (family / "again").exists()


def test_a_stopped_run_leaves_nothing_half_done(family: Path) -> None:
    made = recipe(family, "ties", parameters={"density": 0.5})
    weightsmith.merge(made, family / "expected")
    for at in (1, "writing the manifest"):
        with pytest.raises(Stop):
            weightsmith.merge(made, family / "out", threads=1, progress=Recorder(stop_at=at))
        assert not (family / "out").exists()
    weightsmith.merge(made, family / "out", threads=1)
    assert stored(family / "out") == stored(family / "expected")
    with pytest.raises(OutputError, match="exists"):
        weightsmith.merge(made, family / "out")
    weightsmith.merge(made, family / "out", force=True)


def test_no_output_takes_the_place_of_what_is_behind_the_adapters_base(family: Path) -> None:
    """The base is a package of a fine-tune, coded against another checkpoint."""
    tuned = {n: t + 0.01 for n, t in load_file(family / "base/model.safetensors").items()}
    shutil.copytree(family / "base", family / "tuned")
    save_file(tuned, family / "tuned/model.safetensors", metadata={"format": "pt"})
    pack(family / "tuned", family / "base", family / "package")
    made = recipe(family, "linear", base_model=str(family / "package"))
    for place in ("base", "base/inside", "package"):
        with pytest.raises(OutputError, match="input"):
            weightsmith.merge(made, family / place, force=True)
    weightsmith.merge(made, family / "out")


def test_factors_are_what_a_plan_of_adapters_reads(family: Path) -> None:
    """A sum reads each factor once; the zeros that stand for a base take nothing."""
    planned = weightsmith.plan(recipe(family, "linear"))
    stored = [load_file(family / name / "adapter_model.safetensors") for name in "ab"]
    assert planned.read_bytes == sum(t.nbytes for file in stored for t in file.values())


def test_the_bytes_are_the_same_for_all_threads_and_backends(family: Path) -> None:
    made = recipe(family, "ties", parameters={"density": 0.5})
    weightsmith.merge(made, family / "out", threads=1)
    weightsmith.merge(made, family / "threads", threads=4)
    weightsmith.merge(made, family / "torch", backend="torch")
    assert stored(family / "threads") == stored(family / "out") == stored(family / "torch")


def test_the_plan_says_what_stays_factored(family: Path) -> None:
    plan = weightsmith.plan(recipe(family, "linear"))
    assert not plan.errors
    assert any("added as factors, exactly" in f.message for f in plan.findings)
    weightsmith.merge(recipe(family, "linear"), family / "out")
    tensors = load_file(family / "out/adapter_model.safetensors").values()
    assert plan.write_bytes == sum(4 * tensor.numel() for tensor in tensors)
    dense = weightsmith.plan(recipe(family, "ties", parameters={"density": 0.5}))
    assert any("computed dense" in f.message for f in dense.findings)
    assert all(f.severity is Severity.NOTE for f in dense.findings)


def test_factors_are_stored_in_the_dtype_that_is_asked_for(family: Path) -> None:
    weightsmith.merge(recipe(family, "linear", dtype="bfloat16"), family / "out")
    tensors = load_file(family / "out/adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    a, b = changes(family / "a"), changes(family / "b")
    close(changes(family / "out"), {name: (a[name] + b[name]) / 2 for name in a}, 1e-2)


def test_whole_modules_are_combined_as_changes_of_the_base(family: Path) -> None:
    base = family / "base"
    lora(base, "d", 4, modules_to_save=["lm_head"])
    made = recipe(family, "task_arithmetic", "ad", weights=(1, 0.5))
    with pytest.raises(CompatibilityError, match=r"name the base of the adapters \(`base_model`"):
        weightsmith.merge(made, family / "out")
    weightsmith.merge({**made, "base_model": str(base)}, family / "out")
    own = load_file(family / "d/adapter_model.safetensors")["base_model.model.lm_head.weight"]
    before = load_file(base / "model.safetensors")["lm_head.weight"]
    found = load_file(family / "out/adapter_model.safetensors")["base_model.model.lm_head.weight"]
    torch.testing.assert_close(found, (before + own) / 2, rtol=0, atol=1e-6)
    assert weightsmith.verify(family / "out", recompute=100).ok


def test_dialects_are_joined_by_their_base(family: Path) -> None:
    from weightsmith.lora.converting import convert

    base = family / "base"
    convert(family / "b", family / "b.safetensors", "kohya", base=open_checkpoint(base))
    made = recipe(family, "linear")
    made["models"][1]["model"] = str(family / "b.safetensors")
    with pytest.raises(CompatibilityError, match="names without dots"):
        weightsmith.merge(made, family / "out")
    weightsmith.merge({**made, "base_model": str(base)}, family / "out")
    a, b = changes(family / "a"), changes(family / "b")
    close(changes(family / "out"), {name: (a[name] + b[name]) / 2 for name in a})
    kohya = {**made, "base_model": str(base), "adapter": {"dialect": "kohya"}}
    weightsmith.merge(kohya, family / "flat")
    assert weightsmith.verify(family / "flat", recompute=100).ok
    weightsmith.merge(
        recipe(family, "linear", names=["flat"], base_model=str(base)), family / "back"
    )


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"models": [{"model": "a"}, {"model": "base"}]}, CheckpointError, "BASE+"),
        ({"tokenizer": {"source": "base"}}, RecipeError, "leave it out"),
        ({"assert": [{"norm_ratio": {"low": 0.5}}]}, RecipeError, "`finite` only"),
        ({"models": [{"model": "a"}, {"model": "x"}]}, CompatibilityError, "of different bases"),
        ({"merge_method": "slerp", "parameters": {"t": 0.5}}, RecipeError, "slerp"),
    ],
)
def test_what_means_nothing_is_refused(
    family: Path, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    lora(llama(family, "small", hidden_size=16), "x", 1)
    made = {**recipe(family, "linear"), **change}
    models = [{"model": str(family / Path(m["model"]).name)} for m in made["models"]]
    with pytest.raises(error) as caught:
        weightsmith.merge({**made, "models": models}, family / "out")
    assert words in str(caught.value)
    assert not (family / "out").exists()


def test_the_key_adapter_belongs_to_recipes_of_adapters(family: Path) -> None:
    made = recipe(family, "linear", names=["base"], adapter={"rank": 2})
    with pytest.raises(RecipeError, match="name adapters alone"):
        weightsmith.plan(made)


def test_an_adapter_may_be_the_base_of_others(family: Path) -> None:
    made = recipe(family, "task_arithmetic", "b", weights=(0.5,), base_model=str(family / "a"))
    weightsmith.merge(made, family / "out")
    a, b = changes(family / "a"), changes(family / "b")
    close(changes(family / "out"), {name: (a[name] + b[name]) / 2 for name in a})


def test_combine_is_the_recipe(family: Path) -> None:
    made = combine_adapters(
        [family / "a", family / "b"],
        family / "out",
        method="ties",
        weights=(0.5, 0.5),
        parameters={"density": 0.5},
        rank=5,
    )
    assert ranks(family / "out") == {5}
    same = recipe(
        family, "ties", weights=(0.5, 0.5), parameters={"density": 0.5}, adapter={"rank": 5}
    )
    assert made.manifest is not None
    assert weightsmith.merge(same, family / "recipe").outputs == made.manifest.outputs


def test_the_result_is_an_adapter_of_a_base(family: Path) -> None:
    weightsmith.merge(recipe(family, "linear"), family / "out")
    made = {
        "weightsmith": 1,
        "merge_method": "passthrough",
        "models": [{"model": f"{family}/base+{family}/out"}],
    }
    weightsmith.merge(made, family / "model")
    found, before = (load_file(family / n / "model.safetensors") for n in ("model", "base"))
    a, b = changes(family / "a"), changes(family / "b")
    for name, change in a.items():
        exact = before[name].double() + (change + b[name]) / 2
        torch.testing.assert_close(found[name], exact.float(), rtol=0, atol=1e-5)


def test_a_killed_run_starts_afresh(family: Path) -> None:
    made = recipe(family, "ties", parameters={"density": 0.5})
    killed = merge_in_process(made, family / "out", kill_at="writing the manifest", threads=1)
    assert killed.returncode == -signal.SIGKILL
    assert not (family / "out").exists()
    weightsmith.merge(made, family / "out")
    weightsmith.merge(made, family / "expected")
    assert stored(family / "out") == stored(family / "expected")
    assert not (family / "out.partial").exists()


def test_a_contributor_of_an_adapter_is_taken_out_again(family: Path) -> None:
    weightsmith.merge(recipe(family, "ties", "abc", parameters={"density": 0.5}), family / "out")
    roll_back(family / "out", family / "without", str(family / "b"))
    weightsmith.merge(recipe(family, "ties", "ac", parameters={"density": 0.5}), family / "fresh")
    assert stored(family / "without") == stored(family / "fresh")
    (family / "c").rename(family / "gone")
    with pytest.raises(RecipeError, match="roll back by replay"):
        roll_back(family / "out", family / "again", str(family / "b"))
