"""Extracted adapters loaded by PEFT: with all directions kept, the base with one is the fine-tune."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest

from weightsmith.checkpoints import open_checkpoint
from weightsmith.checkpoints.tied_tensors import Tying
from weightsmith.lora.adapter_writing import write_adapter
from weightsmith.lora.extraction import extract
from weightsmith.lora.treatments import Choices

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # PEFT notes that a head is no Conv1D, and what merging into tied weights can lead to.
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning"),
]
TOKENS = torch.tensor([[1, 5, 9, 2, 17, 3]])
SMALL = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama(**settings):
    config = transformers.LlamaConfig(
        **SMALL, intermediate_size=20, num_key_value_heads=1, **settings
    )
    return transformers.LlamaForCausalLM(config)


def qwen2():
    config = transformers.Qwen2Config(**SMALL, intermediate_size=20, num_key_value_heads=1)
    return transformers.Qwen2ForCausalLM(config)


def gpt2():
    config = transformers.GPT2Config(vocab_size=24, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    return transformers.GPT2LMHeadModel(config)


def gpt_oss():
    config = transformers.GptOssConfig(
        **SMALL,
        intermediate_size=20,
        num_key_value_heads=1,
        head_dim=8,
        num_local_experts=3,
        num_experts_per_tok=2,
        layer_types=["full_attention"] * 2,
    )
    return transformers.GptOssForCausalLM(config)


MODELS = {
    "llama": llama,
    "llama, all biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "qwen2": qwen2,
    "gpt2": gpt2,
}


def fine_tuned(model, only="", without="-"):
    """The model with every parameter changed whose name has `only` in it and not `without`."""
    tuned = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if only in name and without not in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return tuned


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits.double().numpy()


def saved(model, folder):
    model.save_pretrained(folder)
    return open_checkpoint(folder)


def loaded(folder, adapter, dtype=torch.float64):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    found = peft.PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
    return found.eval()


@pytest.mark.parametrize("embeddings", ["replace", "lora"])
@pytest.mark.parametrize("name", MODELS)
def test_the_base_with_all_directions_is_the_fine_tune(tmp_path, name, embeddings):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    tuned = fine_tuned(model)
    base, finetune = saved(model, tmp_path / "base"), saved(tuned, tmp_path / "tuned")
    adapter, report = extract(finetune, base, energy=1.0, choices=Choices(embeddings))
    assert not report.left_out
    assert report.relative < 1e-6
    write_adapter(adapter, tmp_path / "out", base=base)
    expected = logits(tuned.double())
    found = loaded(tmp_path / "base", tmp_path / "out")
    np.testing.assert_allclose(logits(found), expected, atol=1e-5)
    is_doubled = embeddings == "lora" and base.tying is Tying.TIED
    assert ("tied-factors" in {f.code for f in report.findings}) == is_doubled
    if not is_doubled:
        np.testing.assert_allclose(logits(found.merge_and_unload()), expected, atol=1e-5)
    assert abs(expected - logits(model.double())).max() > 0.05


def test_dense_layers_of_a_mixture_that_peft_leaves_out_are_a_warning(tmp_path):
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        **SMALL,
        intermediate_size=20,
        moe_intermediate_size=12,
        num_key_value_heads=1,
        num_experts=3,
        num_experts_per_tok=2,
        mlp_only_layers=[0],
    )
    model = transformers.Qwen3MoeForCausalLM(config).eval()
    tuned = fine_tuned(model, only="layers.0.mlp")
    base, finetune = saved(model, tmp_path / "base"), saved(tuned, tmp_path / "tuned")
    adapter, report = extract(finetune, base, energy=1.0)
    assert [finding.code for finding in report.findings] == ["left-out-by-peft"]
    write_adapter(adapter, tmp_path / "out", base=base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = loaded(tmp_path / "base", tmp_path / "out", torch.float32)
    np.testing.assert_allclose(logits(found), logits(model), atol=1e-6)
    assert abs(logits(model) - logits(tuned)).max() > 0.01


def test_fused_experts_are_those_of_the_fine_tune(tmp_path):
    torch.manual_seed(0)
    model = gpt_oss().eval()
    # PEFT has no place for biases of experts and for a router, which are no modules that it knows.
    tuned = fine_tuned(model, only="up_proj", without="bias")
    base, finetune = saved(model, tmp_path / "base"), saved(tuned, tmp_path / "tuned")
    adapter, report = extract(finetune, base, energy=1.0)
    assert {factors.part for factors in adapter.factors.values()} == {0, 1, 2}
    assert report.relative < 1e-6
    write_adapter(adapter, tmp_path / "out", base=base)
    # Grouped products of matrices are not there in float64.
    expected = logits(tuned)
    found = loaded(tmp_path / "base", tmp_path / "out", torch.float32)
    np.testing.assert_allclose(logits(found), expected, atol=1e-5)
    assert abs(expected - logits(model)).max() > 0.01


def bart():
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 20, "decoder_ffn_dim": 20}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.BartConfig(
        vocab_size=24, d_model=16, max_position_embeddings=32, **sizes, **heads
    )
    return transformers.BartForConditionalGeneration(config)


def t5():
    config = transformers.T5Config(
        vocab_size=24, d_model=16, d_kv=8, d_ff=20, num_layers=1, num_heads=2
    )
    return transformers.T5ForConditionalGeneration(config)


@pytest.mark.parametrize("make", [bart, t5])
def test_a_table_that_encoder_and_decoder_share_is_replaced_in_all_its_places(tmp_path, make):
    torch.manual_seed(0)
    model = make().eval()
    tuned = fine_tuned(model)
    base, finetune = saved(model, tmp_path / "base"), saved(tuned, tmp_path / "tuned")
    adapter, _ = extract(finetune, base, energy=1.0)
    write_adapter(adapter, tmp_path / "out", base=base)
    plain = type(model).from_pretrained(tmp_path / "base")
    merged = peft.PeftModel.from_pretrained(plain, tmp_path / "out").merge_and_unload()
    wanted = tuned.state_dict()
    for name, value in merged.state_dict().items():
        torch.testing.assert_close(value, wanted[name], atol=1e-5, rtol=1e-4)
