"""The seam report measured against numpy, and depth up-scaling as transformers loads it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import weightsmith
from weightsmith.checkpoints import open_checkpoint
from weightsmith.cli.main import execute
from weightsmith.engine.planning.plan_making import make_plan
from weightsmith.inspection.layer_boundaries import boundaries_of_checkpoint, boundaries_of_plan
from weightsmith.recipes import Recipe

LAYERS, KEPT = 6, 4
NORMS = ("input_layernorm", "post_attention_layernorm")
WRITES = ("self_attn.o_proj", "mlp.down_proj")
READS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")


@pytest.fixture
def model(tmp_path):
    """A checkpoint of six layers with weights that grow with depth, and the recipe that up-scales it."""
    rng = np.random.default_rng(0)
    tensors = {
        "model.embed_tokens.weight": rng.normal(size=(16, 8)),
        "model.norm.weight": rng.normal(size=8),
        "lm_head.weight": rng.normal(size=(16, 8)),
    }
    for i in range(LAYERS):
        for part in NORMS:
            tensors[f"model.layers.{i}.{part}.weight"] = (i + 1) * rng.normal(size=8)
        for part in (*READS, *WRITES):
            shape = (8, 12) if "down" in part else (12, 8) if "mlp" in part else (8, 8)
            tensors[f"model.layers.{i}.{part}.weight"] = (i + 1) * rng.normal(size=shape)
    folder = tmp_path / "base"
    folder.mkdir()
    save_file({n: t.astype(np.float32) for n, t in tensors.items()}, folder / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": LAYERS,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_attention_heads": 2,
        "vocab_size": 16,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    recipe = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": str(folder), "layer_range": [0, KEPT]}]},
            {"sources": [{"model": str(folder), "layer_range": [LAYERS - KEPT, LAYERS]}]},
        ],
        "dtype": "float32",
    }
    (tmp_path / "upscale.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def stacked(tensors, layer, parts):
    return np.concatenate(
        [tensors[f"model.layers.{layer}.{p}.weight"].astype(np.float64).ravel() for p in parts]
    )


def relative(tensors, layer, other, parts):
    x, y = stacked(tensors, layer, parts), stacked(tensors, other, parts)
    return np.linalg.norm(x - y) / np.linalg.norm(y)


def test_a_recipes_seam_is_compared_with_what_used_to_be_there(model):
    report = boundaries_of_plan(make_plan(Recipe.load(model / "upscale.yaml")))
    (found,) = report.boundaries
    tensors = load_file(model / "base" / "model.safetensors")
    assert (found.boundary.after, found.boundary.left.layer, found.boundary.right.layer) == (
        3,
        3,
        2,
    )
    for change, layer, other in ((found.successor, 2, 4), (found.predecessor, 3, 1)):
        assert change.compared_with.layer == other
        assert change.norms == pytest.approx(relative(tensors, layer, other, NORMS), rel=1e-6)
        assert change.reads == pytest.approx(relative(tensors, layer, other, READS), rel=1e-6)
        assert change.writes == pytest.approx(relative(tensors, layer, other, WRITES), rel=1e-6)
        norms = [np.linalg.norm(stacked(tensors, i, WRITES)) for i in (layer, other)]
        assert change.write_ratio == pytest.approx(norms[0] / norms[1], rel=1e-6)
    squares = [float((stacked(tensors, i, WRITES) ** 2).sum()) for i in range(LAYERS)]
    assert found.written == pytest.approx(math.sqrt(sum(squares[:4]) / sum(squares[:2])), rel=1e-9)
    assert [o.layer for o in report.origins["model.layers"]] == [0, 1, 2, 3, 2, 3, 4, 5]
    assert [o.layer for o in report.repeated["model.layers"]] == [2, 3]


def test_the_finished_checkpoint_shows_where_copies_begin(model):
    weightsmith.merge(model / "upscale.yaml", model / "out")
    report = boundaries_of_checkpoint(open_checkpoint(str(model / "out")))
    (found,) = report.boundaries
    assert found.boundary.after == 3
    assert [o.layer for o in report.origins["model.layers"]] == [0, 1, 2, 3, 2, 3, 6, 7]
    # The other copy of layer 3 is layer 5, and is followed by layer 6, which was layer 4 of the source.
    tensors = load_file(model / "base" / "model.safetensors")
    assert found.successor.compared_with.layer == 6
    assert found.successor.writes == pytest.approx(relative(tensors, 2, 4, WRITES), rel=1e-6)
    assert found.predecessor.norms == pytest.approx(relative(tensors, 3, 1, NORMS), rel=1e-6)


def test_a_checkpoint_of_distinct_layers_has_no_seams(model):
    report = boundaries_of_checkpoint(open_checkpoint(str(model / "base")))
    assert report.boundaries == ()
    assert report.repeated["model.layers"] == ()


def test_a_seam_at_the_ends_of_its_sources_has_nothing_to_compare_with(model):
    recipe = yaml.safe_load((model / "upscale.yaml").read_text())
    for part, (start, end) in zip(recipe["slices"], ((0, 6), (0, 6)), strict=True):
        part["sources"][0]["layer_range"] = [start, end]
    report = boundaries_of_plan(make_plan(Recipe.load(recipe)))
    (found,) = report.boundaries
    assert (found.successor, found.predecessor, found.written) == (None, None, None)


def test_the_command_writes_a_table_and_json(model, capsys):
    assert execute(["seams", str(model / "upscale.yaml")]) == 0
    text = capsys.readouterr().out
    assert "model.layers: 8 layers, 2 used more than once" in text
    assert "model.layers.3" in text
    assert execute(["seams", str(model / "upscale.yaml"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["seams"][0]["after"] == 3
    assert content["seams"][0]["successor"]["instead_of"]["layer"] == 4
    assert content["stacks"][0]["repeated"][0]["layer"] == 2
    assert execute(["seams", str(model / "base")]) == 0
    assert "No boundaries" in capsys.readouterr().out


def test_transformers_loads_an_upscaled_model_and_runs_its_layers_in_order(model):
    transformers = pytest.importorskip("transformers")
    import torch

    weightsmith.merge(model / "upscale.yaml", model / "out")
    config = json.loads((model / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 2 * KEPT
    source = transformers.AutoModelForCausalLM.from_pretrained(model / "base")
    loaded, told = transformers.AutoModelForCausalLM.from_pretrained(
        model / "out", output_loading_info=True
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    layers = source.model.layers
    for i, origin in enumerate((0, 1, 2, 3, 2, 3, 4, 5)):
        for name, weight in layers[origin].state_dict().items():
            assert torch.equal(loaded.model.layers[i].state_dict()[name], weight)
    with torch.no_grad():
        logits = loaded(torch.tensor([[1, 5, 2]])).logits
    assert torch.isfinite(logits).all()
