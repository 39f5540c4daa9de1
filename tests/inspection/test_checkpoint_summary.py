"""What `inspect` finds in headers and configurations."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from weightsmith.errors import CheckpointError
from weightsmith.findings import Severity
from weightsmith.inspection.checkpoint_summary import summarize_checkpoint

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "vocab_size": 16,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def llama(dtype=torch.bfloat16, rows=16, layers=2):
    shapes = {
        "model.embed_tokens.weight": (rows, 4),
        "lm_head.weight": (rows, 4),
        "model.norm.weight": (4,),
    }
    for i in range(layers):
        shapes[f"model.layers.{i}.self_attn.q_proj.weight"] = (4, 4)
        shapes[f"model.layers.{i}.mlp.up_proj.weight"] = (6, 4)
    return {n: torch.zeros(s, dtype=dtype) for n, s in shapes.items()}


def test_a_clean_checkpoint_is_described_without_findings(checkpoint):
    folder = checkpoint("m", llama(), CONFIG)
    (folder / "tokenizer.json").write_text("{}")
    found = summarize_checkpoint(folder)
    assert found.findings == ()
    assert found.layout == "folder, safetensors, 1 file"
    assert found.parameters == 2 * 64 + 4 + 2 * (16 + 24)
    assert found.nbytes == 2 * found.parameters
    assert found.dtypes == {"bfloat16": found.parameters}
    assert found.layers == 2
    assert found.vocabulary == 16
    assert found.tying == "untied"
    assert found.tokenizer_files == ("tokenizer.json",)
    assert found.config["model_type"] == "llama"
    assert {r.role: r.parameters for r in found.roles} == {
        "embedding": 64,
        "head": 64,
        "mlp.up": 48,
        "attention.q": 32,
        "norm": 4,
    }
    assert len(found.tensors) == 7


@pytest.mark.parametrize(
    ("tensors", "change", "code"),
    [
        (llama(layers=3), {}, "layer-count"),
        (llama(rows=20), {}, "vocabulary"),
        (llama(dtype=torch.float32), {}, "dtype"),
        (llama(), {"torch_dtype": "bf17"}, "dtype"),
        (llama(), {"auto_map": {"AutoModel": "code.py"}}, "custom-code"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_a_warning(checkpoint, tensors, change, code):
    found = summarize_checkpoint(checkpoint("m", tensors, CONFIG | change))
    assert [(f.severity, f.code) for f in found.findings] == [(Severity.WARNING, code)]


def test_a_single_file_has_neither_config_nor_tokenizer(checkpoint):
    found = summarize_checkpoint(checkpoint("m", llama()) / "model.safetensors")
    assert found.layout == "single file, safetensors"
    assert found.config is None
    assert found.tokenizer_files == ()


def test_every_damaged_shard_is_an_error_finding(checkpoint):
    folder = checkpoint("m", llama(), CONFIG)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1])
    (folder / "second.safetensors").write_bytes(b"\xff" * 16)
    found = summarize_checkpoint(folder)
    assert [(f.severity, f.code, f.subject) for f in found.findings] == [
        (Severity.ERROR, "damaged-file", "model.safetensors"),
        (Severity.ERROR, "damaged-file", "second.safetensors"),
    ]
    assert found.tensors == ()


def test_a_damaged_config_is_an_error_finding(checkpoint):
    folder = checkpoint("m", llama())
    (folder / "config.json").write_text("{")
    (finding,) = summarize_checkpoint(folder).findings
    assert finding.severity is Severity.ERROR
    assert "config.json" in finding.message


def test_nothing_there_is_no_finding_but_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="No checkpoint is at"):
        summarize_checkpoint(tmp_path / "absent")


def test_names_that_differ_in_memory_are_counted_and_shown(checkpoint):
    tensors = {**llama(), "embed_out.weight": torch.zeros(16, 4)}
    other = {**CONFIG, "model_type": "gpt_neox"}
    spelling = summarize_checkpoint(checkpoint("n", tensors, other)).to_mapping()["spelling"]
    assert spelling == {"tensors": 1, "file": "embed_out.weight", "memory": "lm_head.weight"}
    assert "spelling" not in summarize_checkpoint(checkpoint("m", llama(), CONFIG)).to_mapping()


def test_a_single_file_of_an_image_model_is_shown_with_the_names_of_diffusers(tmp_path):
    names = ("input_blocks.1.0.in_layers.0.weight", "out.2.bias")
    tensors = {f"model.diffusion_model.{name}": torch.zeros(4) for name in names}
    save_file(tensors, tmp_path / "sd.safetensors")
    found = summarize_checkpoint(tmp_path / "sd.safetensors").spelling
    assert found is not None
    assert (found.tensors, found.file) == (2, f"model.diffusion_model.{names[0]}")
    assert found.memory == "unet/down_blocks.0.resnets.0.norm1.weight"
