"""Small vision-language checkpoints and plain language models beside them, made by transformers' own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
IMAGE = 60
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


def save(model: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a model with random weights, none of them zero or one, as a user would."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    model.to(dtype).save_pretrained(folder)
    return folder


def llava(folder: Path, layers: int = 2, vocabulary: int = 64) -> Path:
    """LLaVA: on disk its language model is under `language_model.`."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
        projection_dim=8,
    )
    text = LlamaConfig(**{**TEXT, "vocab_size": vocabulary}, num_hidden_layers=layers)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        vision_feature_layer=-1,
    )
    return save(LlavaForConditionalGeneration(config), folder)


def llama(folder: Path, layers: int = 2, **changes: Any) -> Path:
    """A plain language model of LLaVA's text part."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{**TEXT, **changes}, num_hidden_layers=layers)
    return save(LlamaForCausalLM(config), folder)


def qwen2_vl(folder: Path, *, tied: bool = False) -> Path:
    """Qwen2-VL: on disk its language model has the names of a plain one."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = {**TEXT, "num_hidden_layers": 2, "rope_parameters": ROPE}
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
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=61,
        vision_start_token_id=62,
        vision_end_token_id=63,
        tie_word_embeddings=tied,
    )
    return save(Qwen2VLForConditionalGeneration(config), folder)


def qwen2(folder: Path, *, tied: bool = False) -> Path:
    """A plain language model of Qwen2-VL's text part."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**TEXT, num_hidden_layers=2, tie_word_embeddings=tied)
    return save(Qwen2ForCausalLM(config), folder)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every stored tensor of a folder."""
    return {k: v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


def renamed(source: Path, folder: Path, prefixes: dict[str, str]) -> Path:
    """A copy of a checkpoint with other name prefixes, the first that fits counting."""
    folder.mkdir()
    named = {}
    for name, tensor in tensors(source).items():
        old = next((old for old in prefixes if name.startswith(old)), None)
        named[name if old is None else prefixes[old] + name[len(old) :]] = tensor
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    return folder
