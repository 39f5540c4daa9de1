"""Links out of a checkpoint's folder: followed into Hub caches and where the user says, refused elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.checkpoints import open_checkpoint
from weightsmith.errors import CheckpointError

BLOB = "0f" * 32


def _blob(place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    save_file({"w": np.ones(3, np.float32)}, place)
    return place


def _linked(folder: Path, target: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").symlink_to(target)
    return folder


def test_a_folder_of_links_into_a_hub_cache_is_read(tmp_path):
    """As huggingface_hub before 0.23 filled `local_dir`."""
    blob = _blob(tmp_path / "hub/models--a--b/blobs" / BLOB)
    assert list(open_checkpoint(_linked(tmp_path / "local", blob)).tensors) == ["w"]


def test_a_cache_without_links_is_read_through_one(tmp_path):
    file = _blob(tmp_path / "hub/models--a--b/snapshots/abc/model.safetensors")
    assert list(open_checkpoint(_linked(tmp_path / "local", file)).tensors) == ["w"]


def test_a_snapshot_cannot_take_another_models_blob(tmp_path):
    blob = _blob(tmp_path / "models--a--b/blobs" / BLOB)
    folder = _linked(tmp_path / "models--c--d/snapshots/abc", blob)
    with pytest.raises(CheckpointError, match="link that leaves its folder"):
        open_checkpoint(folder)


@pytest.mark.parametrize("place", ["models--a--b/blobs/secret", "blobs/" + BLOB, "store/w"])
def test_other_places_are_refused_in_a_sentence_that_says_how(tmp_path, place, monkeypatch):
    target = _blob(tmp_path / place)
    folder = _linked(tmp_path / "local", target)
    with pytest.raises(CheckpointError, match="WEIGHTSMITH_LINKS") as refused:
        open_checkpoint(folder)
    assert str(target) in str(refused.value)
    monkeypatch.setenv("WEIGHTSMITH_LINKS", f"/nowhere:{target.parent}")
    assert list(open_checkpoint(folder).tensors) == ["w"]


def test_a_farm_of_links_to_shards_and_settings_is_read_where_that_is_said(tmp_path, monkeypatch):
    store = tmp_path / "store"
    _blob(store / "model-00001-of-00001.safetensors")
    (store / "model.safetensors.index.json").write_text(
        '{"weight_map": {"w": "model-00001-of-00001.safetensors"}}'
    )
    (store / "config.json").write_text('{"model_type": "x"}')
    (store / "tokenizer_config.json").write_text("{}")
    farm = tmp_path / "farm"
    farm.mkdir()
    for file in store.iterdir():
        (farm / file.name).symlink_to(file)
    with pytest.raises(CheckpointError, match="WEIGHTSMITH_LINKS"):
        open_checkpoint(farm)
    monkeypatch.setenv("WEIGHTSMITH_LINKS", str(store))
    opened = open_checkpoint(farm)
    assert opened.config == {"model_type": "x"}
    assert opened.findings() == []
    assert [file.name for file in opened.tokenizer_files] == ["tokenizer_config.json"]


def test_a_link_that_leads_nowhere_is_said_to_be_one(tmp_path):
    folder = _linked(tmp_path / "local", tmp_path / "gone")
    with pytest.raises(CheckpointError, match="leads nowhere"):
        open_checkpoint(folder)
