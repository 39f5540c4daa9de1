"""The small Llama of the language families: tokens are the bytes of UTF-8 and three special tokens.

The token id of a byte is its value. A text is `<s>`, its bytes, `</s>`; training rows are texts one after another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from weightsmith.errors import VerificationError
from weightsmith.testbeds.models.vit import quiet_library

BEGIN, END, PADDING = 256, 257, 258
VOCABULARY = 259
ROW = 128


@dataclass(frozen=True, slots=True)
class LlamaSize:
    """The size of a Llama: width, layers, attention heads, key-value heads, width of the feed-forward part."""

    width: int
    layers: int
    heads: int
    key_value_heads: int
    inner: int


def new_model(size: LlamaSize, seed: int) -> Any:
    """A Llama with random weights and tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        max_position_embeddings=2 * ROW,
        tie_word_embeddings=True,
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=PADDING,
        initializer_range=0.05,
    )
    return LlamaForCausalLM(config)


def logits(model: Any, rows: torch.Tensor) -> torch.Tensor:
    """Logits [B, V, T] of rows of tokens [B, T]."""
    found: torch.Tensor = model(input_ids=rows, use_cache=False).logits
    return found.transpose(1, 2)


def tokens_of(text: str) -> list[int]:
    """`<s>`, the bytes, `</s>`."""
    return [BEGIN, *text.encode(), END]


def pack(texts: Sequence[str], rows: int) -> torch.Tensor:
    """`rows` rows of ROW + 1 tokens from the texts one after another, begun again when they are used up."""
    stream = torch.tensor([token for text in texts for token in tokens_of(text)])
    places = torch.arange(rows * ROW + 1) % len(stream)
    chosen = stream[places]
    return torch.stack([chosen[k * ROW : (k + 1) * ROW + 1] for k in range(rows)])


def padded(texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels [B, T] of texts with their special tokens; labels of padding are -100."""
    rows = [torch.tensor(tokens_of(text)) for text in texts]
    full = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)
    labels = full[:, 1:].clone()
    labels[labels == PADDING] = -100
    return full[:, :-1], labels


def bits_per_byte(model: Any, texts: Sequence[str], batch: int = 50) -> float:
    """Bits that the model needs for the bytes of the texts, a byte; the end of a text is not counted."""
    ordered = sorted(texts, key=lambda text: len(text.encode()))
    nats, count = 0.0, 0
    with torch.no_grad():
        for k in range(0, len(ordered), batch):
            inputs, labels = padded(ordered[k : k + batch])
            labels[labels == END] = -100
            losses = functional.cross_entropy(logits(model, inputs), labels, reduction="none")
            nats += losses.double().sum().item()
            count += int((labels != -100).sum())
    return nats / math.log(2) / count


def answer_losses(model: Any, prompts: Sequence[str], answers: Sequence[str]) -> torch.Tensor:
    """Nats of each answer given its prompt, [B]; the end after it is not counted."""
    inputs, labels = padded([p + a for p, a in zip(prompts, answers, strict=True)])
    labels[labels == END] = -100
    for row, prompt in enumerate(prompts):
        labels[row, : len(prompt.encode())] = -100
    with torch.no_grad():
        losses = functional.cross_entropy(logits(model, inputs), labels, reduction="none")
    return losses.double().sum(1)


def exact_matches(
    model: Any, prompts: Sequence[str], answers: Sequence[str], batch: int = 100
) -> float:
    """The share of prompts whose answer, and the end after it, is what greedy decoding gives.

    Greedy decoding gives the answer exactly if each of its tokens has the largest logit after those before it.
    """
    right = 0
    with torch.no_grad():
        for k in range(0, len(prompts), batch):
            chosen = prompts[k : k + batch]
            texts = [p + a for p, a in zip(chosen, answers[k : k + batch], strict=True)]
            inputs, labels = padded(texts)
            for row, prompt in enumerate(chosen):
                labels[row, : len(prompt.encode())] = -100
            best = logits(model, inputs).argmax(1)
            right += int(((best == labels) | (labels == -100)).all(1).sum())
    return right / len(prompts)


def write_model(model: Any, folder: Path) -> None:
    """Save a checkpoint folder with its tokenizer, and read it again.

    Raises VerificationError if a tensor does not come back as it was.
    """
    with quiet_library():
        model.save_pretrained(folder)
    write_tokenizer(folder)
    again, state = read_model(folder).state_dict(), model.state_dict()
    differ = [n for n in state if n not in again or not torch.equal(state[n], again[n])]
    if differ or len(again) != len(state):
        raise VerificationError(
            f"The checkpoint {str(folder)!r} does not read back as it was written ({len(differ)} tensors differ, "
            f"such as {differ[:1]!r}): use a version of transformers that constraints.txt names."
        )


def read_model(folder: Path) -> Any:
    """A checkpoint folder of a causal language model, in float32."""
    from transformers import AutoModelForCausalLM

    with quiet_library():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def write_tokenizer(folder: Path) -> None:
    """Write the byte tokenizer in the `tokenizers` format, so that AutoTokenizer reads it."""
    from transformers import PreTrainedTokenizerFast

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    names = {BEGIN: "<s>", END: "</s>", PADDING: "<pad>"}
    vocabulary = {sign: byte for byte, sign in _signs().items()}
    vocabulary.update({name: token for token, name in names.items()})
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BEGIN)]
    )
    wrapped: Any = PreTrainedTokenizerFast
    wrapped(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=2 * ROW,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def _signs() -> dict[int, str]:
    """The character that stands for each byte in byte-level tokenizer files: itself if it can be seen."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {
        byte: chr(256 + k) for k, byte in enumerate(hidden)
    }
