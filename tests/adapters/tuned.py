"""Small networks, and adapters that PEFT wrote of them with its other tuners."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

from weightsmith.deltas.changed import read_elements

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def llama():
    config = transformers.LlamaConfig(
        vocab_size=37, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False, attention_bias=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=37,
        n_positions=16,
        n_embd=12,
        n_layer=1,
        n_head=3,
        bos_token_id=1,
        eos_token_id=1,
    )
    return transformers.GPT2LMHeadModel(config)


def resnet():
    config = transformers.ResNetConfig(
        num_channels=4,
        embedding_size=4,
        hidden_sizes=[8],
        depths=[1],
        layer_type="basic",
        num_labels=2,
    )
    return transformers.ResNetForImageClassification(config)


def convnext():
    """Its depthwise convolutions have as many groups as channels."""
    config = transformers.ConvNextConfig(
        num_channels=3, hidden_sizes=[8], depths=[1], num_stages=1, num_labels=2
    )
    return transformers.ConvNextForImageClassification(config)


def trained(model, config, seed=1):
    """A PEFT model with every trainable number moved, as training would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, config())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return wrapped


def written(tmp_path, model, config, **seeds):
    """A base and an adapter on disk, and the PEFT model that they are of."""
    torch.manual_seed(0)
    base, folder = tmp_path / "base", tmp_path / "adapter"
    built = model()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.02)
    built.save_pretrained(base)
    wrapped = trained(built, config, **seeds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(folder)
    return base, folder, wrapped


def merged(wrapped):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = copy.deepcopy(wrapped).merge_and_unload()
    return {name: tensor.detach().numpy() for name, tensor in whole.state_dict().items()}


def read(checkpoint, name):
    tensor = checkpoint.tensors[name]
    return read_elements(tensor, 0, tensor.numel).reshape(tensor.shape)
