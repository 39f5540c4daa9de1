"""Opening checkpoints of every layout from their headers."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.checkpoints import Checkpoint, open_checkpoint
from weightsmith.errors import CheckpointError
from weightsmith.tensors import Kind

ONES = {"a.weight": np.ones((2, 3), np.float32), "b.weight": np.ones(4, np.float32)}


def _shard(path: Path, shards: dict[str, dict[str, np.ndarray]], index: str) -> None:
    weight_map = {}
    for file, tensors in shards.items():
        save_file(tensors, str(path / file))
        weight_map |= dict.fromkeys(tensors, file)
    (path / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_folder_gives_tensors_config_roles_and_sizes(llama: Callable[..., Checkpoint]) -> None:
    checkpoint = llama(layers=3, vocab=40)
    assert checkpoint.layer_count == 3
    assert checkpoint.vocab_size == 40
    assert set(checkpoint.stacks) == {"model.layers"}
    assert checkpoint.config is not None
    assert checkpoint.config["model_type"] == "llama"
    role = checkpoint.places["model.layers.2.self_attn.q_proj.weight"]
    assert (role.kind, role.layer, role.stack) == (Kind.ATTENTION_Q, 2, "model.layers")
    assert [file.name for file in checkpoint.files()] == ["model.safetensors"]
    assert checkpoint.is_folder


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    a, b = ({key: value} for key, value in ONES.items())
    _shard(tmp_path, dict(zip(names, (a, b), strict=True)), "model.safetensors.index.json")
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.tensors) == ["a.weight", "b.weight"]
    assert [file.name for file in checkpoint.files()] == list(names)


def test_a_single_file_is_a_checkpoint_without_config(folder: Callable[..., Path]) -> None:
    path = folder(config={"model_type": "llama"}) / "model.safetensors"
    checkpoint = open_checkpoint(path)
    assert checkpoint.config is None
    assert not checkpoint.is_folder
    assert checkpoint.tokenizer_files == ()
    assert checkpoint.name == "model.safetensors"


def test_a_lone_file_of_any_name_is_found(folder: Callable[..., Path]) -> None:
    path = folder(tensors=ONES, file="my-finetune.safetensors")
    (path / "training_args.bin").write_bytes(b"never read")
    assert set(open_checkpoint(path).tensors) == set(ONES)


def test_safetensors_win_over_pickles(folder: Callable[..., Path]) -> None:
    path = folder(tensors=ONES)
    (path / "pytorch_model.bin").write_bytes(b"never read")
    assert open_checkpoint(path).files()[0].name == "model.safetensors"


def test_an_index_wins_over_another_unindexed_file(tmp_path: Path) -> None:
    _shard(tmp_path, {"model-1.safetensors": ONES}, "model.safetensors.index.json")
    save_file({"other.weight": np.ones(2)}, str(tmp_path / "consolidated.safetensors"))
    assert set(open_checkpoint(tmp_path).tensors) == set(ONES)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pth", "weights.pt"])
def test_pickled_state_dicts_are_read(tmp_path: Path, file: str) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"a.weight": torch.arange(6.0).reshape(2, 3)}, tmp_path / file)
    for path in (tmp_path, tmp_path / file):
        tensor = open_checkpoint(path).tensors["a.weight"]
        buffer = bytearray(tensor.nbytes)
        tensor.read_into(0, 6, memoryview(buffer))
        assert np.frombuffer(buffer, np.float32).tolist() == [0, 1, 2, 3, 4, 5]


def test_sharded_pickles_are_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    weight_map = {}
    for i, name in enumerate(("a.weight", "b.weight")):
        file = f"pytorch_model-0000{i + 1}-of-00002.bin"
        torch.save({name: torch.ones(2)}, tmp_path / file)
        weight_map[name] = file
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert set(open_checkpoint(tmp_path).tensors) == {"a.weight", "b.weight"}


def test_the_home_folder_is_expanded(
    folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(tensors=ONES)
    monkeypatch.setenv("HOME", str(path.parent))
    checkpoint = open_checkpoint("~/model")
    assert checkpoint.path == path
    assert checkpoint.name == "model"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["it is empty", "give a folder"]),
        ({"model.gguf": b""}, ["'model.gguf'"]),
        ({"adapter_model.safetensors": b""}, ["adapter", "base"]),
        ({"a.safetensors": b"", "b.safetensors": b""}, ["2 weight files", "index"]),
        ({"config.json": b"[]", "model.safetensors": b""}, ["config.json", "object"]),
        ({"config.json": b"{,", "model.safetensors": b""}, ["config.json", "JSON"]),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_refused_in_one_sentence(
    tmp_path: Path, files: dict[str, bytes], words: list[str]
) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(tmp_path)
    message = str(refusal.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_a_missing_path_and_an_unread_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No checkpoint is at"):
        open_checkpoint(tmp_path / "nothing")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="no format"):
        open_checkpoint(tmp_path / "x.gguf")


def test_a_config_that_links_out_of_the_folder_is_refused(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"token": "x"}')
    path = folder(tensors=ONES)
    (path / "config.json").symlink_to(secret)
    with pytest.raises(CheckpointError, match="leaves its folder"):
        open_checkpoint(path)


def test_weights_that_link_out_of_the_folder_are_refused_but_not_as_a_file(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    real = folder(tensors=ONES) / "model.safetensors"
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "model.safetensors").symlink_to(real)
    with pytest.raises(CheckpointError, match="leaves its folder"):
        open_checkpoint(linked)
    assert set(open_checkpoint(linked / "model.safetensors").tensors) == set(ONES)


def test_layers_that_only_predict_further_tokens_are_not_counted(
    llama: Callable[..., Checkpoint],
) -> None:
    checkpoint = llama(layers=3, num_nextn_predict_layers=1, num_hidden_layers=2)
    assert checkpoint.layer_count == 2


def test_the_language_stack_is_the_main_one_where_the_config_counts_its_layers(
    folder: Callable[..., Path],
) -> None:
    tensors: dict[str, tuple[int, ...]] = {}
    for layer in range(4):
        tensors[f"vision_tower.blocks.{layer}.mlp.fc1.weight"] = (64, 64)
    for layer in range(2):
        tensors[f"language_model.model.layers.{layer}.mlp.up_proj.weight"] = (8, 8)
    config = {
        "model_type": "vlm",
        "vision_config": {"num_hidden_layers": 4},
        "text_config": {"num_hidden_layers": 2},
    }
    checkpoint = open_checkpoint(folder(tensors=tensors, config=config))
    assert set(checkpoint.stacks) == {"language_model.model.layers", "vision_tower.blocks"}
    assert checkpoint.main_stack == checkpoint.stacks["language_model.model.layers"]
    assert checkpoint.layer_count == 2


def test_a_plain_network_has_layers_but_no_vocabulary(folder: Callable[..., Path]) -> None:
    shapes = {"layers.0.weight": (8, 4), "layers.0.bias": (8,), "layers.2.weight": (3, 8)}
    checkpoint = open_checkpoint(folder(tensors=shapes))
    assert checkpoint.vocab_size is None
    assert checkpoint.places["layers.2.weight"].layer == 2
    assert open_checkpoint(folder("flat", {"w": (2, 2)})).layer_count == 0


def _cached(cache: Path, source: Path, files: list[str]) -> Path:
    """A Hub cache in the library's own layout: blobs, and a snapshot of links to them."""
    repo = cache / "models--owner--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "blobs").mkdir()
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for i, file in enumerate(files):
        shutil.copy(source / file, repo / "blobs" / f"{i:064x}")
        (snapshot / file).symlink_to(Path("../../blobs") / f"{i:064x}")
    return snapshot


