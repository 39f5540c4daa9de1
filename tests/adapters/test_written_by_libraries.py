"""Adapters that the PEFT and diffusers libraries wrote, converted, and read by them again."""

import copy

import numpy as np
import pytest
from tests.adapters.small_llama import small_llama

from weightsmith.adapters.adapter_reading import open_adapter
from weightsmith.checkpoints import open_checkpoint
from weightsmith.deltas.changes import LowRankChange
from weightsmith.errors import CompatibilityError
from weightsmith.lora.adapter_facts import inspect_adapter
from weightsmith.lora.adapter_writing import write_adapter
from weightsmith.lora.converting import convert
from weightsmith.lora.low_rank_adapters import Factors, LowRankAdapter
from weightsmith.tensors.dtypes import DType

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [
    # PEFT's own use of a name that transformers is about to drop.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # PEFT says so whenever it saves an adapter of an embedding.
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
    # PEFT takes the biases that it saves for factors of a wrong shape.
    pytest.mark.filterwarnings("ignore:Adapter 'default'.*have invalid shape"),
]
TOKENS = torch.tensor([[1, 5, 9, 2, 17]])


def _gpt2(folder):
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        vocab_size=24, n_embd=16, n_layer=2, n_head=2, n_positions=12, tie_word_embeddings=False
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    return model


def _trained(model, folder, **settings):
    """An adapter with random numbers in all that it trains, saved by PEFT; the model with it."""
    torch.manual_seed(2)
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**settings)).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                step = torch.randn_like(parameter) * 0.3
                parameter.copy_(step + (1 if "magnitude" in name or "norm" in name else 0))
    adapted.save_pretrained(folder)
    return adapted


def _logits(model, inputs=TOKENS):
    with torch.no_grad():
        return model(inputs).logits.double().numpy()


def _read(model, folder):
    return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()


