"""The files that a package takes over from its fine-tune beside the weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from weightsmith.checkpoints import Checkpoint, companion_paths, is_inside
from weightsmith.errors import CheckpointError
from weightsmith.publishing import write_file
from weightsmith.tensors import shown

_CONFIG_AND_CARD = ("config.json", "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE")


def carry_files(finetune: Checkpoint, folder: Path) -> dict[str, str]:
    """Copy configuration, tokenizer, card and licence into `folder`; returns the SHA-256 of each by its name."""
    if not finetune.is_folder:
        return {}
    finetune.require_own_files()
    digests = {}
    for name in [*_present(finetune.path), *companion_paths(finetune.path)]:
        data = (finetune.path / name).read_bytes()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(folder / name, data)
        digests[name.as_posix()] = hashlib.sha256(data).hexdigest()
    return digests


def _present(folder: Path) -> list[Path]:
    return [Path(name) for name in _CONFIG_AND_CARD if is_inside(folder / name, folder)]


def check_files(folder: Path, files: dict[str, str]) -> None:
    """Raise CheckpointError if a file that was carried along is missing or is not what it was."""
    for name, digest in sorted(files.items()):
        file = folder / name
        if not is_inside(file, folder):
            raise CheckpointError(f"{shown(folder)} lacks {shown(name)}: fetch the package again.")
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise CheckpointError(
                f"{shown(file)} is not as the package's header has it on record: fetch the package again."
            )
