"""Files that go from the donor into the output, and those that never do."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.checkpoints import companion_paths, open_checkpoint
from weightsmith.checkpoints.copied_files import left_out, tokenizer_files
from weightsmith.errors import CheckpointError
from weightsmith.findings import Severity


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def _names(files: tuple[Path, ...]) -> list[str]:
    return [file.as_posix() for file in files]


def test_tokenizer_templates_and_processors_are_carried_sorted(tmp_path: Path) -> None:
    carried = [
        "additional_chat_templates/tool_use.jinja",
        "chat_template.jinja",
        "generation_config.json",
        "merges.txt",
        "preprocessor_config.json",
        "spiece.model",
        "tokenizer.json",
        "vocab.json",
    ]
    _touch(tmp_path, *reversed(carried))
    assert _names(companion_paths(tmp_path)) == carried
    assert _names(tokenizer_files(tmp_path)) == [
        name
        for name in carried
        if name not in ("generation_config.json", "preprocessor_config.json")
    ]


def test_code_weights_indices_and_cards_are_not_carried(tmp_path: Path) -> None:
    _touch(
        tmp_path,
        "modeling_x.py",
        "tokenization_x.py",
        "model.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "README.md",
        "training_args.bin",
        ".git/config",
        "chat_templates/run.py",
    )
    assert companion_paths(tmp_path) == ()


def test_links_that_leave_the_folder_are_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    _touch(folder, "vocab.txt")
    _touch(tmp_path, "secret.json", "templates/x.jinja")
    (folder / "tokenizer.json").symlink_to(tmp_path / "secret.json")
    (folder / "chat_templates").symlink_to(tmp_path / "templates")
    (folder / "merges.txt").symlink_to(folder / "vocab.txt")
    (folder / "added_tokens.json").symlink_to(tmp_path / "gone")
    assert _names(companion_paths(folder)) == ["merges.txt", "vocab.txt"]


def test_links_into_the_blobs_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    _touch(tmp_path / "models--a--b" / "blobs", "0f")
    _touch(tmp_path / "models--c--d" / "blobs", "0f")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/0f")
    (snapshot / "vocab.txt").symlink_to("../../../models--c--d/blobs/0f")
    assert _names(companion_paths(snapshot)) == ["tokenizer.json"]


def test_a_folder_in_place_of_a_file_is_not_carried(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()
    assert companion_paths(tmp_path) == ()


def test_files_that_are_left_out_are_a_finding_of_the_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    _touch(folder, "vocab.txt", "real.json")
    save_file({"a": np.zeros(2, np.float32)}, folder / "model.safetensors")
    assert open_checkpoint(folder).findings() == []
    # Links within the folder are files like others.
    (folder / "generation_config.json").symlink_to("real.json")
    assert open_checkpoint(folder).findings() == []
    _touch(tmp_path, "secret.json")
    (folder / "tokenizer_config.json").symlink_to(tmp_path / "secret.json")
    (folder / "merges.txt").symlink_to("nowhere")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "x.jinja").symlink_to(tmp_path / "secret.json")
    os.mkfifo(folder / "spiece.model")
    names = _names(left_out(folder))
    assert names == [
        "additional_chat_templates/x.jinja",
        "merges.txt",
        "spiece.model",
        "tokenizer_config.json",
    ]
    opened = open_checkpoint(folder)
    (finding,) = opened.findings()
    assert (finding.severity, finding.code) == (Severity.WARNING, "linked-file")
    assert all(name in finding.message for name in names)
    with pytest.raises(CheckpointError, match="put the files themselves there"):
        opened.require_own_files()


def test_links_into_the_blobs_of_the_hub_cache_are_files_like_others(tmp_path: Path) -> None:
    _touch(tmp_path, "models--o--m/blobs/abc")
    snapshot = tmp_path / "models--o--m" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer_config.json").symlink_to("../../blobs/abc")
    assert left_out(snapshot) == ()
    assert _names(companion_paths(snapshot)) == ["tokenizer_config.json"]
