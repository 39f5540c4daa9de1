"""Checkpoints as transformers itself saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from weightsmith.checkpoints import Tying, open_checkpoint
from weightsmith.checkpoints.config import merged_config
from weightsmith.tensors import Kind
from weightsmith.tensors.dtypes import DType

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

SIZE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CASES: list[tuple[str, str, dict[str, Any], Tying]] = [
    ("LlamaForCausalLM", "LlamaConfig", SIZE, Tying.UNTIED),
    ("LlamaForCausalLM", "LlamaConfig", {**SIZE, "tie_word_embeddings": True}, Tying.TIED),
    ("Gemma3ForCausalLM", "Gemma3TextConfig", SIZE, Tying.TIED),
    ("Phi3ForCausalLM", "Phi3Config", SIZE, Tying.UNTIED),
    ("MixtralForCausalLM", "MixtralConfig", {**SIZE, "num_local_experts": 2}, Tying.UNTIED),
    ("GPTNeoXForCausalLM", "GPTNeoXConfig", SIZE, Tying.UNTIED),
    ("BertForMaskedLM", "BertConfig", SIZE, Tying.TIED),
    ("BertModel", "BertConfig", SIZE, Tying.NO_HEAD),
    (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2},
        Tying.TIED,
    ),
    (
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
        Tying.TIED,
    ),
]


@pytest.mark.parametrize(
    ("model", "config", "keys", "tying"), CASES, ids=[f"{c[0]}-{c[3].value}" for c in CASES]
)
def test_a_saved_model_opens_with_its_layers_vocabulary_and_ties(
    tmp_path: Path, model: str, config: str, keys: dict[str, Any], tying: Tying
) -> None:
    built = getattr(transformers, model)(getattr(transformers, config)(**keys))
    built.save_pretrained(tmp_path, max_shard_size="6KB")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.layer_count == 2
    assert checkpoint.vocab_size == 40
    assert checkpoint.tying is tying
    assert len(checkpoint.files()) > 1
    shown = {role.kind for role in checkpoint.places.values()}
    assert Kind.EMBEDDING in shown
    assert Kind.NORM in shown
    assert any(kind.matches("attention") for kind in shown)
    assert {role.layer for role in checkpoint.places.values()} == {None, 0, 1}


def test_a_cut_down_model_loads_with_the_configuration_made_for_it(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    keys = {**SIZE, "num_hidden_layers": 6, "head_dim": 8, "num_key_value_heads": 1}
    donor = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**keys))
    sources = [0, 1, 5]
    state = donor.state_dict()
    kept = {k: v for k, v in state.items() if ".layers." not in k and k != "lm_head.weight"}
    for layer, source in enumerate(sources):
        old = f"model.layers.{source}."
        kept |= {
            f"model.layers.{layer}.{k.removeprefix(old)}": v.clone()
            for k, v in state.items()
            if k.startswith(old)
        }
    save_file(kept, str(tmp_path / "model.safetensors"), metadata={"format": "pt"})
    config = donor.config.to_dict() | {"architectures": ["Gemma3ForCausalLM"]}
    merged = merged_config(config, layer_sources=sources, dtype=DType.FLOAT32, tied=True)
    transformers.Gemma3TextConfig.from_dict(dict(merged)).save_pretrained(tmp_path)
    loaded, report = transformers.Gemma3ForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert loaded.config.layer_types == [donor.config.layer_types[s] for s in sources]
