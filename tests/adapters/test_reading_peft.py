"""Adapters that the PEFT library writes: every merged tensor is the one that the library merges."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from weightsmith.adapters.adapter_reading import is_adapter, open_adapter
from weightsmith.adapters.attaching import attach
from weightsmith.checkpoints import open_checkpoint
from weightsmith.deltas.changed import read_elements
from weightsmith.errors import CompatibilityError

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def llama(**changes):
    config = {
        "vocab_size": 37, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "tie_word_embeddings": False, "attention_bias": True,
    }  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**config, **changes}))


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=37, n_positions=16, n_embd=12, n_layer=2, n_head=3)
    )


def opened(base: Path, *adapters: tuple[Path, float]):
    return attach(open_checkpoint(base), [(open_adapter(path), s) for path, s in adapters])


def trained(model, config, seed=1):
    """A PEFT model with every trainable number moved, as training would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                factor = (
                    1.0
                    if "lora_" in name and "magnitude" not in name
                    else parameter.abs().mean() + 0.1
                )
                parameter.add_(0.3 * factor * noise)
    return wrapped


def saved(wrapped, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(folder)
    return folder


def merged(wrapped) -> dict[str, np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = wrapped.merge_and_unload(safe_merge=True)
    return {name: tensor.detach().double().numpy() for name, tensor in model.state_dict().items()}


def values(checkpoint, name) -> np.ndarray:
    tensor = checkpoint.tensors[name]
    return read_elements(tensor, 0, tensor.numel).reshape(tensor.shape)


def agree(checkpoint, expected, base=None) -> int:
    """Compare every tensor with PEFT's; returns how many differ from the base's."""
    changed = 0
    for name in checkpoint.tensors:
        np.testing.assert_allclose(
            values(checkpoint, name), expected[name], rtol=1e-6, atol=1e-6, err_msg=name
        )
        changed += base is not None and not np.array_equal(expected[name], values(base, name))
    return changed


def round_trip(tmp_path, model, config, least: int):
    torch.manual_seed(0)
    base = tmp_path / "base"
    model.save_pretrained(base)
    wrapped = trained(model, config)
    folder = saved(wrapped, tmp_path / "adapter")
    changed = agree(opened(base, (folder, 1.0)), merged(wrapped), open_checkpoint(base))
    assert changed >= least
    return base, folder


CONFIGS = {
    "plain": {"r": 4, "lora_alpha": 16},
    "rslora": {"r": 4, "lora_alpha": 16, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 16,
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "q_proj": 3, "mlp.*": 5},
        "alpha_pattern": {"^model.layers.0.*k_proj": 3, "k_proj": 7},
    },
    "patterns that look ahead and behind": {
        "r": 4,
        "lora_alpha": 16,
        "rank_pattern": {r"(?!.*\.0\.).*(?<!o)_proj": 2, r"model(?=\.).*o_proj": 3},
        "alpha_pattern": {r"(?!.*mlp).*(?:q|v)_proj": 3},
    },
    "patterns of rslora": {
        "r": 4,
        "lora_alpha": 16,
        "rank_pattern": {"q_proj": 3},
        "use_rslora": True,
    },
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True},
    "dora of rslora": {"r": 4, "lora_alpha": 8, "use_dora": True, "use_rslora": True},
    "more rank than rows": {"r": 20, "lora_alpha": 8},
    "orthogonal": {"r": 4, "lora_alpha": 8, "init_lora_weights": "orthogonal"},
}


@pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS)
def test_every_tensor_is_the_one_that_peft_merges(tmp_path, settings):
    config = peft.LoraConfig(target_modules=TARGETS, task_type="CAUSAL_LM", **settings)
    round_trip(tmp_path, llama(), config, 14)


def test_biases_of_factors_are_scaled_and_added(tmp_path):
    config = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules=["q_proj", "o_proj"], lora_bias=True
    )
    round_trip(tmp_path, llama(), config, 8)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_replace_those_of_the_base(tmp_path, bias):
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], bias=bias)
    round_trip(tmp_path, llama(), config, 4)


def test_whole_modules_replace_those_of_the_base(tmp_path):
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens", "norm"]
    )
    round_trip(tmp_path, llama(), config, 5)


