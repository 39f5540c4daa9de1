"""Configurations that compute in different ways with equal tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from weightsmith.checkpoints import Checkpoint, compare, compare_configurations
from weightsmith.checkpoints.config_comparison import differences
from weightsmith.findings import Severity

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
}


def keys(first: dict[str, Any], other: dict[str, Any]) -> dict[str, str]:
    """The keys that differ with their consequences, the same in both directions."""
    found = {d.key: d.consequence.value for d in differences(first, other)}
    assert {d.key: d.consequence.value for d in differences(other, first)} == found
    return found


@pytest.mark.parametrize(
    ("changed", "consequence"),
    [
        ({"num_key_value_heads": 4}, "meaning"),
        ({"hidden_act": "gelu"}, "meaning"),
        ({"rms_norm_eps": 1e-6}, "calculation"),
        ({"sliding_window": 4096}, "calculation"),
        ({"attention_bias": True}, None),
        ({"model_type": "mistral"}, "calculation"),
        ({"num_experts_per_tok": 2}, "calculation"),
        ({"final_logit_softcapping": 30.0}, "calculation"),
        ({"a_new_key": 1}, None),
    ],
)
def test_a_key_has_the_consequence_of_what_it_computes(
    changed: dict[str, Any], consequence: str | None
) -> None:
    key = next(iter(changed))
    told = keys(LLAMA, LLAMA | changed)
    assert told.get(key) == consequence


def test_two_ordinary_fine_tunes_do_not_differ() -> None:
    first = LLAMA | {
        "torch_dtype": "bfloat16",
        "_name_or_path": "/home/me/base",
        "transformers_version": "4.40.0",
        "use_cache": True,
        "eos_token_id": 2,
        "attention_dropout": 0.0,
        "max_position_embeddings": 4096,
        "architectures": ["LlamaForCausalLM"],
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    }
    other = LLAMA | {
        "dtype": "float32",
        "transformers_version": "5.23.0",
        "use_cache": False,
        "eos_token_id": [2, 7],
        "pad_token_id": 0,
        "attention_dropout": 0.1,
        "initializer_range": 0.01,
        "max_position_embeddings": 8192,
        "architectures": ["LlamaForSequenceClassification"],
        "id2label": {"0": "no", "1": "yes"},
        "label2id": {"no": 0, "yes": 1},
        "unsloth_version": "2025.1",
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": 8,
        "rope_scaling": None,
    }
    assert not keys(first, other)


def test_spellings_of_one_meaning_are_one() -> None:
    new = {k: v for k, v in LLAMA.items() if k != "rope_theta"}
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0}
    assert not keys(LLAMA, new)
    scaled = LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}}
    new["rope_parameters"] = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
    assert not keys(scaled, new)
    assert not keys(LLAMA | {"hidden_act": "swish"}, LLAMA)
    gemma = {"model_type": "gemma", "hidden_act": "gelu"}
    assert not keys(gemma, {"model_type": "gemma", "hidden_activation": "gelu_pytorch_tanh"})
    assert not keys(gemma, {"model_type": "gemma", "hidden_act": "gelu_pytorch_tanh"})


def test_rotary_positions_are_compared_number_by_number() -> None:
    scaled = LLAMA | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}
    assert keys(LLAMA, scaled) == {
        "rope_parameters.rope_type": "calculation",
        "rope_parameters.factor": "calculation",
    }
    old = {
        "model_type": "gemma3_text",
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    new = {
        "model_type": "gemma3_text",
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    }
    assert not keys(old, new)
    moved = copy.deepcopy(new)
    moved["rope_parameters"]["sliding_attention"]["rope_theta"] = 20_000.0
    assert list(keys(old, moved)) == ["rope_parameters.sliding_attention.rope_theta"]


def test_the_longest_sequence_counts_where_rotary_positions_depend_on_it() -> None:
    dynamic = LLAMA | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
    first, other = (dynamic | {"max_position_embeddings": n} for n in (2048, 4096))
    assert list(keys(first, other)) == ["rope_parameters.max_position_embeddings"]


def test_labels_are_compared_by_number_and_only_where_both_have_names() -> None:
    first = LLAMA | {"id2label": {"0": "negative", "1": "positive"}}
    other = LLAMA | {"id2label": {"0": "POSITIVE", "1": "Negative"}}
    assert keys(first, other) == {"id2label.0": "meaning", "id2label.1": "meaning"}
    assert not keys(first, LLAMA | {"id2label": {0: "Negative", 1: "positive"}})


def test_nested_configurations_are_compared_too() -> None:
    first = {
        "model_type": "llava",
        "text_config": LLAMA,
        "vision_config": {"model_type": "clip_vision_model", "patch_size": 14, "image_size": 224},
    }
    other = copy.deepcopy(first)
    other["vision_config"]["image_size"] = 336
    other["text_config"]["hidden_act"] = "gelu"
    assert keys(first, other) == {
        "text_config.hidden_act": "meaning",
        "vision_config.image_size": "calculation",
    }
    del other["vision_config"]["image_size"]
    assert list(keys(first, other)) == ["text_config.hidden_act"]


def test_a_language_model_alone_is_compared_with_the_one_inside_another() -> None:
    whole = {"model_type": "llava", "text_config": LLAMA | {"hidden_act": "gelu"}}
    found = keys(whole, LLAMA)
    assert found == {"model_type": "calculation", "hidden_act": "meaning"}
    flat = {**LLAMA, "model_type": "llava", "hidden_act": "gelu"}
    assert not keys(whole, flat)


def test_what_sliding_windows_say_does_not_count_where_they_are_not_used() -> None:
    first = LLAMA | {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 2}
    other = LLAMA | {"use_sliding_window": False, "sliding_window": None, "max_window_layers": 4}
    assert not keys(first, other)
    assert keys(first, first | {"use_sliding_window": True}) == {
        "use_sliding_window": "calculation",
        "sliding_window": "calculation",
        "max_window_layers": "calculation",
    }


def test_findings_say_both_values_and_what_accepts_them(llama: Callable[..., Checkpoint]) -> None:
    base = llama("base", hidden_act="silu", rope_theta=10_000.0, a_new_key=1)
    other = llama("other", hidden_act="gelu", rope_theta=20_000.0, a_new_key=2)
    found = compare_configurations(base, [other]).findings
    assert [f.severity for f in found] == [Severity.ERROR, Severity.WARNING, Severity.NOTE]
    assert {f.code for f in found} == {"config-differs"}
    assert "'hidden_act' is 'gelu' in" in found[0].message
    assert "accept: [hidden_act]" in found[0].fix
    assert "accept: [rope_theta]" in found[1].fix
    assert compare([base, other])[0].severity is Severity.ERROR
    part = compare_configurations(base, [other], is_partial=True).findings
    assert Severity.ERROR not in {f.severity for f in part}


def test_what_is_accepted_stays_as_a_note(llama: Callable[..., Checkpoint]) -> None:
    base = llama("base", hidden_act="silu", rope_theta=10_000.0)
    other = llama("other", hidden_act="gelu", rope_theta=20_000.0)
    accepted = ["hidden_act", "rope_parameters", "heads"]
    found = compare_configurations(base, [other], accepted=accepted)
    assert [(f.severity, f.code) for f in found.findings] == [(Severity.NOTE, "config-accepted")]
    assert found.accepted == {"hidden_act", "rope_parameters"}
