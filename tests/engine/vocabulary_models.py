"""Small language models with tokenizers of their own, and their merges done in memory by plain torch code."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..tokenizers.tokenizers_made_here import write_tokenizer  # noqa: TID252 - two rooms share it

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

HIDDEN = 16
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_GPT2 = {"n_embd": HIDDEN, "n_layer": 2, "n_head": 2, "n_positions": 64}
_T5 = {"d_model": HIDDEN, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
_BART = {
    "d_model": HIDDEN,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 64,
}


def config_of(architecture: str, rows: int, ids: Mapping[str, int], **more: Any) -> Any:
    """The configuration of a small model with `rows` rows in its tables."""
    t = transformers
    special = {
        f"{role}_id": index for role, index in ids.items() if role[:3] in ("bos", "eos", "pad")
    }
    common = {"vocab_size": rows, **special, **more}
    made: dict[str, Callable[[], Any]] = {
        "llama": lambda: t.LlamaConfig(
            **{**SIZES, "num_key_value_heads": 1, "head_dim": 8, **common}
        ),
        "qwen2": lambda: t.Qwen2Config(**SIZES, **common, num_key_value_heads=1),
        "phi": lambda: t.PhiConfig(**SIZES, **common),
        "gpt2": lambda: t.GPT2Config(**_GPT2, **common),
        "bert": lambda: t.BertConfig(**SIZES, **common, max_position_embeddings=64),
        "t5": lambda: t.T5Config(**_T5, **common, decoder_start_token_id=0),
        "bart": lambda: t.BartConfig(
            **_BART, **common, decoder_start_token_id=0, forced_eos_token_id=None
        ),
    }
    return made[architecture]()


CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "phi": "PhiForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "bert": "BertForMaskedLM",
    "t5": "T5ForConditionalGeneration",
    "bart": "BartForConditionalGeneration",
}


def tokenizer_at(folder: Path) -> Any:
    """The tokenizer that transformers makes of a folder, silently."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoTokenizer.from_pretrained(folder)


def make_model(
    folder: Path,
    architecture: str = "llama",
    tokenizer: str = "qwen",
    *,
    corpus: str = "english",
    extra: Iterable[str] = (),
    size: int = 600,
    more_rows: int = 0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Path:
    """Write a model with random weights and a trained tokenizer; `more_rows` beyond its tokens (or fewer)."""
    write_tokenizer(folder, tokenizer, extra, size=size, corpus=corpus)
    read = tokenizer_at(folder)
    vocabulary = read.get_vocab()
    ids = {
        role: vocabulary[text]
        for role in ("bos_token", "eos_token", "pad_token")
        if (text := getattr(read, role)) is not None
    }
    rows = max(vocabulary.values()) + 1 + more_rows
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, CLASSES[architecture])(
            config_of(architecture, rows, ids, **config)
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
        model.to(dtype).save_pretrained(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def load(folder: Path) -> tuple[Any, Any]:
    """The model (float32, evaluated) and tokenizer of a folder as a user loads them; nothing may be missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.AutoConfig.from_pretrained(folder)
        model, info = getattr(transformers, config.architectures[0]).from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32
        )
    assert not info["missing_keys"], info["missing_keys"]
    assert not info["unexpected_keys"], info["unexpected_keys"]
    assert not info["mismatched_keys"], info["mismatched_keys"]
    return model.eval(), tokenizer_at(folder)


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    """What a model says of a sequence."""
    with torch.no_grad():
        given: dict[str, Any] = {"input_ids": torch.tensor([ids])}
        if model.config.is_encoder_decoder:
            given["decoder_input_ids"] = torch.tensor([ids[:3]])
        return model(**given).logits


def in_memory(folder: Path, tensors: Mapping[str, torch.Tensor], scratch: Path) -> Any:
    """A model with the configuration of a merged folder and tensors that were merged by the test."""
    scratch.mkdir()
    config = (folder / "config.json").read_text()
    (scratch / "config.json").write_text(config)
    save_file(
        {name: t.contiguous() for name, t in tensors.items()},
        scratch / "model.safetensors",
        {"format": "pt"},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = transformers.AutoConfig.from_pretrained(scratch)
        return (
            getattr(transformers, read.architectures[0])
            .from_pretrained(scratch, dtype=torch.float32)
            .eval()
        )


def borrowed_tables(
    tables: list[torch.Tensor],
    vocabularies: list[Mapping[str, int]],
    target: Mapping[str, int],
    *,
    base: int | None = None,
    rows: int | None = None,
) -> list[torch.Tensor]:
    """mergekit's rule, token by token: own row, the only one's, the base's, the mean, zeros; padding is the mean."""
    count = max(target.values()) + 1
    made = [torch.zeros(count, *table.shape[1:]) for table in tables]
    for text, index in target.items():
        own = [
            table[v[text]].float() if text in v and v[text] < len(table) else None
            for table, v in zip(tables, vocabularies, strict=True)
        ]
        present = [row for row in own if row is not None]
        if not present:
            continue
        default = sum(present) / len(present)
        if len(present) > 1 and base is not None and own[base] is not None:
            default = own[base]
        for table, row in zip(made, own, strict=True):
            table[index] = default if row is None else row
    if rows is not None and rows > count:
        made = [
            torch.cat([t, t.mean(0, keepdim=True).expand(rows - count, *t.shape[1:])]) for t in made
        ]
    return made