def test_biases_that_peft_saves_of_both_wrapped_layers_count_once(tmp_path):
    model = Convolutions()
    base = tmp_path / "base.safetensors"
    save_file({n: t.clone() for n, t in model.state_dict().items()}, base)
    config = peft.LoraConfig(r=2, target_modules=["one"], bias="all", modules_to_save=["linear"])
    wrapped = trained(model, config)
    folder = saved(wrapped, tmp_path / "adapter")
    names = load_file(folder / "adapter_model.safetensors").keys()
    assert {name.split("linear.")[1] for name in names if "linear" in name} > {"bias", "weight"}
    trained_ones = wrapped.base_model.model.linear.modules_to_save.default.state_dict()
    seen = opened(base, (folder, 1.0))
    for part, expected in trained_ones.items():
        np.testing.assert_array_equal(values(seen, f"linear.{part}"), expected.double().numpy())


@pytest.mark.parametrize("dora", [False, True])
def test_embeddings_and_heads_have_their_factors_the_other_way_round(tmp_path, dora):
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["embed_tokens", "lm_head", "q_proj"], use_dora=dora
    )
    round_trip(tmp_path, llama(), config, 4)


@pytest.mark.parametrize("dora", [False, True])
def test_matrices_of_gpt2_are_stored_as_inputs_by_outputs(tmp_path, dora):
    # c_proj of attention is square, so its orientation cannot be told from its shape.
    config = peft.LoraConfig(
        r=3,
        lora_alpha=7,
        target_modules=["c_attn", "c_proj", "c_fc"],
        fan_in_fan_out=True,
        use_dora=dora,
    )
    round_trip(tmp_path, gpt2(), config, 8)


def test_the_orientation_of_gpt2_does_not_need_the_adapters_word(tmp_path):
    config = peft.LoraConfig(r=3, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    base, folder = round_trip(tmp_path, gpt2(), config, 6)
    before = opened(base, (folder, 1.0))
    content = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**content, "fan_in_fan_out": False}))
    after = opened(base, (folder, 1.0))
    for name in before.tensors:
        assert np.array_equal(values(before, name), values(after, name))


def test_a_word_about_orientation_does_not_turn_matrices_that_a_base_stores_as_usual(tmp_path):
    # PEFT sets `fan_in_fan_out` to false where a module is no Conv1D.
    config = peft.LoraConfig(r=3, target_modules=["q_proj", "o_proj"])
    base, folder = round_trip(tmp_path, llama(), config, 4)
    before = opened(base, (folder, 1.0))
    content = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**content, "fan_in_fan_out": True}))
    after = opened(base, (folder, 1.0))
    for name in before.tensors:
        assert np.array_equal(values(before, name), values(after, name))


def test_rows_of_trained_tokens_take_the_place_of_the_bases(tmp_path):
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[5, 1, 36])
    base, folder = round_trip(tmp_path, llama(), config, 3)
    tokens = load_file(folder / "adapter_model.safetensors")
    delta = next(t for n, t in tokens.items() if n.endswith("trainable_tokens_delta"))
    found = values(opened(base, (folder, 1.0)), "model.embed_tokens.weight")
    assert np.array_equal(found[[5, 1, 36]], delta.double().numpy())


def test_an_adapter_of_tokens_alone_is_read(tmp_path):
    config = peft.TrainableTokensConfig(token_indices=[2, 9], target_modules=["embed_tokens"])
    round_trip(tmp_path, llama(), config, 1)


def test_trained_tokens_of_a_tied_model_change_the_one_table(tmp_path):
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[5, 1])
    round_trip(tmp_path, llama(tie_word_embeddings=True), config, 3)


def test_trained_tokens_change_a_tied_head_that_the_base_stores_as_well(tmp_path):
    base = tmp_path / "base"
    model = llama(tie_word_embeddings=True)
    model.save_pretrained(base)
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[5, 1])
    wrapped = trained(model, config)
    folder = saved(wrapped, tmp_path / "adapter")
    assert agree(opened(base, (folder, 1.0)), merged(wrapped), open_checkpoint(base)) == 4


@pytest.mark.parametrize("kind", ["LoHaConfig", "LoKrConfig"])
def test_lycoris_forms_in_pefts_files(tmp_path, kind):
    extra = {"decompose_both": True} if kind == "LoKrConfig" else {}
    config = getattr(peft, kind)(r=2, alpha=5, target_modules=["q_proj", "down_proj"], **extra)
    round_trip(tmp_path, llama(), config, 4)


