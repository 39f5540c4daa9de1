"""A small llama on disk with adapters that peft wrote, and what peft merges of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

TARGETS = ["q_proj", "v_proj", "down_proj"]


def llama(
    root: Path, name: str = "base", dtype: torch.dtype = torch.float32, **config: Any
) -> Path:
    """A llama of two layers and random weights, untied unless `config` says otherwise."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        **config,
    }
    torch.manual_seed(0)
    with _quiet():
        LlamaForCausalLM(LlamaConfig(**settings)).to(dtype).save_pretrained(root / name)
    return root / name


def lora(base: Path, name: str, seed: int, **config: Any) -> Path:
    """A LoRA with random factors, of rank 4 on TARGETS unless `config` says otherwise."""
    from peft import LoraConfig, get_peft_model

    settings = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": TARGETS,
        "task_type": "CAUSAL_LM",
        **config,
    }
    with _quiet():
        model = get_peft_model(_model(base), LoraConfig(**settings))
        torch.manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key or "modules_to_save" in key:
                    parameter.add_(torch.randn(parameter.shape) * 0.2)
        model.save_pretrained(base.parent / name)
    return base.parent / name


def merged(base: Path, adapter: Path, name: str) -> Path:
    """What peft's merge_and_unload makes of a base and an adapter, in float32."""
    from peft import PeftModel

    with _quiet():
        model = PeftModel.from_pretrained(_model(base), adapter).merge_and_unload()
        model.save_pretrained(base.parent / name)
    return base.parent / name


def _model(base: Path) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings of the libraries among themselves are none of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
