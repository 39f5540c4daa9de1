"""The table of facts about configurations, against the library that they are about."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from weightsmith.checkpoints.computing_keys import Consequence, consequence_of
from weightsmith.checkpoints.config_comparison import differences
from weightsmith.checkpoints.library_defaults import families

transformers = pytest.importorskip("transformers")
errors = pytest.importorskip("huggingface_hub.errors")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")

SIZE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_key_value_heads": 2, "moe_intermediate_size": 8, "num_experts_per_tok": 2}
OF_CLASS: dict[str, dict[str, Any]] = {
    "Mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "Gemma2": {"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 8},
    "Mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "Qwen3Moe": {**EXPERTS, "head_dim": 8, "num_experts": 4},
    "Granite": {},
    "Cohere": {},
    "GPTNeoX": {},
    "Phi": {},
    "Starcoder2": {"num_key_value_heads": 2},
    "Bert": {},
    "Falcon": {},
    "OPT": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "GptOss": {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4},
    "Glm4Moe": {**EXPERTS, "head_dim": 8, "n_routed_experts": 4, "n_shared_experts": 1},
}
# What a library says where there is no such network.
IMPOSSIBLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    errors.StrictDataclassError,
    TypeError,
    ValueError,
)
# Ties are read from tensors; computing in chunks changes the order of sums alone.
SET_APART = {"tie_word_embeddings", "chunk_size_feed_forward", "architectures"}


@pytest.mark.parametrize("family", families())
def test_the_table_says_what_the_library_takes(family: str) -> None:
    made = transformers.CONFIG_MAPPING[family]()
    saved = made.to_dict()
    rope = saved.get("rope_parameters") or {}
    for key, value in families()[family].items():
        found = saved.get(key, rope.get(key))
        if value is None and key == "num_key_value_heads":
            value = made.num_attention_heads
        assert found == value, key


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2_vl", "mixtral", "siglip", "gpt_neox"])
def test_a_configuration_that_leaves_out_defaults_says_what_the_whole_one_says(family: str) -> None:
    made = transformers.CONFIG_MAPPING[family]()
    whole = json.loads(made.to_json_string(use_diff=False))
    assert not differences(whole, json.loads(made.to_json_string(use_diff=True)))


def network(name: str, config: Any) -> Any:
    head = "ForMaskedLM" if name == "Bert" else "ForCausalLM"
    config._attn_implementation = "eager"
    return getattr(transformers, name + head)(config).eval()


def others(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value * 2, value // 2, value - 1]
    if isinstance(value, float):
        return [value * 3 + (0.3 if value == 0 else 0)]
    return ["gelu", "relu"] if isinstance(value, str) else []


def computing(name: str, keys: dict[str, Any]) -> set[str]:
    """The keys whose value changes the output of a network with the same tensors, each changed alone."""
    make = getattr(transformers, f"{name}Config")
    tokens = torch.arange(3, 35)[None]
    torch.manual_seed(0)
    first = network(name, make(**SIZE | keys))
    state = {
        k: torch.randn_like(v) / 3 if v.is_floating_point() else v
        for k, v in first.state_dict().items()
    }
    config = first.config.to_dict()

    def output(made: Any) -> Any:
        made.load_state_dict(state)
        with torch.no_grad():
            return made(tokens).logits

    usual, found = output(first), set()
    for key, value in config.items():
        for other in others(value):
            try:
                made = network(name, make(**copy.deepcopy(config) | {key: other}))
                changed = not torch.equal(output(made), usual)
            except IMPOSSIBLE:
                # No such network, or one with other tensors.
                continue
            if changed:
                found.add(key)
                break
    return found


def test_every_key_that_changes_an_output_of_a_llama_counts() -> None:
    found = computing("Llama", {"num_hidden_layers": 1})
    assert {"hidden_act", "rms_norm_eps"} <= found
    silent = {key for key in found if consequence_of(key) is Consequence.NONE}
    assert silent <= SET_APART


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_CLASS)
def test_every_key_that_changes_an_output_counts(name: str) -> None:
    found = computing(name, OF_CLASS[name])
    assert len(found) > 2
    silent = {key for key in found if consequence_of(key) is Consequence.NONE}
    assert silent <= SET_APART
