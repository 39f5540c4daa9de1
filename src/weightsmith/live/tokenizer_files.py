"""The tokenizer beside the weights, read by transformers from a folder of its own."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from weightsmith.errors import UsageError
from weightsmith.live.libraries import asking_library
from weightsmith.live.model_source import Source


def has_tokenizer(source: Source) -> bool:
    """Whether there is a tokenizer beside the weights."""
    return any(name in source.files for name in ("tokenizer.json", "tokenizer_config.json"))


def read_tokenizer(source: Source) -> Any:
    """The tokenizer, as AutoTokenizer reads it; raises UsageError if there is none that it can read."""
    from transformers import AutoTokenizer

    if not has_tokenizer(source):
        raise UsageError(f"{source.name!r} has no tokenizer; put its files into the folder.")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name, data in source.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        (folder / "config.json").write_text(json.dumps(dict(source.config)), "utf-8")
        said = f"transformers cannot read the tokenizer of {source.name!r}"
        with asking_library(said, "correct its files", UsageError):
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
