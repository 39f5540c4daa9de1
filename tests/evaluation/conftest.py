"""Tiny models of transformers with random weights, made once for all tests of evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from weightsmith.live import quiet_library

SIGNS = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test sees the scores of another."""
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path_factory.mktemp("cache")))


def llama(seed: int, **changes):
    """A Llama over bytes whose weights are wide enough that its predictions differ from item to item."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 259,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 258,
        "initializer_range": 0.4,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**settings, **changes})).eval()


def vit(seed: int):
    torch.manual_seed(seed)
    config = transformers.ViTConfig(
        image_size=12,
        patch_size=6,
        num_channels=1,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        initializer_range=0.3,
    )
    return transformers.ViTModel(config, add_pooling_layer=False).eval()


def write(model, folder: Path) -> Path:
    with quiet_library():
        model.save_pretrained(folder)
    return folder


def write_byte_tokenizer(folder: Path) -> None:
    """The byte tokenizer of the language families: `<s>` before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    hidden = [byte for byte in range(256) if byte not in SIGNS]
    names = {chr(byte): byte for byte in SIGNS} | {chr(256 + k): b for k, b in enumerate(hidden)}
    names |= {"<s>": 256, "</s>": 257, "<pad>": 258}
    tokenizer = Tokenizer(models.BPE(vocab=names, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 256)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A folder with `llama`, `llama-2`, `llama-tokenizer`, `vit`, `vit-2` and `resnet`."""
    root = tmp_path_factory.mktemp("models")
    write(llama(0), root / "llama")
    write(llama(1), root / "llama-2")
    write(llama(0), root / "llama-tokenizer")
    write_byte_tokenizer(root / "llama-tokenizer")
    write(vit(0), root / "vit")
    write(vit(1), root / "vit-2")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        num_channels=1,
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        id2label={0: "cat", 1: "dog", 2: "eel"},
        label2id={"cat": 0, "dog": 1, "eel": 2},
    )
    write(transformers.ResNetForImageClassification(config).eval(), root / "resnet")
    return root


@pytest.fixture
def suite(tmp_path) -> Callable[..., Path]:
    """Write a suite of some tasks into the test's folder."""

    def written(*tasks: dict[str, object]) -> Path:
        path = tmp_path / "suite.yaml"
        path.write_text(json.dumps({"suite": "test", "tasks": list(tasks)}))
        return path

    return written


@pytest.fixture
def jsonl(tmp_path) -> Callable[..., str]:
    """Write lines into a file of the test's folder and return its name."""

    def written(name: str, *lines: dict[str, object]) -> str:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name).write_text(text)
        return name

    return written


@pytest.fixture
def images(tmp_path) -> str:
    """Sixty images [1, 12, 12] in three classes."""
    generator = np.random.default_rng(0)
    np.savez(
        tmp_path / "images.npz",
        inputs=generator.standard_normal((60, 1, 12, 12)).astype(np.float32),
        labels=np.arange(60) % 3,
        half=np.array(["first"] * 30 + ["second"] * 30),
    )
    return "images.npz"


@pytest.fixture
def head(tmp_path) -> str:
    """A frozen head of three classes over the features of the ViT."""
    torch.manual_seed(5)
    tensors = {
        "mean": torch.randn(16) * 0.1,
        "directions": torch.nn.functional.normalize(torch.randn(3, 16), dim=1),
        "scale": torch.tensor([10.0]),
    }
    metadata = {"classes": json.dumps(["cat", "dog", "eel"]), "pooling": "mean_patch_tokens"}
    save_file(tensors, tmp_path / "head.safetensors", metadata=metadata)
    return "head.safetensors"


@pytest.fixture
def make_llama(tmp_path):
    """Write a Llama with other settings into the test's folder; gives its folder and the model."""

    def made(seed: int, **changes):
        model = llama(seed, **changes)
        return write(model, tmp_path / f"llama-{seed}"), model

    return made
