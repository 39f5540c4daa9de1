"""`weightsmith adapter`: extract, combine, convert, resize, inspect, basis, and what they say of wrong input."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from weightsmith.cli.main import execute

Q = "model.layers.0.self_attn.q_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"
TABLE = "model.embed_tokens.weight"
SHAPES = {TABLE: (40, 12), Q: (12, 12), UP: (20, 12), NORM: (12,), "lm_head.weight": (40, 12)}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 1,
    "tie_word_embeddings": False,
}


def save(folder, tensors):
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))


def low_rank(rng, shape, rank):
    return (rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1]))).astype(
        np.float32
    )


@pytest.fixture
def family(tmp_path, monkeypatch):
    """A base, two fine-tunes of rank 3 and 2 at two matrices, and `full`, which differs everywhere."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    base = {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
    save(tmp_path / "base", base)
    for name, rank in (("math", 3), ("code", 2)):
        changes = {n: low_rank(rng, SHAPES[n], rank) for n in (Q, UP)}
        save(tmp_path / name, {n: t + changes.get(n, np.float32(0)) for n, t in base.items()})
    full = {n: t + rng.normal(size=t.shape).astype(np.float32) for n, t in base.items()}
    save(tmp_path / "full", full)
    return tmp_path


@pytest.fixture
def adapters(family):
    for name in ("math", "code"):
        extract = ["adapter", "extract", name, "base", f"{name}-lora", "--energy", "0.999999"]
        assert execute([*extract, "--quiet"]) == 0
    return family


