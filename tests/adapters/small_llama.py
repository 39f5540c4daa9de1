"""A Llama of a few hundred numbers, with random weights."""

from __future__ import annotations


def small_llama(folder, **settings):
    """The model, and its checkpoint in `folder`."""
    import torch
    import transformers

    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        **settings,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model