KINDS = {
    "plain": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]},
    "stabilised": {"r": 4, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "patterns": {
        "r": 4,
        "target_modules": "all-linear",
        "rank_pattern": {"layers.0.mlp.up_proj": 2, "k_proj": 3},
        "alpha_pattern": {"k_proj": 9, "down_proj": 1},
    },
    "magnitudes": {"r": 2, "target_modules": ["q_proj", "o_proj"], "use_dora": True},
    "embedding": {"r": 3, "target_modules": ["embed_tokens", "q_proj"]},
    "whole modules": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
    "biases": {"r": 2, "target_modules": ["q_proj", "v_proj"], "lora_bias": True, "lora_alpha": 5},
    "whole biases": {"r": 2, "target_modules": ["q_proj"], "bias": "all"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_wrote_means_the_same_to_it_after_a_conversion(tmp_path, kind):
    model = small_llama(tmp_path / "base", attention_bias="biases" in kind)
    adapted = _trained(model, tmp_path / "in", **KINDS[kind])
    base = open_checkpoint(tmp_path / "base")
    for name, given in (("with", base), ("without", None)):
        done = convert(tmp_path / "in", tmp_path / name, "peft", base=given)
        assert done.error == 0.0
        found = _read(model, tmp_path / name)
        np.testing.assert_allclose(_logits(found), _logits(adapted), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["plain", "stabilised", "patterns", "magnitudes", "biases"])
def test_what_peft_wrote_means_the_same_to_it_after_a_way_through_kohya(tmp_path, kind):
    model = small_llama(tmp_path / "base", attention_bias="biases" in kind)
    adapted = _trained(model, tmp_path / "in", **KINDS[kind])
    base = open_checkpoint(tmp_path / "base")
    convert(tmp_path / "in", tmp_path / "k.safetensors", "kohya", base=base)
    convert(tmp_path / "k.safetensors", tmp_path / "out", "peft", base=base)
    np.testing.assert_allclose(
        _logits(_read(model, tmp_path / "out")), _logits(adapted), rtol=1e-5, atol=1e-6
    )


def test_adapters_of_matrices_with_inputs_first_stay_what_they_are(tmp_path):
    model = _gpt2(tmp_path / "base")
    settings = {"r": 2, "target_modules": ["c_attn", "c_proj", "wte"], "fan_in_fan_out": True}
    adapted = _trained(model, tmp_path / "in", **settings)
    base = open_checkpoint(tmp_path / "base")
    convert(tmp_path / "in", tmp_path / "out", "peft", base=base)
    np.testing.assert_allclose(
        _logits(_read(model, tmp_path / "out")), _logits(adapted), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(CompatibilityError, match="write PEFT"):
        convert(tmp_path / "in", tmp_path / "k.safetensors", "kohya", base=base)


def test_an_adapter_tied_by_peft_stays_tied(tmp_path):
    model = small_llama(tmp_path / "base", tie_word_embeddings=True)
    settings = {"r": 2, "target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}
    adapted = _trained(model, tmp_path / "in", **settings)
    with pytest.raises(CompatibilityError, match="--base"):
        convert(tmp_path / "in", tmp_path / "out", "peft")
    convert(tmp_path / "in", tmp_path / "out", "peft", base=open_checkpoint(tmp_path / "base"))
    np.testing.assert_allclose(
        _logits(_read(model, tmp_path / "out")), _logits(adapted), rtol=1e-5, atol=1e-6
    )


def _unet():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
    ).eval()


def _image(unet):
    torch.manual_seed(5)
    image, text = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 8)
    with torch.no_grad():
        return unet(image, 3, text).sample.double().numpy()


TARGETS = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": 2,
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0": 3,
    "mid_block.attentions.0.proj_in": 2,
    "up_blocks.1.resnets.0.conv1": 4,
}


def _unet_adapter(unet, scale, rng):
    state = unet.state_dict()
    factors = {}
    for module, rank in TARGETS.items():
        name = f"{module}.weight"
        shape = tuple(state[name].shape)
        change = LowRankChange(
            rng.standard_normal((shape[0], rank)) * 0.3,
            rng.standard_normal((rank, int(np.prod(shape[1:])))) * 0.3,
            scale,
        )
        factors[name] = Factors(name, change, shape, "conv" if len(shape) > 2 else "linear")
    return LowRankAdapter(factors)


def _dense_image(unet, adapter):
    changed = copy.deepcopy(unet)
    state = changed.state_dict()
    for name, f in adapter.factors.items():
        whole = f.change.scale * (f.change.left @ f.change.right)
        state[name] += torch.from_numpy(whole.reshape(f.shape)).float()
    return _image(changed)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_diffusers_reads_its_own_dialect_as_the_dense_change(tmp_path, scale):
    unet = _unet()
    adapter = _unet_adapter(unet, scale, np.random.default_rng(0))
    write_adapter(adapter, tmp_path / "out", "diffusers")
    expected = _dense_image(unet, adapter)
    assert abs(expected - _image(unet)).max() > 1e-2
    unet.load_lora_adapter(
        tmp_path / "out", weight_name="pytorch_lora_weights.safetensors", prefix="unet"
    )
    np.testing.assert_allclose(_image(unet), expected, rtol=1e-4, atol=1e-5)


def test_diffusers_reads_a_kohya_file_as_the_dense_change(tmp_path):
    from diffusers import StableDiffusionPipeline

    unet = _unet()
    adapter = _unet_adapter(unet, 0.5, np.random.default_rng(0))
    write_adapter(adapter, tmp_path / "k.safetensors", "kohya")
    expected = _dense_image(unet, adapter)
    state, alphas = StableDiffusionPipeline.lora_state_dict(tmp_path / "k.safetensors")
    StableDiffusionPipeline.load_lora_into_unet(state, alphas, unet)
    np.testing.assert_allclose(_image(unet), expected, rtol=1e-4, atol=1e-5)


def _assert_same_after_kohya(unet, plain, folder):
    """diffusers makes the same image with the adapter of `unet` and with what kohya's dialect kept of it."""
    unet.save_lora_adapter(folder / "in")
    state = {n: t.contiguous() for n, t in plain.state_dict().items()}
    save_file(state, folder / "unet.safetensors")
    base = open_checkpoint(folder / "unet.safetensors")
    convert(folder / "in", folder / "k.safetensors", "kohya", base=base)
    convert(folder / "k.safetensors", folder / "out.safetensors", "diffusers", base=base)
    plain.load_lora_adapter(folder / "out.safetensors", prefix="unet")
    np.testing.assert_allclose(_image(plain), _image(unet), rtol=1e-4, atol=1e-5)


def test_what_diffusers_wrote_means_the_same_to_it_after_a_way_through_kohya(tmp_path):
    unet = _unet()
    plain = copy.deepcopy(unet)
    torch.manual_seed(3)
    unet.add_adapter(peft.LoraConfig(r=3, lora_alpha=2, target_modules=list(TARGETS)))
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    _assert_same_after_kohya(unet, plain, tmp_path)


def test_diffusers_reads_magnitudes_and_so_do_we(tmp_path):
    unet = _unet()
    plain = copy.deepcopy(unet)
    torch.manual_seed(3)
    settings = {"r": 3, "lora_alpha": 6, "target_modules": list(TARGETS), "use_dora": True}
    unet.add_adapter(peft.LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1 + torch.rand_like(parameter))
            elif "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    _assert_same_after_kohya(unet, plain, tmp_path)


def test_a_u_net_gets_one_alpha_in_kohya_and_keeps_its_digits(tmp_path):
    rng = np.random.default_rng(0)
    factors = {}
    for number, (rank, scale) in enumerate([(2, 1.0), (2, 1.0), (4, 1.0), (3, 1.0)]):
        name = f"unet.down_blocks.{number}.conv.weight"
        halves = rng.standard_normal((6, rank)), rng.standard_normal((rank, 5))
        left, right = (torch.from_numpy(h).bfloat16().double().numpy() for h in halves)
        factors[name] = Factors(name, LowRankChange(left, right, scale), (6, 5))
    adapter = LowRankAdapter(factors, dtype=DType.BFLOAT16)
    write_adapter(adapter, tmp_path / "k.safetensors", "kohya")
    found = load_file(tmp_path / "k.safetensors")
    assert {float(t) for n, t in found.items() if n.endswith(".alpha")} == {2.0}
    kinds = [found[f"lora_unet_down_blocks_{n}_conv.lora_up.weight"].dtype for n in range(4)]
    # Twice a bfloat16 is one; one and a half times is none.
    assert kinds == [torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.float32]
    for name, update in open_adapter(tmp_path / "k.safetensors").updates.items():
        change = factors[name.replace("_conv", ".conv").replace("blocks_", "blocks.")].change
        np.testing.assert_allclose(
            update.load().rows(0, 6),
            change.scale * change.left @ change.right,
            rtol=1e-6,
            atol=1e-6,
        )


@pytest.mark.parametrize("kind", ["LoHaConfig", "LoKrConfig"])
def test_loha_and_lokr_of_peft_mean_the_same_to_it_as_lora(tmp_path, kind):
    model = small_llama(tmp_path / "base")
    torch.manual_seed(2)
    config = getattr(peft, kind)(r=2, alpha=3, target_modules=["q_proj", "down_proj"])
    adapted = peft.get_peft_model(copy.deepcopy(model), config).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    adapted.save_pretrained(tmp_path / "in")
    done = convert(tmp_path / "in", tmp_path / "out", "peft")
    assert done.error < 1e-6
    found = _read(model, tmp_path / "out")
    assert abs(_logits(found) - _logits(model)).max() > 1e-2
    np.testing.assert_allclose(_logits(found), _logits(adapted), rtol=1e-4, atol=1e-5)


def test_fused_experts_that_peft_wrote_stay_what_they_are(tmp_path):
    torch.manual_seed(1)
    config = transformers.MixtralConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
        num_experts_per_tok=2,
    )
    model = transformers.MixtralForCausalLM(config).eval()
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    settings = {"r": 2, "lora_alpha": 3, "target_modules": [], "target_parameters": names}
    adapted = _trained(model, tmp_path / "in", **settings)
    convert(tmp_path / "in", tmp_path / "out", "peft")
    found = _read(model, tmp_path / "out")
    assert abs(_logits(found) - _logits(model)).max() > 1e-2
    np.testing.assert_allclose(_logits(found), _logits(adapted), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_trained_family_survives_both_dialects(tmp_path):
    from pathlib import Path

    family = Path("~/.cache/weightsmith/testbeds/lora").expanduser()
    if not (family / "adapters").is_dir():
        pytest.skip("the lora family has not been built")
    base = open_checkpoint(family / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(family / "base").eval()
    tokens = torch.arange(4, 40)[None]
    for source in sorted((family / "adapters").iterdir()):
        kohya, out = tmp_path / f"{source.name}.safetensors", tmp_path / source.name
        convert(source, kohya, "kohya", base=base)
        convert(kohya, out, "peft", base=base)
        expected = _logits(_read(model, source), tokens)
        np.testing.assert_allclose(
            _logits(_read(model, out), tokens), expected, rtol=1e-5, atol=1e-5
        )
        facts = inspect_adapter(source, base)
        assert facts.tensors
        assert all(0 < t.share < 1 and t.effective_rank <= t.rank for t in facts.tensors)