def run(capsys, *arguments):
    capsys.readouterr()
    assert execute(["adapter", *arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def run_json(capsys, *arguments):
    return json.loads(run(capsys, *arguments, "--json", "--quiet"))


def refused(capsys, *arguments):
    capsys.readouterr()
    assert execute(["adapter", *arguments]) != 0
    error = capsys.readouterr().err
    # One line, behind whatever progress there was.
    last = error.strip().splitlines()[-1]
    assert last.startswith("weightsmith: error: ")
    return last


def change(folder):
    """The change of a PEFT adapter by tensor, from its files alone."""
    config = json.loads((folder / "adapter_config.json").read_text())
    stored = load_file(folder / "adapter_model.safetensors")
    found = {}
    for key, a in stored.items():
        if not key.endswith(".lora_A.weight"):
            continue
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        rank = config["rank_pattern"].get("^" + module.replace(".", "\\."), config["r"])
        alpha = config["alpha_pattern"].get("^" + module.replace(".", "\\."), config["lora_alpha"])
        b = stored[key.replace("lora_A", "lora_B")].astype(np.float64)
        found[f"{module}.weight"] = alpha / rank * (b @ a)
    return found


def delta(family, name):
    base, tuned = (load_file(family / n / "model.safetensors") for n in ("base", name))
    return {n: tuned[n].astype(np.float64) - base[n] for n in base}


def test_extract_shows_layers_totals_and_what_is_left_out(family, capsys):
    out = run(
        capsys, "extract", "full", "base", "lora", "--rank", "4", "--norms", "skip", "--quiet"
    )
    assert "model.layers.0" in out
    assert "left out model.norm.weight" in out
    assert "lost " in out
    shown = run_json(capsys, "extract", "full", "base", "lora2", "--rank", "4", "--norms", "skip")
    rows = {row["tensor"]: row for row in shown["tensors"]}
    values = np.linalg.svd(delta(family, "full")[UP], compute_uv=False)
    assert rows[UP]["error"] == pytest.approx(np.sqrt(np.square(values[4:]).sum()), rel=1e-6)
    assert rows[TABLE]["treatment"] == "replaced"
    assert rows[NORM]["why"]
    assert [f["code"] for f in shown["findings"]] == ["left-out"]
    assert shown["error"] == pytest.approx(np.sqrt(sum(r["error"] ** 2 for r in rows.values())))
    each = run(capsys, "extract", "full", "base", "lora", "--rank", "2", "--tensors", "--force")
    assert UP in each


def test_an_extracted_adapter_is_a_model_with_its_base(adapters, capsys):
    run(capsys, "merge", "base", "math-lora", "merged", "--quiet")
    merged = load_file(adapters / "merged/model.safetensors")
    for name, tensor in load_file(adapters / "math/model.safetensors").items():
        np.testing.assert_allclose(merged[name], tensor, atol=1e-5)


@pytest.mark.parametrize("budget", ["3KB", "1/3"])
def test_a_budget_is_kept(family, capsys, budget):
    asked = ("extract", "full", "base", "lora", "--budget", budget)
    shown = run_json(capsys, *asked, "--embeddings", "lora")
    stored = load_file(family / "lora/adapter_model.safetensors")
    written = sum(tensor.nbytes for tensor in stored.values())
    dense = sum(4 * int(np.prod(s)) for s in SHAPES.values())
    assert written == shown["bytes"] <= (3000 if budget == "3KB" else dense / 3)
    assert written > 0.8 * (3000 if budget == "3KB" else dense / 3)


def test_combine_sums_the_changes_of_adapters_of_different_ranks(adapters, capsys):
    asked = ["--method", "task_arithmetic", "--weights", "0.7,-0.3"]
    shown = run_json(capsys, "combine", "math-lora", "code-lora", "--out", "sum", *asked)
    found, math, code = change(adapters / "sum"), delta(adapters, "math"), delta(adapters, "code")
    for name in (Q, UP):
        np.testing.assert_allclose(found[name], 0.7 * math[name] - 0.3 * code[name], atol=1e-5)
    assert {t["rank"] for t in shown["tensors"]} == {5}
    assert shown["largest_loss"] == 0.0
    assert execute(["verify", "sum", "--recompute", "2"]) == 0


def test_combine_by_a_nonlinear_method_is_that_method_on_the_models(adapters, capsys):
    asked = [
        "--method",
        "ties",
        "--parameter",
        "density=0.4",
        "--parameter",
        "trim_scope=tensor",
        "--rank",
        "12",
    ]
    run(capsys, "combine", "math-lora", "code-lora", "--out", "both", *asked, "--quiet")
    recipe = {
        "weightsmith": 1,
        "merge_method": "ties",
        "base_model": "base",
        "models": [{"model": "base+math-lora"}, {"model": "base+code-lora"}],
        "parameters": {"density": 0.4, "trim_scope": "tensor"},
    }
    (adapters / "ties.yaml").write_text(json.dumps(recipe))
    assert execute(["merge", "ties.yaml", "merged", "--quiet"]) == 0
    merged = load_file(adapters / "merged/model.safetensors")
    base = load_file(adapters / "base/model.safetensors")
    for name, found in change(adapters / "both").items():
        np.testing.assert_allclose(found, merged[name] - base[name], atol=1e-5)


@pytest.mark.parametrize(
    "asked",
    [
        ["--method", "cat"],
        ["--method", "svd", "--rank", "2"],
        ["--method", "lego", "--rank", "2"],
        ["--method", "magnitude_prune", "--parameter", "density=0.5", "--rank", "2"],
        ["--method", "knots"],
        ["--method", "core_space", "--parameter", "density=0.5"],
        ["--method", "ties", "--space", "knots"],
        ["--method", "metrics_weighted", "--parameter", "metric=[1.0, 2.0]"],
    ],
)
def test_combine_knows_the_methods_for_adapters(adapters, capsys, asked):
    shown = run_json(capsys, "combine", "math-lora", "code-lora", "--out", "both", *asked)
    assert {t["tensor"] for t in shown["tensors"]} == {Q, UP}
    ranks = {t["rank"] for t in shown["tensors"]}
    assert ranks == {2} if "--rank" in asked else max(ranks) <= 5
    assert all(np.isfinite(found).all() for found in change(adapters / "both").values())


def test_combine_writes_the_dialect_of_the_first_adapter_unless_asked(adapters, capsys):
    run(capsys, "convert", "math-lora", "math.safetensors", "--to", "kohya")
    run(capsys, "convert", "code-lora", "code.safetensors", "--to", "kohya")
    asked = ["combine", "math.safetensors", "code.safetensors", "--base", "base"]
    run(capsys, *asked, "--out", "both.safetensors", "--quiet")
    assert any(name.endswith(".alpha") for name in load_file(adapters / "both.safetensors"))
    run(capsys, *asked, "--out", "both", "--to", "peft", "--quiet")
    math, code = delta(adapters, "math"), delta(adapters, "code")
    for name, found in change(adapters / "both").items():
        np.testing.assert_allclose(found, (math[name] + code[name]) / 2, atol=1e-5)


def test_resize_keeps_the_leading_directions(adapters, capsys):
    shown = run_json(capsys, "resize", "math-lora", "small", "--rank", "1")
    found = change(adapters / "small")
    for row in shown["tensors"]:
        dense = delta(adapters, "math")[row["tensor"]]
        values = np.linalg.svd(dense, compute_uv=False)
        expected = np.sqrt(np.square(values[1:]).sum())
        assert np.linalg.norm(dense - found[row["tensor"]]) == pytest.approx(expected, rel=1e-5)
        assert row["lost"] == pytest.approx(expected / np.linalg.norm(values), rel=1e-5)
        assert row["rank"] == 1


def test_resize_to_the_rank_that_is_there_takes_no_more_and_loses_nothing(adapters, capsys):
    # A peer counts one direction too many.
    for asked in (["--rank", "7"], ["--energy", "0.9999999"], ["--error", "0.001"]):
        shown = run_json(capsys, "resize", "code-lora", "same", *asked, "--force")
        assert {t["rank"] for t in shown["tensors"]} == {2}
    np.testing.assert_allclose(
        change(adapters / "same")[UP], delta(adapters, "code")[UP], atol=1e-5
    )


@pytest.mark.usefixtures("family")
def test_what_a_component_loses_is_told_under_its_name(capsys):
    rng = np.random.default_rng(0)
    tensors = {}
    for prefix in ("unet", "text_encoder"):
        tensors[f"{prefix}.block.to_q.lora_A.weight"] = rng.normal(size=(2, 4)).astype(np.float32)
        tensors[f"{prefix}.block.to_q.lora_B.weight"] = rng.normal(size=(3, 2)).astype(np.float32)
    save_file(tensors, "pipeline.safetensors")
    arguments = ("resize", "pipeline.safetensors", "small.safetensors", "--rank", "1")
    shown = run_json(capsys, *arguments)
    lost = {tensor["component"]: tensor["lost"] for tensor in shown["tensors"]}
    for component, share in lost.items():
        up = tensors[f"{component}.block.to_q.lora_B.weight"].astype(np.float64)
        values = np.linalg.svd(
            up @ tensors[f"{component}.block.to_q.lora_A.weight"], compute_uv=False
        )
        assert share == pytest.approx(values[1] / np.linalg.norm(values), rel=1e-5)
    assert sorted(lost) == ["text_encoder", "unet"]
    text = run(capsys, *arguments, "--force", "--quiet")
    assert "text_encoder.block.to_q" in text
    assert " 0 %" not in text


@pytest.mark.parametrize("out", ["both.safetensors", "both"])
def test_what_is_lost_is_told_of_flat_names_too(adapters, capsys, out):
    """Kohya's names are those of no tensor of the base: losses are on record under the base's."""
    for name in ("math", "code"):
        run(capsys, "convert", f"{name}-lora", f"{name}.safetensors", "--to", "kohya")
    asked = ("--base", "base", "--weights", "1,1", "--rank", "1", "--to", "kohya")
    files = ("math.safetensors", "code.safetensors", "--out", out, "--method", "task_arithmetic")
    shown = run_json(capsys, "combine", *files, *asked)
    lost = {tensor["tensor"]: tensor["lost"] for tensor in shown["tensors"]}
    assert set(lost) == {Q, UP}
    for name, share in lost.items():
        whole = delta(adapters, "math")[name] + delta(adapters, "code")[name]
        values = np.linalg.svd(whole, compute_uv=False)
        assert share == pytest.approx(np.linalg.norm(values[1:]) / np.linalg.norm(values), rel=1e-4)
    assert execute(["verify", out, "--recompute", "1"]) == 0
    capsys.readouterr()
    assert execute(["replay", out, f"again-{out}", "--quiet", "--json"]) == 0
    written = adapters / f"again-{out}"
    file = written if written.is_file() else written / "adapter.safetensors"
    assert json.loads(capsys.readouterr().out)["bytes"] == file.stat().st_size


@pytest.mark.usefixtures("adapters")
def test_combining_whole_tensors_without_their_base_names_the_option(capsys):
    run(capsys, "extract", "full", "base", "whole", "--rank", "2", "--embeddings", "replace")
    said = refused(capsys, "combine", "whole", "math-lora", "--out", "x")
    assert "--base" in said


def test_resize_of_a_file_without_its_base_keeps_its_names(adapters, capsys):
    run(capsys, "convert", "math-lora", "math.safetensors", "--to", "kohya", "--dtype", "bfloat16")
    run(capsys, "resize", "math.safetensors", "small.safetensors", "--rank", "2", "--quiet")
    before, after = (load_bf16(adapters / f"{n}.safetensors") for n in ("math", "small"))
    assert set(after) == set(before)
    assert {str(t.dtype) for n, t in after.items() if ".lora_" in n} == {"torch.bfloat16"}


def load_bf16(path):
    from safetensors.torch import load_file as load

    return load(path)


def test_convert_there_and_back_is_the_same_change(adapters, capsys):
    made = json.loads(
        run(capsys, "convert", "math-lora", "m.safetensors", "--to", "kohya", "--json")
    )
    assert made["lost"] == 0.0
    run(capsys, "convert", "m.safetensors", "again", "--to", "peft", "--base", "base")
    before, after = change(adapters / "math-lora"), change(adapters / "again")
    assert set(before) == set(after)
    for name in before:
        np.testing.assert_allclose(before[name], after[name], rtol=1e-6)


@pytest.mark.usefixtures("family")
def test_convert_counts_what_it_writes_whole(capsys):
    run(capsys, "extract", "full", "base", "lora", "--rank", "2", "--quiet")
    shown = run(capsys, "convert", "lora", "k.safetensors", "--to", "kohya", "--base", "base")
    assert "  3 tensors of rank 2 and 2 whole in float32  " in shown


def test_inspect_shows_ranks_sizes_and_directions(adapters, capsys):
    facts = json.loads(run(capsys, "inspect", "math-lora", "--base", "base", "--json"))
    rows = {row["tensor"]: row for row in facts["tensors"]}
    for name in (Q, UP):
        assert rows[name]["directions"] == rows[name]["rank"] == 3
        assert rows[name]["norm"] == pytest.approx(
            np.linalg.norm(delta(adapters, "math")[name]), rel=1e-5
        )
        assert 1.0 <= rows[name]["effective_rank"] <= 3.0
    text = run(capsys, "inspect", "math-lora")
    assert "2 tensors of lora" in text


def test_a_basis_gives_every_adapter_back(adapters, capsys):
    run(capsys, "basis", "create", "math-lora", "code-lora", "both.safetensors")
    shown = json.loads(run(capsys, "basis", "show", "both.safetensors", "--json"))
    assert shown["labels"] == ["math-lora", "code-lora"]
    run(capsys, "basis", "extract", "both.safetensors", "math-lora", "again")
    for name, found in change(adapters / "again").items():
        np.testing.assert_allclose(found, delta(adapters, "math")[name], atol=1e-4)
    run(capsys, "basis", "extract", "both.safetensors", "2", "second")
    assert "prose" in refused(capsys, "basis", "extract", "both.safetensors", "prose", "x")
    assert not (adapters / "x").exists()


def test_mistakes_are_told_in_one_line_and_nothing_is_written(adapters, capsys):
    assert "rank, an energy" in refused(capsys, "extract", "math", "base", "x")
    assert "same weights" in refused(capsys, "extract", "base", "base", "x", "--rank", "2")
    assert "no budget" in refused(capsys, "extract", "math", "base", "x", "--budget", "much")
    assert "--rank" in refused(capsys, "resize", "math-lora", "x")
    assert "'weight'" in refused(
        capsys, "combine", "math-lora", "code-lora", "--out", "x", "--weights", "1"
    )
    assert "0.5,0.5" in refused(capsys, "combine", "math-lora", "--out", "x", "--weights", "a,b")
    assert "exists" in refused(capsys, "extract", "math", "base", "math-lora", "--rank", "2")
    assert "ties" in refused(capsys, "combine", "math-lora", "--out", "x", "--method", "tie")
    for made in (
        ("resize", "math-lora", "x", "--rank", "1"),
        ("combine", "math-lora", "--out", "x"),
    ):
        assert "code-lora' is an adapter" in refused(capsys, *made, "--base", "code-lora")
    wrong = refused(capsys, "extract", "math", "base", "x.safetensors", "--rank", "2")
    assert ".safetensors" in wrong
    (adapters / "notes").mkdir()
    (adapters / "notes" / "diary.txt").write_text("mine")
    again = refused(capsys, "resize", "math-lora", "notes", "--rank", "2", "--force")
    assert "was not written by weightsmith" in again
    assert not (adapters / "x").exists()
    assert not (adapters / "x.safetensors").exists()
    assert not list(adapters.glob("*.partial"))


def test_a_file_is_combined_to_the_same_numbers_as_a_folder_with_a_manifest(adapters, capsys):
    asked = ["combine", "math-lora", "code-lora", "--method", "ties", "--rank", "6", "--quiet"]
    asked += ["--parameter", "density=0.4", "--parameter", "trim_scope=tensor"]
    run(capsys, *asked, "--out", "folder")
    run(capsys, *asked, "--out", "file.safetensors", "--to", "kohya")
    run(capsys, "convert", "file.safetensors", "again", "--to", "peft", "--base", "base")
    folder, again = change(adapters / "folder"), change(adapters / "again")
    assert (adapters / "folder" / "weightsmith-manifest.json").is_file()
    for name in (Q, UP):
        np.testing.assert_allclose(folder[name], again[name], atol=1e-5)


def test_weights_of_a_mean_are_divided_by_their_sum_and_those_of_a_sum_are_not(adapters, capsys):
    run(capsys, "combine", "math-lora", "code-lora", "--out", "mean", "--quiet")
    math, code = delta(adapters, "math"), delta(adapters, "code")
    for name, found in change(adapters / "mean").items():
        np.testing.assert_allclose(found, (math[name] + code[name]) / 2, atol=1e-5)
    run(capsys, "combine", "math-lora", "code-lora", "--out", "1to3", "--weights", "1,3", "--quiet")
    for name, found in change(adapters / "1to3").items():
        np.testing.assert_allclose(found, math[name] / 4 + 3 * code[name] / 4, atol=1e-5)
    asked = ["--method", "task_arithmetic", "--weights", "2,1"]
    run(capsys, "combine", "math-lora", "code-lora", "--out", "more", *asked, "--quiet")
    for name, found in change(adapters / "more").items():
        np.testing.assert_allclose(found, 2 * math[name] + code[name], atol=1e-5)


@pytest.mark.parametrize(
    "command",
    [
        ["convert", "math-lora", "out.safetensors", "--to", "kohya"],
        ["resize", "math-lora", "out", "--rank", "1"],
        ["combine", "math-lora", "code-lora", "--out", "out"],
        ["combine", "math-lora", "code-lora", "--out", "out", "--method", "cat"],
    ],
)
def test_a_module_that_was_trained_and_not_saved_is_noted_by_whatever_is_made(
    adapters, capsys, command
):
    file = adapters / "math-lora" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "modules_to_save": ["lm_head"]}))
    capsys.readouterr()
    assert execute(["adapter", *command]) == 0
    told = capsys.readouterr().err
    assert "note[module-not-saved]: The adapter 'math-lora' names 'lm_head'" in told
    assert "note[factored]" not in told
