"""The configuration of a merged checkpoint agrees with its weights."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.checkpoints.config import input_findings, merged_config
from weightsmith.checkpoints.json_files import json_bytes
from weightsmith.errors import CompatibilityError
from weightsmith.findings import Severity
from weightsmith.tensors.dtypes import DType


def _config(**keys: Any) -> dict[str, Any]:
    return {"model_type": "llama", "num_hidden_layers": 4, "vocab_size": 100, **keys}


def test_without_a_change_the_configuration_is_the_donors_and_a_copy() -> None:
    donor = _config(rope_scaling={"factor": 2.0}, layer_types=list("abcd"))
    merged = merged_config(donor)
    assert merged == donor
    merged["rope_scaling"]["factor"] = 3.0
    assert donor["rope_scaling"]["factor"] == 2.0


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_the_dtype_goes_under_the_key_that_the_donor_uses_nested_too(key: str) -> None:
    donor = _config(text_config={key: "float16"}, **{key: "float32"})
    merged = merged_config(donor, dtype=DType.BFLOAT16)
    assert merged[key] == merged["text_config"][key] == "bfloat16"
    assert set(merged) == set(donor)


@pytest.mark.parametrize(
    ("version", "key"), [("4.40.1", "torch_dtype"), ("4.56.0", "dtype"), ("5.23.0", "dtype")]
)
def test_a_missing_dtype_is_added_in_the_form_of_the_donors_release(version: str, key: str) -> None:
    merged = merged_config(_config(transformers_version=version), dtype=DType.FLOAT16)
    assert merged[key] == "float16"
    assert "dtype" not in merged_config({"depth": 3}, dtype=DType.FLOAT16)


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "n_layers", "num_layers"])
def test_the_number_of_layers_is_set_under_the_donors_key(key: str) -> None:
    merged = merged_config({key: 3}, layer_sources=[0, 1, 1, 2, 2])
    assert merged == {key: 5}


def test_an_alias_of_the_number_follows_but_other_equal_numbers_do_not() -> None:
    donor = {"n_layer": 3, "num_hidden_layers": 3, "n_head": 3}
    merged = merged_config(donor, layer_sources=[0])
    assert merged == {"n_layer": 1, "num_hidden_layers": 1, "n_head": 3}


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_every_list_with_one_entry_per_layer_follows_its_layer(sources: list[int]) -> None:
    donor = _config(
        layer_types=["sliding", "full", "sliding", "full"],
        mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
        layers_block_type=["mamba", "attention", "mamba", "mamba"],
        no_rope_layers=[1, 1, 1, 0],
        intermediate_size=[10, 20, 30, 40],
        hybrid_override_pattern="M*-M",
        architectures=["A", "B", "C", "D"],
        eos_token_id=[1, 2, 3, 4],
    )
    merged = merged_config(donor, layer_sources=sources)
    for key in (
        "layer_types",
        "mlp_layer_types",
        "layers_block_type",
        "no_rope_layers",
        "intermediate_size",
    ):
        assert merged[key] == [donor[key][source] for source in sources]
    assert merged["hybrid_override_pattern"] == "".join("M*-M"[s] for s in sources)
    assert merged["num_hidden_layers"] == len(sources)
    assert merged["architectures"] == donor["architectures"]
    assert merged["eos_token_id"] == donor["eos_token_id"]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9))
def test_lists_of_layer_numbers_are_renumbered(sources: list[int]) -> None:
    donor = {
        "num_hidden_layers": 6,
        "mlp_only_layers": [0, 3],
        "attn_layer_indices": [5],
        "full_attn_idxs": [0, 1, 2, 3, 4, 5],
        "moe_layers": [],
    }
    merged = merged_config(donor, layer_sources=sources)
    for key in ("mlp_only_layers", "attn_layer_indices", "full_attn_idxs", "moe_layers"):
        assert merged[key] == [j for j, source in enumerate(sources) if source in donor[key]]


def test_the_nested_text_config_is_the_one_that_changes() -> None:
    donor = {
        "model_type": "vlm",
        "vision_config": {"num_hidden_layers": 3, "layer_types": list("xyz")},
        "text_config": {"num_hidden_layers": 3, "layer_types": list("abc"), "vocab_size": 9},
    }
    merged = merged_config(donor, layer_sources=[2, 0], vocab_size=11)
    assert merged["text_config"] == {
        "num_hidden_layers": 2,
        "layer_types": ["c", "a"],
        "vocab_size": 11,
    }
    assert merged["vision_config"] == donor["vision_config"]
    tower = merged_config(donor, layer_sources=[0], stack="vision_tower.encoder.layers")
    assert tower["vision_config"] == {"num_hidden_layers": 1, "layer_types": ["x"]}
    assert tower["text_config"] == donor["text_config"]


def test_encoder_and_decoder_have_numbers_of_their_own() -> None:
    whisper = {"encoder_layers": 4, "num_hidden_layers": 4, "decoder_layers": 4}
    assert merged_config(whisper, layer_sources=[0], stack="model.decoder.layers") == {
        "encoder_layers": 4,
        "num_hidden_layers": 4,
        "decoder_layers": 1,
    }
    assert merged_config(whisper, layer_sources=[0], stack="model.encoder.layers") == {
        "encoder_layers": 1,
        "num_hidden_layers": 1,
        "decoder_layers": 4,
    }
    t5 = {"num_layers": 4, "is_encoder_decoder": True}
    assert merged_config(t5, layer_sources=[0, 1], stack="encoder.block") == {
        **t5,
        "num_layers": 2,
        "num_decoder_layers": 4,
    }
    assert merged_config(t5, layer_sources=[0, 1], stack="decoder.block") == {
        **t5,
        "num_decoder_layers": 2,
    }


def test_a_threshold_moves_with_its_layers_or_is_refused() -> None:
    donor = {"num_hidden_layers": 6, "first_k_dense_replace": 2}
    merged = merged_config(donor, layer_sources=[0, 0, 1, 2, 5])
    assert merged["first_k_dense_replace"] == 3
    with pytest.raises(CompatibilityError, match="'first_k_dense_replace'"):
        merged_config(donor, layer_sources=[0, 2, 1])


def test_a_threshold_at_the_end_stays_there_and_an_unused_one_does_not_matter() -> None:
    donor = {"num_hidden_layers": 4, "max_window_layers": 4, "use_sliding_window": True}
    assert merged_config(donor, layer_sources=[3, 0])["max_window_layers"] == 2
    unused = {"num_hidden_layers": 4, "max_window_layers": 2, "use_sliding_window": False}
    assert merged_config(unused, layer_sources=[3, 0, 1])["max_window_layers"] == 2
    silent = {"num_hidden_layers": 4, "max_window_layers": 2}
    assert merged_config(silent, layer_sources=[3, 0, 1])["max_window_layers"] == 2
    used = {**unused, "use_sliding_window": True}
    with pytest.raises(CompatibilityError, match="max_window_layers"):
        merged_config(used, layer_sources=[3, 0, 1])


def test_shared_layers_at_the_end_must_stay_at_the_end() -> None:
    donor = {"num_hidden_layers": 4, "num_kv_shared_layers": 2}
    assert merged_config(donor, layer_sources=[0, 1, 2, 3, 3])["num_kv_shared_layers"] == 3
    with pytest.raises(CompatibilityError, match="num_kv_shared_layers"):
        merged_config(donor, layer_sources=[0, 3, 1])


def test_a_period_that_still_holds_is_kept() -> None:
    donor = {"num_hidden_layers": 6, "sliding_window_pattern": 3}
    merged = merged_config(donor, layer_sources=[3, 4, 5, 0, 1, 2])
    assert merged == donor


def test_a_broken_period_is_written_out_layer_by_layer() -> None:
    donor = {"num_hidden_layers": 6, "sliding_window_pattern": 3}
    merged = merged_config(donor, layer_sources=[0, 2, 5, 4])
    assert merged["layer_types"] == [
        "sliding_attention",
        "full_attention",
        "full_attention",
        "sliding_attention",
    ]


def test_a_broken_period_of_sparse_layers_becomes_a_list_of_dense_ones() -> None:
    donor = {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    merged = merged_config(donor, layer_sources=[0, 1, 3, 5, 5])
    # Layers 1 and 5 are sparse; 0 and 2 by the period, 3 by the list, are dense.
    assert merged["decoder_sparse_step"] == 1
    assert merged["mlp_only_layers"] == [0, 2]


def test_a_broken_period_without_a_list_for_it_is_refused_but_a_given_list_wins() -> None:
    donor = {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1}
    assert merged_config(donor, layer_sources=[2, 3])["num_hidden_layers"] == 2
    with pytest.raises(CompatibilityError, match="attn_layer_period"):
        merged_config(donor, layer_sources=[1, 2])
    listed = {**donor, "layers_block_type": ["m", "a", "m", "a"]}
    merged = merged_config(listed, layer_sources=[1, 2])
    assert merged["layers_block_type"] == ["a", "m"]


def test_a_packed_pattern_is_unpacked() -> None:
    donor = {"num_layers": 4, "attention_types": [[["global", "local"], 2]]}
    merged = merged_config(donor, layer_sources=[0, 0, 1])
    assert merged["attention_types"] == [[["global", "global", "local"], 1]]


def test_layers_of_a_deeper_model_need_a_donor_that_describes_them() -> None:
    assert merged_config({"n_layer": 2}, layer_sources=[0, 5]) == {"n_layer": 2}
    with pytest.raises(CompatibilityError, match=r"layer 5.*donor"):
        merged_config({"n_layer": 2, "layer_types": ["a", "b"]}, layer_sources=[0, 5])


def test_a_configuration_without_a_number_of_layers_is_refused() -> None:
    with pytest.raises(CompatibilityError, match="no number of layers"):
        merged_config({"model_type": "odd"}, layer_sources=[0])


def test_vocabulary_and_tie_are_set_wherever_they_stand() -> None:
    donor = _config(text_config={"vocab_size": 100, "tie_word_embeddings": True}, audio_config={})
    donor["audio_config"]["vocab_size"] = 7
    merged = merged_config(donor, vocab_size=128, tied=False)
    assert merged["vocab_size"] == merged["text_config"]["vocab_size"] == 128
    assert merged["audio_config"]["vocab_size"] == 7
    assert merged["text_config"]["tie_word_embeddings"] is False
    assert merged_config(_config(), tied=False)["tie_word_embeddings"] is False


def test_the_donors_folder_does_not_leak() -> None:
    donor = _config(_name_or_path="/home/user/x", text_config={"_name_or_path": "/home/user/y"})
    assert "/home" not in str(merged_config(donor))


def test_a_quantised_donor_is_refused_and_custom_code_is_a_warning() -> None:
    donor = _config(quantization_config={"quant_method": "gptq"})
    with pytest.raises(CompatibilityError, match="gptq"):
        merged_config(donor)
    (finding,) = input_findings(_config(auto_map={"AutoModel": "m.M"}), {}, "'x'")
    assert (finding.severity, finding.code) == (Severity.WARNING, "custom-code")
    assert input_findings(None, {}, "'x'") == []


FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("Qwen3Config", {}),
    ("Gemma2Config", {}),
    ("Gemma3TextConfig", {}),
    ("GptOssConfig", {}),
    ("Cohere2Config", {}),
    ("SmolLM3Config", {}),
    ("ModernBertConfig", {}),
    ("Qwen3NextConfig", {"mlp_only_layers": [1]}),
    ("GPTNeoConfig", {"attention_types": [[["global", "local"], 3]], "num_layers": 6}),
]


@pytest.mark.parametrize(("name", "keys"), FAMILIES, ids=[name for name, _ in FAMILIES])
@pytest.mark.filterwarnings("ignore")
def test_transformers_reads_the_result_with_the_layer_types_of_the_sources(
    name: str, keys: dict[str, Any]
) -> None:
    transformers = pytest.importorskip("transformers")
    config_class = getattr(transformers, name)
    donor = config_class(**({"num_hidden_layers": 6} | keys if "GPT" not in name else keys))
    sources = [0, 1, 5, 5, 2, 3, 4]
    merged = merged_config(donor.to_dict(), layer_sources=sources)
    read = config_class.from_dict(copy.deepcopy(merged))
    assert read.num_hidden_layers == 7
    for key in ("layer_types", "attention_layers", "no_rope_layers"):
        old = getattr(donor, key, None)
        if old is not None:
            assert list(getattr(read, key)) == [old[source] for source in sources]


@pytest.mark.parametrize("indent", [2, None])
def test_half_a_character_in_a_configuration_is_written_as_it_was_read(indent: int | None) -> None:
    plain, half = {"bos": "é", "n": [1]}, {"bos": "\ud800", "n": [1]}
    assert json_bytes(plain, indent=indent).decode().count("é") == 1
    assert json.loads(json_bytes(half, indent=indent)) == half
    assert rb"\ud800" in json_bytes(half, indent=indent)


def test_a_range_of_layers_moves_with_its_ends() -> None:
    config = {"num_hidden_layers": 6, "moe_layer_start_index": 1, "moe_layer_end_index": 4}
    made = merged_config(config, layer_sources=[0, 1, 2, 2, 3, 4, 5])
    assert (made["moe_layer_start_index"], made["moe_layer_end_index"]) == (1, 5)
    last = config | {"moe_layer_end_index": -1}
    made = merged_config(last, layer_sources=[0, 3, 4, 5])
    assert (made["moe_layer_start_index"], made["moe_layer_end_index"]) == (1, 3)
    with pytest.raises(CompatibilityError, match="moe_layer_start_index"):
        merged_config(config, layer_sources=[1, 0, 2])


def test_stages_whose_outputs_are_taken_are_renamed() -> None:
    names = ["stem", *(f"stage{i}" for i in range(1, 5))]
    config = {
        "num_hidden_layers": 4,
        "stage_names": names,
        "out_features": ["stage2", "stage4"],
        "out_indices": [2, 4],
    }
    made = merged_config(config, layer_sources=[1, 2, 3])
    assert made["stage_names"] == names[:4]
    assert made["out_features"] == ["stage1", "stage3"]
    assert made["out_indices"] == [1, 3]
    with pytest.raises(CompatibilityError, match="layer 1"):
        merged_config(config, layer_sources=[0, 2, 3])


def test_lists_of_numbers_may_name_layers_that_are_not_there() -> None:
    config = {"num_hidden_layers": 6, "cross_attention_layers": [3, 8]}
    made = merged_config(config, layer_sources=[0, 3, 4])
    assert made["cross_attention_layers"] == [1]


def test_the_section_that_a_stack_is_called_after_counts_its_layers() -> None:
    config = {
        "qformer_config": {"num_hidden_layers": 4},
        "text_config": {"num_hidden_layers": 4},
        "vision_config": {"num_hidden_layers": 4},
    }
    made = merged_config(config, layer_sources=[0], stack="qformer.encoder.layer")
    assert made["qformer_config"]["num_hidden_layers"] == 1
    assert made["text_config"]["num_hidden_layers"] == 4


def test_lists_of_an_encoder_stay_where_layers_of_the_decoder_move() -> None:
    config = {
        "is_encoder_decoder": True,
        "encoder_layers": 3,
        "decoder_layers": 3,
        "attention_window": [4, 8, 16],
    }
    made = merged_config(config, layer_sources=[0, 2], stack="model.decoder.layers")
    assert made["attention_window"] == [4, 8, 16]
    made = merged_config(config, layer_sources=[0, 2], stack="model.encoder.layers")
    assert made["attention_window"] == [4, 16]


def test_outputs_that_are_taken_by_tensors_of_their_own_are_kept() -> None:
    config = {"num_hidden_layers": 6, "deepstack_visual_indexes": [1, 4]}
    made = merged_config(config, layer_sources=[1, 2, 4])
    assert made["deepstack_visual_indexes"] == [0, 2]
    for order in ([0, 1, 2], [1, 1, 4]):
        with pytest.raises(CompatibilityError, match="deepstack_visual_indexes"):
            merged_config(config, layer_sources=order)


def test_tables_with_a_part_for_every_layer_keep_the_layers() -> None:
    config = {"num_hidden_layers": 6, "hidden_size_per_layer_input": 8}
    with pytest.raises(CompatibilityError, match="a part for each"):
        merged_config(config, layer_sources=[0, 1])
    assert merged_config(config, layer_sources=list(range(6))) == config


def test_a_pattern_that_networks_repeat_is_written_out() -> None:
    config = {"num_hidden_layers": 6, "block_types": ["recurrent", "recurrent", "attention"]}
    made = merged_config(config, layer_sources=[0, 1, 4, 5])
    assert made["block_types"] == ["recurrent", "recurrent", "recurrent", "attention"]


def test_a_number_that_counts_other_modules_too_is_kept() -> None:
    donor = {
        "model_type": "fastspeech2_conformer",
        "is_encoder_decoder": True,
        "encoder_layers": 3,
        "decoder_layers": 3,
    }
    stack = "decoder.conformer_layers"
    moved = merged_config(donor, layer_sources=[2, 1, 0], stack=stack)
    assert moved["decoder_layers"] == 3
    with pytest.raises(CompatibilityError, match="with one number"):
        merged_config(donor, layer_sources=[0, 1], stack=stack)


def test_layers_of_a_kind_that_a_network_needs_are_kept() -> None:
    kinds = ["linear_attention", "full_attention", "linear_attention"]
    donor = {"model_type": "olmo_hybrid", "num_hidden_layers": 3, "layer_types": kinds}
    assert merged_config(donor, layer_sources=[0, 1])["layer_types"] == kinds[:2]
    with pytest.raises(CompatibilityError, match="needs at least 1 of its layers"):
        merged_config(donor, layer_sources=[0, 2])


def test_what_is_said_by_the_number_of_a_layer_moves_with_it() -> None:
    own = {"1": {"head_dim": 4}, "3": {"head_dim": 16}, "full_attention": {"head_dim": 8}}
    donor = {"num_hidden_layers": 4, "per_layer_config": own}
    merged = merged_config(donor, layer_sources=[0, 3, 3, 1])
    assert merged["per_layer_config"] == {
        "full_attention": {"head_dim": 8},
        "1": {"head_dim": 16},
        "2": {"head_dim": 16},
        "3": {"head_dim": 4},
    }


def test_layers_that_share_tensors_by_their_turn_are_kept_in_order() -> None:
    kinds = ["mamba", "hybrid", "mamba", "hybrid"]
    donor = {"model_type": "zamba2", "num_hidden_layers": 4, "layers_block_type": kinds}
    without = merged_config(donor, layer_sources=[1, 2, 3])
    assert without["layers_block_type"] == kinds[1:]
    for sources in ([0, 1], [0, 1, 2, 3, 3], [0, 3, 2, 1]):
        with pytest.raises(CompatibilityError, match="once and in order"):
            merged_config(donor, layer_sources=sources)


def test_numbers_of_tokens_are_no_numbers_of_layers() -> None:
    donor = {"model_type": "radio", "num_hidden_layers": 4, "summary_idxs": [0, 1]}
    assert merged_config(donor, layer_sources=[2, 3])["summary_idxs"] == [0, 1]
