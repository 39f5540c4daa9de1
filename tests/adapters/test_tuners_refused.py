"""Adapters of PEFT's other tuners that cannot be read, or not on this base: refused in one sentence."""

from __future__ import annotations

import json
from functools import partial

import pytest
from safetensors.torch import load_file, save_file
from tests.adapters.tuned import llama, read, written

from weightsmith.adapters.adapter_reading import open_adapter
from weightsmith.adapters.attaching import attach
from weightsmith.checkpoints import open_checkpoint
from weightsmith.errors import CheckpointError, CompatibilityError

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def edited(folder, drop=(), put=None, **settings):
    """The adapter with tensors taken out and replaced, and other settings."""
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}))
    tensors = load_file(folder / "adapter_model.safetensors")
    kept = (
        {n: t for n, t in tensors.items() if not n.endswith(tuple(drop))} if drop else dict(tensors)
    )
    save_file({**kept, **(put or {})}, folder / "adapter_model.safetensors")
    return folder


def test_a_tuner_without_its_random_bases_is_refused_with_the_way_to_store_them(tmp_path):
    config = partial(peft.RandLoraConfig, target_modules=["q_proj"], r=4)
    _, folder, _ = written(tmp_path, llama, config)
    edited(folder, ["randlora_A", "randlora_B"], save_projection=False)
    with pytest.raises(CompatibilityError, match=r"bases are not stored.*'save_projection' set"):
        open_adapter(folder)


def test_a_cayley_series_of_an_older_peft_is_refused(tmp_path):
    _, folder, _ = written(
        tmp_path, llama, partial(peft.OFTConfig, target_modules=["q_proj"], oft_block_size=4)
    )
    with pytest.raises(
        CompatibilityError, match=r"before 0\.18 trained with the Cayley-Neumann series"
    ):
        open_adapter(edited(folder, peft_version="0.17.1"))
    assert open_adapter(edited(folder, use_cayley_neumann=False)).updates


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "XLORA"])
def test_types_that_change_no_weights_are_refused_as_such(kind, tmp_path):
    _, folder, _ = written(
        tmp_path, llama, partial(peft.IA3Config, target_modules=["q_proj"], feedforward_modules=[])
    )
    with pytest.raises(CompatibilityError, match=rf"{kind}'?, which adds to the network"):
        open_adapter(edited(folder, peft_type=kind))


DAMAGED = {
    "a part that is missing": (
        partial(peft.HiraConfig, target_modules=["q_proj"], r=4),
        ["hira_B"],
        "no partner 'hira_B'",
    ),
    "half of a shared pair": (
        partial(peft.VeraConfig, target_modules=["q_proj"], r=4),
        ["vera_B"],
        "no partner 'vera_B'",
    ),
    "no indices": (
        partial(peft.ShiraConfig, target_modules=["q_proj"], r=1),
        ["shira_indices"],
        "partner 'shira_indices'",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_incomplete_tuners_are_refused_with_the_part_that_lacks(case, tmp_path):
    config, dropped, message = DAMAGED[case]
    _, folder, _ = written(tmp_path, llama, config)
    with pytest.raises(CheckpointError, match=message):
        open_adapter(edited(folder, dropped))


OF_ANOTHER_BASE = {
    "ia3": partial(peft.IA3Config, target_modules=["up_proj"], feedforward_modules=[]),
    "oft": partial(peft.OFTConfig, target_modules=["down_proj"], oft_block_size=4),
    "boft": partial(peft.BOFTConfig, target_modules=["down_proj"], boft_block_size=4),
    "vera": partial(peft.VeraConfig, target_modules=["up_proj"], r=4),
    "hira": partial(peft.HiraConfig, target_modules=["up_proj"], r=4),
    "miss": partial(peft.MissConfig, target_modules=["up_proj"], r=4),
    "randlora": partial(peft.RandLoraConfig, target_modules=["o_proj"], r=4),
    "delora": partial(peft.DeloraConfig, target_modules=["up_proj"], r=4),
}


@pytest.mark.parametrize("case", OF_ANOTHER_BASE)
def test_tuners_on_a_base_of_other_sizes_are_refused_from_headers(case, tmp_path):
    _, folder, _ = written(tmp_path, llama, OF_ANOTHER_BASE[case])
    config = transformers.LlamaConfig(
        vocab_size=37, hidden_size=40, intermediate_size=72, num_hidden_layers=1, num_attention_heads=4,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    with pytest.raises(CompatibilityError, match="the base that the adapter was trained on"):
        attach(open_checkpoint(tmp_path / "other"), [(open_adapter(folder), 1.0)])


def test_an_index_beyond_the_base_is_refused(tmp_path):
    base, folder, _ = written(
        tmp_path, llama, partial(peft.ShiraConfig, target_modules=["q_proj"], r=1)
    )
    name = "base_model.model.model.layers.0.self_attn.q_proj.shira_indices"
    indices = load_file(folder / "adapter_model.safetensors")[name]
    indices[0, 3] = 99
    changed = attach(
        open_checkpoint(base), [(open_adapter(edited(folder, put={name: indices})), 1.0)]
    )
    with pytest.raises(CompatibilityError, match="the base that the adapter was trained on"):
        read(changed, "model.layers.0.self_attn.q_proj.weight")
