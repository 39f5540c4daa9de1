"""Tiny networks of families whose files and networks name tensors otherwise, as transformers' own classes make them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as hub
from safetensors.torch import load_file, save_file

from weightsmith.live import quiet_library

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
TEXT = {**SIZE, "num_key_value_heads": 1, "max_position_embeddings": 32}
EQUAL_HEADS = {**TEXT, "num_key_value_heads": 2}
TOWER = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
IMAGES = {
    "image_size": 12,
    "patch_size": 6,
    "num_channels": 1,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
WIDE = {key: value for key, value in IMAGES.items() if key != "intermediate_size"}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 1,
}
SHORT_TEXT = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
AUDIO = {
    "model_type": "qwen2_audio_encoder",
    "d_model": 8,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "num_mel_bins": 8,
    "max_source_positions": 16,
}
FOUR = {"num_experts": 4, "moe_intermediate_size": 12}


def _of(kind: str, config: str, **keys: Any) -> Callable[[], Any]:
    return lambda: getattr(hub, kind)(getattr(hub, config)(**keys))


def _seen(
    kind: str, config: str, text: str, vision: str, tower: Mapping[str, Any] = TOWER, **more: Any
) -> Callable[[], Any]:
    """A vision-language model of a text and a vision configuration."""

    def make() -> Any:
        own = {"head_dim": 8} if "Gemma" in text else {}
        parts = {
            "text_config": getattr(hub, text)(**TEXT, **own).to_dict(),
            "vision_config": getattr(hub, vision)(**tower).to_dict(),
        }
        return getattr(hub, kind)(getattr(hub, config)(**parts, **more))

    return make


def _qwen_vl(kind: str, config: str, **vision: Any) -> Callable[[], Any]:
    text = {**TEXT, "rope_parameters": ROPE}
    return _of(kind, config, text_config=text, vision_config={**QWEN_VISION, **vision})


LLAMA_CLIP = ("LlamaConfig", "CLIPVisionConfig")
MODELS: Mapping[str, Callable[[], Any]] = {
    "gemma3": _seen(
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        "Gemma3TextConfig",
        "SiglipVisionConfig",
        mm_tokens_per_image=4,
    ),
    "llava": _seen("LlavaForConditionalGeneration", "LlavaConfig", *LLAMA_CLIP),
    "llava_next": _seen("LlavaNextForConditionalGeneration", "LlavaNextConfig", *LLAMA_CLIP),
    "vipllava": _seen(
        "VipLlavaForConditionalGeneration",
        "VipLlavaConfig",
        *LLAMA_CLIP,
        vision_feature_layers=[-1, -2],
    ),
    "llava_onevision": _seen(
        "LlavaOnevisionForConditionalGeneration",
        "LlavaOnevisionConfig",
        "LlamaConfig",
        "SiglipVisionConfig",
    ),
    "aya_vision": _seen(
        "AyaVisionForConditionalGeneration",
        "AyaVisionConfig",
        "Cohere2Config",
        "SiglipVisionConfig",
    ),
    "mistral3": _seen(
        "Mistral3ForConditionalGeneration", "Mistral3Config", "MistralConfig", "PixtralVisionConfig"
    ),
    "internvl": _seen(
        "InternVLForConditionalGeneration",
        "InternVLConfig",
        "Qwen2Config",
        "InternVLVisionConfig",
        {**TOWER, "image_size": [8, 8], "patch_size": [4, 4]},
    ),
    "aria": _of(
        "AriaForConditionalGeneration",
        "AriaConfig",
        text_config={
            **TEXT,
            "model_type": "aria_text",
            "moe_num_experts": 4,
            "moe_topk": 2,
            "moe_num_shared_experts": 1,
        },
        vision_config={"model_type": "idefics3_vision", **TOWER},
        projector_patch_to_query_dict={4: 4},
    ),
    "qwen2_vl": _qwen_vl(
        "Qwen2VLForConditionalGeneration", "Qwen2VLConfig", embed_dim=8, mlp_ratio=2
    ),
    "qwen2_5_vl": _qwen_vl(
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        out_hidden_size=16,
        intermediate_size=12,
    ),
    "qwen2_audio": _of(
        "Qwen2AudioForConditionalGeneration",
        "Qwen2AudioConfig",
        text_config={**TEXT, "model_type": "qwen2"},
        audio_config=AUDIO,
    ),
    "vit": _of("ViTForImageClassification", "ViTConfig", **IMAGES),
    "deit": _of("DeiTForImageClassification", "DeiTConfig", **IMAGES),
    "vit_msn": _of("ViTMSNForImageClassification", "ViTMSNConfig", **IMAGES),
    "beit": _of(
        "BeitForImageClassification", "BeitConfig", **IMAGES, use_relative_position_bias=True
    ),
    "dinov2": _of("Dinov2ForImageClassification", "Dinov2Config", **WIDE, mlp_ratio=2),
    "dinov2 gated": _of("Dinov2Model", "Dinov2Config", **WIDE, mlp_ratio=2, use_swiglu_ffn=True),
    "swin": _of(
        "SwinForImageClassification",
        "SwinConfig",
        image_size=16,
        patch_size=2,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=2,
    ),
    "segformer": _of(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        hidden_sizes=[8] * 4,
        depths=[1] * 4,
        num_attention_heads=[1] * 4,
        decoder_hidden_size=8,
    ),
    "siglip": _of("SiglipModel", "SiglipConfig", text_config=SHORT_TEXT, vision_config=TOWER),
    "siglip vision": _of("SiglipVisionModel", "SiglipVisionConfig", **TOWER),
    "clip text": _of("CLIPTextModel", "CLIPTextConfig", **SHORT_TEXT),
    "clip projected": _of("CLIPTextModelWithProjection", "CLIPTextConfig", **SHORT_TEXT),
    "gpt_neox": _of("GPTNeoXForCausalLM", "GPTNeoXConfig", **SIZE),
    "granitemoe": _of(
        "GraniteMoeForCausalLM",
        "GraniteMoeConfig",
        **TEXT,
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "mixtral": _of("MixtralForCausalLM", "MixtralConfig", **TEXT, num_local_experts=4),
    "phimoe": _of("PhimoeForCausalLM", "PhimoeConfig", **TEXT, num_local_experts=4),
    "qwen2_moe": _of(
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        **EQUAL_HEADS,
        **FOUR,
        shared_expert_intermediate_size=12,
    ),
    "qwen3_moe": _of("Qwen3MoeForCausalLM", "Qwen3MoeConfig", **TEXT, **FOUR),
    "lfm2_moe": _of(
        "Lfm2MoeForCausalLM",
        "Lfm2MoeConfig",
        **TEXT,
        **FOUR,
        num_experts_per_tok=2,
        num_dense_layers=1,
        layer_types=["full_attention", "conv"],
    ),
    "ernie4_5_moe": _of(
        "Ernie4_5_MoeForCausalLM",
        "Ernie4_5_MoeConfig",
        **TEXT,
        moe_num_experts=4,
        moe_intermediate_size=12,
        moe_layer_start_index=1,
    ),
    "nemotron_h": _of(
        "NemotronHForCausalLM",
        "NemotronHConfig",
        **{**TEXT, "num_hidden_layers": 3},
        layers_block_type=["mamba", "attention", "moe"],
        head_dim=8,
        mamba_num_heads=4,
        mamba_head_dim=8,
        n_groups=1,
        ssm_state_size=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=12,
        moe_shared_expert_intermediate_size=12,
    ),
    "llama": _of("LlamaForCausalLM", "LlamaConfig", **TEXT),
    "bert": _of("BertForMaskedLM", "BertConfig", **SIZE),
}


def build(name: str, seed: int = 0) -> Any:
    """A network with random weights."""
    with warnings.catch_warnings(), quiet_library():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = MODELS[name]().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def save(model: Any, folder: Path) -> Path:
    """Its checkpoint as save_pretrained writes it."""
    with warnings.catch_warnings(), quiet_library():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by the names in its file."""
    return load_file(folder / "model.safetensors")


def write(folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Path:
    """A checkpoint of these tensors."""
    folder.mkdir(parents=True)
    own = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(own, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    """The configuration of a checkpoint."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found