class Convolutions(torch.nn.Module):
    """Convolutions of several kinds, a table and a matrix."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one = torch.nn.Conv2d(6, 10, 1)
        self.three = torch.nn.Conv2d(5, 7, 3)
        self.line = torch.nn.Conv1d(5, 7, 3)
        self.space = torch.nn.Conv3d(3, 4, 2)
        self.linear = torch.nn.Linear(6, 6)

    def forward(self, x):
        return x


@pytest.mark.parametrize("dora", [False, True])
def test_convolutions_of_every_kind(tmp_path, dora):
    model = Convolutions()
    base = tmp_path / "base.safetensors"
    save_file({n: t.clone() for n, t in model.state_dict().items()}, base)
    targets = ["one", "three", "line", "space", "linear"]
    wrapped = trained(
        model, peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, use_dora=dora)
    )
    folder = saved(wrapped, tmp_path / "adapter")
    assert agree(opened(base, (folder, 1.0)), merged(wrapped), open_checkpoint(base)) == 5


@pytest.mark.parametrize("conv", [False, True])
def test_lycoris_convolutions_in_pefts_files(tmp_path, conv):
    for kind in ("LoHaConfig", "LoKrConfig"):
        model = Convolutions()
        base = tmp_path / "base.safetensors"
        save_file({n: t.clone() for n, t in model.state_dict().items()}, base)
        config = getattr(peft, kind)(
            r=2, alpha=3, target_modules=["one", "three", "linear"], use_effective_conv2d=conv
        )
        wrapped = trained(model, config)
        folder = saved(wrapped, tmp_path / kind)
        assert agree(opened(base, (folder, 1.0)), merged(wrapped), open_checkpoint(base)) == 3


@pytest.mark.parametrize("kind", ["LoHaConfig", "LoKrConfig"])
def test_lycoris_convolutions_of_one_dimension_in_pefts_files(tmp_path, kind):
    model = Convolutions()
    base = tmp_path / "base.safetensors"
    save_file({n: t.clone() for n, t in model.state_dict().items()}, base)
    wrapped = trained(model, getattr(peft, kind)(r=1, alpha=3, target_modules=["line"]))
    folder = saved(wrapped, tmp_path / kind)
    assert agree(opened(base, (folder, 1.0)), merged(wrapped), open_checkpoint(base)) == 1


def test_a_lokr_whose_axes_peft_mixes_up_is_refused(tmp_path):
    config = peft.LoKrConfig(r=50, alpha=3, target_modules=["line"])
    folder = saved(trained(Convolutions(), config), tmp_path / "adapter")
    with pytest.raises(CompatibilityError, match="one-dimensional convolution"):
        open_adapter(folder)


def test_convolutions_in_groups_are_refused_as_what_they_are(tmp_path):
    model = torch.nn.ModuleDict({"groups": torch.nn.Conv2d(4, 6, 3, groups=2)})
    folder = saved(
        trained(model, peft.LoraConfig(r=4, target_modules=["groups"])), tmp_path / "adapter"
    )
    with pytest.raises(CompatibilityError, match="convolution in groups"):
        open_adapter(folder)


class Experts(torch.nn.Module):
    """Fused experts whose parameters have no modules of their own."""

    def __init__(self, is_transposed, wide, narrow):
        super().__init__()
        self.is_transposed = is_transposed
        shapes = ((4, wide, 2 * narrow), (4, narrow, wide))
        up, down = shapes if is_transposed else tuple((e, o, i) for e, i, o in shapes)
        self.gate_up_proj = torch.nn.Parameter(torch.randn(up))
        self.down_proj = torch.nn.Parameter(torch.randn(down))

    def forward(self, x):
        return x


class Mixture(torch.nn.Module):
    def __init__(self, is_transposed, wide, narrow):
        super().__init__()
        torch.manual_seed(0)
        self.mlp = torch.nn.Module()
        self.mlp.experts = Experts(is_transposed, wide, narrow)
        self.router = torch.nn.Linear(wide, 4)

    def forward(self, x):
        return x


@pytest.mark.parametrize(
    "targets", [["gate_up_proj"], ["down_proj"], ["down_proj", "gate_up_proj"]]
)
@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize(("wide", "narrow"), [(6, 5), (6, 6), (6, 3)])
def test_fused_experts(tmp_path, targets, is_transposed, wide, narrow):
    model = Mixture(is_transposed, wide, narrow)
    base = tmp_path / "base"
    base.mkdir()
    save_file({n: t.clone() for n, t in model.state_dict().items()}, base / "model.safetensors")
    # Only the family says how experts are stored where inputs and outputs are as many.
    kind = "gpt_oss" if is_transposed else "qwen3_moe"
    (base / "config.json").write_text(json.dumps({"model_type": kind}))
    config = peft.LoraConfig(
        r=2,
        lora_alpha=5,
        target_modules=["router"],
        target_parameters=[f"mlp.experts.{name}" for name in targets],
        rank_pattern={"experts.down_proj": 3},
    )
    wrapped = trained(model, config)
    folder = saved(wrapped, tmp_path / "adapter")
    assert agree(opened(base, (folder, 1.0)), merged(wrapped), open_checkpoint(base)) == 1 + len(
        targets
    )


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.parametrize("family", ["Mixtral", "Qwen3Moe"])
def test_fused_experts_of_a_base_that_stores_them_apart(tmp_path, family):
    size = {"vocab_size": 37, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4}
    few = {
        "num_local_experts": 3,
        "num_experts": 3,
        "moe_intermediate_size": 6,
        "num_experts_per_tok": 2,
    }
    config = getattr(transformers, f"{family}Config")(**size, **heads, **few)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    base = tmp_path / "base"
    model.save_pretrained(base)
    settings = peft.LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=["q_proj"],
        target_parameters=[*EXPERTS, "mlp.gate.weight"],
    )
    wrapped = trained(model, settings)
    folder = saved(wrapped, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.merge_and_unload().save_pretrained(tmp_path / "merged")
    expected = open_checkpoint(tmp_path / "merged")
    before = open_checkpoint(base)
    assert not any("gate_up_proj" in name for name in before.tensors)
    seen = opened(base, (folder, 1.0))
    merged_ones = {name: values(expected, name) for name in expected.tensors}
    # Three matrices of three experts, a router and a query in each of two layers.
    assert agree(seen, merged_ones, before) == 2 * (9 + 2)


def test_several_adapters_of_fused_experts_and_one_that_replaces_them(tmp_path):
    model = Mixture(False, 6, 3)
    base = tmp_path / "base.safetensors"
    stored = {n: t.clone() for n, t in model.state_dict().items()}
    save_file(stored, base)
    wrapped = trained(
        model, peft.LoraConfig(r=2, target_modules=["router"], target_parameters=EXPERTS[1:])
    )
    one = saved(wrapped, tmp_path / "one")
    two = tmp_path / "two"
    two.mkdir()
    name = "mlp.experts.down_proj"
    other = torch.randn(stored[name].shape)
    save_file({f"base_model.model.{name}": other}, two / "adapter_model.safetensors")
    (two / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    change = merged(wrapped)[name] - stored[name].double().numpy()
    exact = 0.5 * stored[name].double().numpy() + 0.5 * other.double().numpy() + 0.5 * change
    found = values(opened(base, (two, 0.5), (one, 0.5)), name)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_adapters_initialised_from_their_base_are_changes_of_it_with_their_beginning(
    tmp_path, method
):
    base = tmp_path / "base"
    model = llama()
    model.save_pretrained(base)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], init_lora_weights=method
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, config)
    initial = saved(wrapped, tmp_path / "initial")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    folder = saved(wrapped, tmp_path / "adapter")
    with pytest.raises(CompatibilityError, match=method):
        open_adapter(folder)
    adapter = open_adapter(folder, initial=initial)
    agree(attach(open_checkpoint(base), [(adapter, 1.0)]), merged(wrapped))


@pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS)
def test_one_adapter_of_strength_1_gives_the_adapted_models_answers(tmp_path, settings):
    base = tmp_path / "base"
    model = llama()
    model.save_pretrained(base)
    config = peft.LoraConfig(target_modules=TARGETS, **settings)
    wrapped = trained(model, config).eval()
    folder = saved(wrapped, tmp_path / "adapter")
    words = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        expected = wrapped(words).logits
        seen = opened(base, (folder, 1.0))
        fresh = llama().eval()
        fresh.load_state_dict({n: torch.from_numpy(values(seen, n)).float() for n in seen.tensors})
        torch.testing.assert_close(fresh(words).logits, expected, rtol=1e-4, atol=1e-5)


def test_attention_with_one_matrix_for_its_inputs(tmp_path):
    # PEFT adds the change of the output twice, when it runs the model too.
    model = torch.nn.Sequential(torch.nn.MultiheadAttention(8, 2))
    base = tmp_path / "base.safetensors"
    save_file({n: t.clone() for n, t in model.state_dict().items()}, base)
    wrapped = trained(model, peft.LoraConfig(r=3, lora_alpha=5, target_modules=["0"]))
    folder = saved(wrapped, tmp_path / "adapter")
    assert agree(opened(base, (folder, 1.0)), merged(wrapped), open_checkpoint(base)) == 2


def test_the_older_pickle_reads_as_the_newer_file(tmp_path):
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj"], use_dora=True)
    base, folder = round_trip(tmp_path, llama(), config, 2)
    newer = opened(base, (folder, 1.0))
    expected = values(newer, "model.layers.1.self_attn.q_proj.weight")
    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()
    found = values(opened(base, (folder, 1.0)), "model.layers.1.self_attn.q_proj.weight")
    assert np.array_equal(found, expected)


def test_the_adapters_name_in_keys_means_nothing(tmp_path):
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    base, folder = round_trip(tmp_path, llama(), config, 3)
    expected = opened(base, (folder, 1.0))
    tensors = load_file(folder / "adapter_model.safetensors")
    renamed = {
        n.replace(".weight", ".mine.weight") if "lora" in n else n: t for n, t in tensors.items()
    }
    head = "base_model.model.lm_head"
    renamed[f"{head}.modules_to_save.mine.weight"] = renamed.pop(f"{head}.weight")
    save_file(renamed, folder / "adapter_model.safetensors")
    found = opened(base, (folder, 1.0))
    for name in expected.tensors:
        assert np.array_equal(values(found, name), values(expected, name))


def test_a_bfloat16_base_is_rounded_once(tmp_path):
    # PEFT rounds the change to bfloat16 before it adds it, and the sum again.
    model = llama().to(torch.bfloat16)
    base = tmp_path / "base"
    model.save_pretrained(base)
    wrapped = trained(model, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    folder = saved(wrapped, tmp_path / "adapter")
    checkpoint = opened(base, (folder, 1.0))
    name = "model.layers.0.self_attn.q_proj.weight"
    factors = load_file(folder / "adapter_model.safetensors")
    start = f"base_model.model.{name.removesuffix('.weight')}"
    change = factors[f"{start}.lora_B.weight"].double() @ factors[f"{start}.lora_A.weight"].double()
    # alpha / r is 8 / 4.
    exact = load_file(base / "model.safetensors")[name].double() + 2.0 * change
    assert str(checkpoint.tensors[name].dtype) == "float32"
    assert str(checkpoint.dtype_of(name)) == "bfloat16"
    assert np.array_equal(values(checkpoint, name), exact.float().double().numpy())


def test_what_is_an_adapter_is_told_from_names(tmp_path):
    config = peft.LoraConfig(r=4, target_modules=["q_proj"])
    base, folder = round_trip(tmp_path, llama(), config, 2)
    assert is_adapter(folder)
    assert is_adapter(folder / "adapter_model.safetensors")
    assert not is_adapter(base)
    assert not is_adapter(base / "model.safetensors")
    assert not is_adapter(tmp_path / "nothing")


def test_the_description_says_what_is_stored(tmp_path):
    config = peft.LoraConfig(r=4, lora_alpha=16, use_rslora=True, target_modules=["q_proj"])
    _, folder = round_trip(tmp_path, llama(), config, 2)
    adapter = open_adapter(folder)
    update = adapter.updates["model.layers.0.self_attn.q_proj.weight"]
    assert adapter.dialect == "peft"
    assert (update.rank, update.alpha, update.scale, update.shape) == (4, 16.0, 8.0, (16, 16))


def test_tied_factors_are_added_once(tmp_path):
    # PEFT adds them twice to the one table that both names stand for when it merges; run, the model has them once.
    base = tmp_path / "base"
    model = llama(tie_word_embeddings=True)
    model.save_pretrained(base)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["embed_tokens"], ensure_weight_tying=True
    )
    wrapped = trained(model, config).eval()
    folder = saved(wrapped, tmp_path / "adapter")
    words = torch.arange(12).reshape(2, 6)
    seen = opened(base, (folder, 1.0))
    fresh = llama(tie_word_embeddings=True).eval()
    fresh.load_state_dict(
        {n: torch.from_numpy(values(seen, n)).float() for n in seen.tensors}, strict=False
    )
    with torch.no_grad():
        torch.testing.assert_close(fresh(words).logits, wrapped(words).logits, rtol=1e-4, atol=1e-5)


def test_both_ends_of_a_tied_model_may_be_replaced_alike(tmp_path):
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True
    )
    round_trip(tmp_path, llama(tie_word_embeddings=True), config, 3)
