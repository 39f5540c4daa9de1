"""Adapters that bring rows or heads that their base lacks: grown vocabularies, and classifiers on language models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import weightsmith
from weightsmith.adapters import open_model
from weightsmith.cli.adapters.adapter_merge import merge_recipe
from weightsmith.errors import CompatibilityError

QUERY = "model.layers.0.self_attn.q_proj"
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROWS, GROWN, SIZE = 6, 8, 4


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    tensors = {
        TABLE: _random(ROWS, SIZE, seed=1),
        f"{QUERY}.weight": _random(SIZE, SIZE, seed=2),
        HEAD: _random(ROWS, SIZE, seed=3),
    }
    save_file({n: t.bfloat16() for n, t in tensors.items()}, folder / "model.safetensors")
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": ROWS,
        "num_hidden_layers": 1,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text('{"of": "base"}')
    return folder


def _adapter(folder: Path, whole: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir()
    down, up = _random(2, SIZE, seed=4), _random(SIZE, 2, seed=5)
    tensors = {f"{QUERY}.lora_A.weight": down, f"{QUERY}.lora_B.weight": up, **whole}
    save_file(
        {f"base_model.model.{n}": t for n, t in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    written = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(written))
    return folder


@pytest.fixture
def grown(tmp_path: Path) -> Path:
    whole = {TABLE: _random(GROWN, SIZE, seed=6), HEAD: _random(GROWN, SIZE, seed=7)}
    return _adapter(tmp_path / "adapter", whole)


def _merged(base: Path, *adapters: str) -> tuple[Path, dict[str, torch.Tensor], dict[str, Any]]:
    out = base.parent / "out"
    weightsmith.merge(merge_recipe(str(base), adapters), out)
    return out, load_file(out / "model.safetensors"), json.loads((out / "config.json").read_text())


def test_a_trained_table_and_head_of_more_rows_replace_the_bases(base, grown):
    out, tensors, config = _merged(base, str(grown))
    stored = load_file(grown / "adapter_model.safetensors")
    for name in (TABLE, HEAD):
        assert torch.equal(tensors[name], stored[f"base_model.model.{name}"].bfloat16())
    assert config["vocab_size"] == GROWN
    before = load_file(base / "model.safetensors")[f"{QUERY}.weight"].double()
    change = _random(SIZE, 2, seed=5).double() @ _random(2, SIZE, seed=4).double()
    assert torch.equal(tensors[f"{QUERY}.weight"], (before + change).float().bfloat16())
    assert weightsmith.verify(out, recompute=3).ok
    weightsmith.replay(out, base.parent / "again")


def test_the_tokenizer_beside_the_adapter_goes_with_its_rows(base, grown):
    assert [f.code for f in open_model(f"{base}+{grown}").findings()] == ["resized-vocabulary"]
    (grown / "tokenizer_config.json").write_text('{"of": "adapter"}')
    (grown / "added_tokens.json").write_text("{}")
    (finding,) = open_model(f"{base}+{grown}").findings()
    assert "taken with it" in finding.message
    out, _, _ = _merged(base, str(grown))
    assert (out / "tokenizer_config.json").read_text() == '{"of": "adapter"}'
    assert (out / "added_tokens.json").is_file()


def test_factors_on_a_grown_table_are_of_its_rows(base, tmp_path):
    """PEFT stores the table without its change beside the factors of one that was resized."""
    below, head = _random(GROWN, SIZE, seed=6), _random(GROWN, SIZE, seed=7)
    down, up = _random(2, GROWN, seed=8), _random(SIZE, 2, seed=9)
    whole = {
        "model.embed_tokens.base_layer.weight": below,
        "model.embed_tokens.lora_embedding_A": down,
        "model.embed_tokens.lora_embedding_B": up,
        HEAD: head,
    }
    adapter = _adapter(tmp_path / "a", whole, target_modules=["q_proj", "embed_tokens"])
    _, tensors, _ = _merged(base, str(adapter))
    wanted = below.double() + (up.double() @ down.double()).T
    assert torch.equal(tensors[TABLE], wanted.float().bfloat16())


def test_a_head_that_keeps_the_old_rows_is_refused(base, tmp_path):
    adapter = _adapter(tmp_path / "a", {TABLE: _random(GROWN, SIZE, seed=6)})
    with pytest.raises(CompatibilityError, match=r"leaves 'lm_head\.weight' with the 6"):
        open_model(f"{base}+{adapter}")


@pytest.mark.parametrize("form", ["{base}+{adapter}:0.5", "{base}+{adapter}+{adapter}"])
def test_grown_rows_are_not_weighted(base, grown, form):
    with pytest.raises(CompatibilityError, match="alone, with strength 1"):
        open_model(form.format(base=base, adapter=grown))


def test_other_tensors_of_more_rows_are_refused(base, tmp_path):
    adapter = _adapter(
        tmp_path / "a", {"model.layers.0.self_attn.k_proj.weight": _random(9, SIZE, seed=1)}
    )
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(SIZE, SIZE)
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(CompatibilityError, match="no table of the vocabulary"):
        open_model(f"{base}+{adapter}")


@pytest.mark.parametrize(
    ("task", "name"),
    [("SEQ_CLS", "LlamaForSequenceClassification"), ("TOKEN_CLS", "LlamaForTokenClassification")],
)
def test_a_score_head_makes_a_classifier_of_a_language_model(base, tmp_path, task, name):
    score = _random(3, SIZE, seed=6)
    adapter = _adapter(tmp_path / "a", {"score.weight": score}, task_type=task)
    assert [f.code for f in open_model(f"{base}+{adapter}").findings()] == ["added-head"]
    out, tensors, config = _merged(base, str(adapter))
    assert torch.equal(tensors["score.weight"], score.bfloat16())
    assert HEAD not in tensors
    assert config["architectures"] == [name]
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert weightsmith.verify(out, recompute=3).ok


def test_a_score_head_of_another_task_is_a_tensor_that_the_base_lacks(base, tmp_path):
    adapter = _adapter(tmp_path / "a", {"score.weight": _random(3, SIZE, seed=6)})
    with pytest.raises(CompatibilityError, match=r"score\.weight"):
        open_model(f"{base}+{adapter}")


def test_a_head_is_not_weighted(base, tmp_path):
    adapter = _adapter(
        tmp_path / "a", {"score.weight": _random(3, SIZE, seed=6)}, task_type="SEQ_CLS"
    )
    with pytest.raises(CompatibilityError, match="strength 1"):
        open_model(f"{base}+{adapter}:0.5")


def test_grown_rows_are_no_change_that_adapters_could_be_combined_by(base, grown, tmp_path):
    with pytest.raises(CompatibilityError, match="resized before training"):
        weightsmith.combine_adapters([grown, grown], tmp_path / "both", base=base)


def test_an_adapter_of_strength_0_leaves_the_base_as_it_is(base, grown, tmp_path):
    score = _adapter(
        tmp_path / "a", {"score.weight": _random(3, SIZE, seed=6)}, task_type="SEQ_CLS"
    )
    for adapter in (grown, score):
        seen = open_model(f"{base}+{adapter}:0")
        assert {n: t.shape for n, t in seen.tensors.items()} == {
            n: t.shape for n, t in open_model(base).tensors.items()
        }
        assert seen.config["vocab_size"] == ROWS
