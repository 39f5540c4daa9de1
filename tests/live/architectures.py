"""Tiny networks of every architecture that tests and families build, with inputs for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from weightsmith.live import quiet_library
from weightsmith.testbeds.families import pair
from weightsmith.testbeds.families.moe import upcycle
from weightsmith.testbeds.models import byte_llama, vit

SIZE = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FEW = {**SIZE, "num_key_value_heads": 1, "max_position_embeddings": 32}
IMAGE = 44
TINY_LLAMA = byte_llama.LlamaSize(width=16, layers=2, heads=4, key_value_heads=2, inner=24)


@dataclass(frozen=True)
class Architecture:
    """How a network is made, and what it is run on."""

    make: Callable[[], Any]
    batch: Callable[[], dict[str, torch.Tensor]]


def tokens(rows: int = 2, length: int = 7, vocabulary: int = 40) -> dict[str, torch.Tensor]:
    drawn = torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(5))
    return {"input_ids": drawn}


def padded() -> dict[str, torch.Tensor]:
    batch = tokens()
    mask = torch.ones_like(batch["input_ids"])
    mask[1, 4:] = 0
    return {**batch, "attention_mask": mask}


def paired() -> dict[str, torch.Tensor]:
    return {**tokens(), "decoder_input_ids": tokens(2, 4)["input_ids"]}


def images(side: int = 12, channels: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    return {"pixel_values": torch.randn(2, channels, side, side, generator=generator)}


def seen() -> dict[str, torch.Tensor]:
    """Texts with one image of four tokens each."""
    rows = tokens(2, 9)["input_ids"]
    rows[:, 1:5] = IMAGE
    return {"input_ids": rows, **images(8, 3)}


def of(model: str, config: str, batch: Callable[[], Any] = tokens, **keys: Any) -> Architecture:
    def make() -> Any:
        return getattr(transformers, model)(getattr(transformers, config)(**keys))

    return Architecture(make, batch)


def llava() -> Any:
    vision = transformers.CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
        projection_dim=8,
    )
    text = transformers.LlamaConfig(**FEW)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, vision_feature_layer=-1
    )
    return transformers.LlavaForConditionalGeneration(config)


def qwen2_vl() -> Any:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    vision = {
        "depth": 2,
        "embed_dim": 8,
        "hidden_size": 16,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 1,
        "in_channels": 3,
    }
    config = transformers.Qwen2VLConfig(
        text_config={**FEW, "rope_parameters": rope},
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=45,
        vision_start_token_id=46,
        vision_end_token_id=47,
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


T5 = {"vocab_size": 48, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
T5 |= {"decoder_start_token_id": 0}
BART = {
    "vocab_size": 48,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
}
GPT2 = {"vocab_size": 48, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
VIT = {
    "image_size": 12,
    "patch_size": 6,
    "num_channels": 1,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
RESNET = {"num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]}
# SmolLM2-135M but for its depth and its tables.
SMOLLM = {
    "vocab_size": 64,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

FAMILIES: Mapping[str, Architecture] = {
    "vision": Architecture(lambda: vit.new_model(vit.VitSize(16, 2, 2), 0), lambda: images(24)),
    "pair": Architecture(lambda: pair._new_model(0), lambda: images(24)),
    "language and lora": Architecture(lambda: byte_llama.new_model(TINY_LLAMA, 0), tokens),
    "moe": Architecture(lambda: upcycle(byte_llama.new_model(TINY_LLAMA, 0), 0), tokens),
    "embedding": of("BertModel", "BertConfig", padded, **SIZE),
    "smollm": of("LlamaForCausalLM", "LlamaConfig", **SMOLLM),
}
ARCHITECTURES: Mapping[str, Architecture] = {
    **{f"family {name}": made for name, made in FAMILIES.items()},
    "llama": of("LlamaForCausalLM", "LlamaConfig", padded, **FEW),
    "llama tied": of("LlamaForCausalLM", "LlamaConfig", **FEW, tie_word_embeddings=True),
    "llama classes": of(
        "LlamaForSequenceClassification", "LlamaConfig", padded, **FEW, num_labels=3
    ),
    "mistral": of("MistralForCausalLM", "MistralConfig", **FEW, sliding_window=4),
    "qwen2": of("Qwen2ForCausalLM", "Qwen2Config", **FEW),
    "phi": of("PhiForCausalLM", "PhiConfig", **FEW),
    "phi3": of("Phi3ForCausalLM", "Phi3Config", **FEW),
    "gemma3": of("Gemma3ForCausalLM", "Gemma3TextConfig", **FEW, head_dim=8, sliding_window=4),
    "neox": of("GPTNeoXForCausalLM", "GPTNeoXConfig", **SIZE),
    "gpt2": of("GPT2LMHeadModel", "GPT2Config", **GPT2),
    "mixtral": of("MixtralForCausalLM", "MixtralConfig", **FEW, num_local_experts=4),
    "gpt-oss": of("GptOssForCausalLM", "GptOssConfig", **FEW, head_dim=8, num_local_experts=4),
    "qwen3 moe": of(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        **FEW,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
    ),
    "bert": of("BertModel", "BertConfig", padded, **SIZE),
    "bert masked": of("BertForMaskedLM", "BertConfig", padded, **SIZE),
    "bert classes": of("BertForSequenceClassification", "BertConfig", padded, **SIZE, num_labels=3),
    "roberta masked": of("RobertaForMaskedLM", "RobertaConfig", padded, **SIZE),
    "t5": of("T5ForConditionalGeneration", "T5Config", paired, **T5),
    "bart": of("BartForConditionalGeneration", "BartConfig", paired, **BART),
    "vit": of("ViTModel", "ViTConfig", images, **VIT),
    "vit classes": of("ViTForImageClassification", "ViTConfig", images, **VIT, num_labels=3),
    "clip vision": of("CLIPVisionModel", "CLIPVisionConfig", images, **VIT, projection_dim=8),
    "resnet": of(
        "ResNetForImageClassification", "ResNetConfig", images, **RESNET, layer_type="basic"
    ),
    # One block that is called for every layer.
    "albert masked": of("AlbertForMaskedLM", "AlbertConfig", padded, **SIZE, embedding_size=8),
    "deepseek v3": of(
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        **{**FEW, "num_key_value_heads": 2},
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
    ),
    # Tables that no file has.
    "pegasus": of("PegasusForConditionalGeneration", "PegasusConfig", paired, **BART),
    "llava": Architecture(llava, seen),
    "qwen2-vl": Architecture(qwen2_vl, tokens),
}


def save(name: str, folder: Path, seed: int = 0) -> Path:
    """A checkpoint of an architecture with random weights, none of them zero or one."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[name].make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2)
        for key, buffer in model.named_buffers():
            if key.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape) * 0.1)
    with quiet_library():
        model.save_pretrained(folder)
    return folder


def reference(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """What from_pretrained makes of a checkpoint, in evaluation mode."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model_class = getattr(transformers, config.architectures[0])
    own = {"add_pooling_layer": False} if model_class is transformers.ViTModel else {}
    stored = stored_tensors(folder)
    if any("pooler." in name for name in stored):
        own = {}
    with quiet_library():
        return model_class.from_pretrained(folder, dtype=dtype, **own).eval()


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint as its files have it."""
    from safetensors.torch import load_file

    return {
        k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()
    }