def test_a_hub_id_in_the_local_cache_is_found_without_a_network(
    folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    source = folder("source", ONES, {"model_type": "llama"})
    (source / "tokenizer.json").write_text("{}")
    cache = tmp_path / "cache"
    snapshot = _cached(cache, source, ["model.safetensors", "config.json", "tokenizer.json"])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for given in ("owner/tiny", "owner/tiny@main", f"hf://owner/tiny@{snapshot.name}"):
        checkpoint = open_checkpoint(given)
        assert checkpoint.hub_id == checkpoint.name == "owner/tiny"
        assert checkpoint.revision == snapshot.name
        assert checkpoint.config == {"model_type": "llama"}
        assert [str(file) for file in checkpoint.tokenizer_files] == ["tokenizer.json"]


def test_a_hub_id_that_is_not_cached_offline_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"HF_HUB_OFFLINE.*unset that"):
        open_checkpoint("owner/absent")


def test_a_hub_id_without_the_hubs_package_names_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="`pip install huggingface_hub`"):
        open_checkpoint("owner/absent")


def test_a_cached_snapshot_that_lacks_a_shard_is_not_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    source = tmp_path / "source"
    source.mkdir()
    a, b = ({key: value} for key, value in ONES.items())
    _shard(source, {"m-1.safetensors": a, "m-2.safetensors": b}, "model.safetensors.index.json")
    cache = tmp_path / "cache"
    _cached(cache, source, ["m-1.safetensors", "model.safetensors.index.json"])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="nor complete in the local Hub cache"):
        open_checkpoint("owner/tiny")
