"""`weightsmith untie`: a tied model with a head of its own."""

from __future__ import annotations

import json

import pytest

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")


def test_an_untied_model_computes_what_the_tied_one_does(weightsmith, tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=24,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    tied = transformers.LlamaForCausalLM(config)
    tied.save_pretrained(tmp_path / "tied")
    done = weightsmith("untie", str(tmp_path / "tied"), str(tmp_path / "own"))
    assert done.code == 0
    assert json.loads((tmp_path / "own/config.json").read_text())["tie_word_embeddings"] is False
    own = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "own")
    assert own.lm_head.weight.data_ptr() != own.model.embed_tokens.weight.data_ptr()
    tokens = torch.arange(6)[None]
    assert torch.equal(own(tokens).logits, tied(tokens).logits)
    # What is untied already is copied.
    again = weightsmith("untie", str(tmp_path / "own"), str(tmp_path / "again"))
    assert again.code == 0
    assert (tmp_path / "again/model.safetensors").read_bytes() == (
        tmp_path / "own/model.safetensors"
    ).read_bytes()
