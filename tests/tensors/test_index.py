"""An index is read only if it stays inside its folder and says the same as its shards."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from weightsmith.errors import CheckpointError
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.files.safetensors_header import encode_header
from weightsmith.tensors.files.shard_index import (
    encode_index,
    read_index,
)
from weightsmith.tensors.files.shard_paths import resolve_inside

SAFETENSORS_INDEX, TORCH_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
HONEST = {"a": ONE, "b": ONE, "c": TWO}


def shard(path: Path, *names: str) -> None:
    path.write_bytes(
        encode_header([(name, DType.UINT8, (4,)) for name in names]) + b"data" * len(names)
    )


def checkpoint(folder: Path, weight_map: Any = None, **extra: Any) -> Path:
    shard(folder / ONE, "a", "b")
    shard(folder / TWO, "c")
    index = folder / SAFETENSORS_INDEX
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map or HONEST, **extra}))
    return index


def test_an_honest_index_gives_all_tensors_in_the_order_of_shards_and_bytes(tmp_path: Path) -> None:
    index = checkpoint(tmp_path, {"c": TWO, "b": ONE, "a": ONE})
    assert [(t.name, t.file.name) for t in read_index(index)] == [
        ("a", ONE),
        ("b", ONE),
        ("c", TWO),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "sub/../../x.safetensors",
        "C:\\x.safetensors",
        "C:x.safetensors",
        "\\\\host\\share\\x.safetensors",
        "\\x.safetensors",
        "sub\\x.safetensors",
        "..\\x.safetensors",
        "a:b.safetensors",
        "",
        ".",
        "..",
        "sub/",
        "./x.safetensors",
        "sub//x.safetensors",
        "a\0.safetensors",
        "a\n.safetensors",
        "\ud800.safetensors",
        "x.bin",
        "x.safetensors.py",
        "x",
        "/",
        "//host/x.safetensors",
    ],
)
def test_a_shard_name_that_leaves_the_folder_or_is_odd_is_refused(
    tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shard(tmp_path / "x.safetensors", "d")
    with pytest.raises(CheckpointError, match="names the file") as caught:
        read_index(checkpoint(folder, {**HONEST, "d": name}))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name",
    [
        "C:x.safetensors",
        "C:\\x.safetensors",
        "a:b.safetensors",
        "sub\\x.safetensors",
        "\\x.safetensors",
    ],
)
def test_a_name_that_is_a_path_on_windows_is_refused_even_where_it_is_only_a_name(
    tmp_path: Path, name: str
) -> None:
    shard(tmp_path / name, "d")
    with pytest.raises(CheckpointError, match=r"drive|backslash"):
        read_index(checkpoint(tmp_path, {**HONEST, "d": name}))


def test_an_absolute_name_is_refused_even_if_it_leads_into_the_folder(tmp_path: Path) -> None:
    shard(tmp_path / "x.safetensors", "d")
    with pytest.raises(CheckpointError, match="absolute"):
        read_index(checkpoint(tmp_path, {**HONEST, "d": str(tmp_path / "x.safetensors")}))


def test_a_missing_shard_is_refused_by_name(tmp_path: Path) -> None:
    index = checkpoint(tmp_path)
    (tmp_path / TWO).unlink()
    with pytest.raises(CheckpointError, match=f"{TWO}.*missing"):
        read_index(index)


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside.safetensors", "/dev/zero"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, target: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shard(tmp_path / "outside.safetensors", "c")
    index = checkpoint(folder)
    (folder / TWO).unlink()
    (folder / TWO).symlink_to(target)
    with pytest.raises(CheckpointError, match="link that leaves its folder"):
        read_index(index)


def test_a_folder_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "other").mkdir()
    shard(tmp_path / "other" / "x.safetensors", "d")
    (tmp_path / "model" / "sub").symlink_to("../other")
    with pytest.raises(CheckpointError, match="link that leaves"):
        read_index(checkpoint(tmp_path / "model", {**HONEST, "d": "sub/x.safetensors"}))


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    index = checkpoint(tmp_path)
    (tmp_path / TWO).unlink()
    (tmp_path / TWO).symlink_to(TWO)
    with pytest.raises(CheckpointError, match="cannot be reached"):
        read_index(index)


def test_links_within_the_folder_and_a_linked_folder_are_fine(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    index = checkpoint(folder)
    (folder / TWO).rename(folder / "real")
    (folder / TWO).symlink_to("real")
    (tmp_path / "link").symlink_to("model")
    assert len(read_index(tmp_path / "link" / index.name)) == 3


def test_a_pipe_as_a_shard_is_refused(tmp_path: Path) -> None:
    index = checkpoint(tmp_path)
    (tmp_path / TWO).unlink()
    os.mkfifo(tmp_path / TWO)
    with pytest.raises(CheckpointError, match="named pipe"):
        read_index(index)


def hub_cache(
    root: Path, blobs_of: str, model: str = "models--org--name", snapshots: str = "snapshots"
) -> Path:
    snapshot = root / model / snapshots / "abc"
    blobs = root / blobs_of / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    index = checkpoint(snapshot)
    for file in sorted(snapshot.iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(os.path.relpath(blobs / file.name, snapshot))
    return index


def test_a_snapshot_of_the_hub_cache_may_link_to_the_blobs_of_its_model(tmp_path: Path) -> None:
    assert len(read_index(hub_cache(tmp_path, "models--org--name"))) == 3


def test_a_snapshot_of_the_hub_cache_may_not_link_to_the_blobs_of_another_model(
    tmp_path: Path,
) -> None:
    with pytest.raises(CheckpointError, match="link that leaves"):
        read_index(hub_cache(tmp_path, "models--org--other"))


@pytest.mark.parametrize(
    ("model", "snapshots"), [("org--name", "snapshots"), ("models--org--name", "revisions")]
)
def test_only_the_form_of_the_hub_cache_gives_the_right_to_leave(
    tmp_path: Path, model: str, snapshots: str
) -> None:
    with pytest.raises(CheckpointError, match="link that leaves"):
        read_index(hub_cache(tmp_path, model, model, snapshots))


def test_an_entry_without_a_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="lists tensor 'ghost'"):
        read_index(checkpoint(tmp_path, {**HONEST, "ghost": TWO}))


def test_a_tensor_without_an_entry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no entry for tensor 'b'"):
        read_index(checkpoint(tmp_path, {"a": ONE, "c": TWO}))


def test_an_entry_with_the_wrong_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"places tensor 'b' in .*00002"):
        read_index(checkpoint(tmp_path, {**HONEST, "b": TWO}))


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    index = checkpoint(tmp_path)
    shard(tmp_path / TWO, "c", "b")
    with pytest.raises(CheckpointError, match="tensor 'b' lies in two shards"):
        read_index(index)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": null}}',
        '{"weight_map": {"": "x.safetensors"}}',
        '{"weight_map": {"a": "x", "a": "y"}}',
        "nonsense",
        '{"weight_map": NaN}',
        "[" * 100_000,
    ],
)
def test_an_index_that_is_no_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / SAFETENSORS_INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=r"index"):
        read_index(tmp_path / SAFETENSORS_INDEX)


def test_a_huge_index_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / SAFETENSORS_INDEX
    path.write_text("{")
    os.truncate(path, 10**9)
    with pytest.raises(CheckpointError, match="above the limit"):
        read_index(path)


def test_a_file_not_named_like_an_index_is_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path).rename(tmp_path / "index.json")
    with pytest.raises(CheckpointError, match="not named like an index"):
        read_index(path)


def test_an_index_of_torch_files_is_read_and_takes_no_safetensors_shard(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.ones(3)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    weight_map = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    (tmp_path / TORCH_INDEX).write_bytes(encode_index(weight_map, 20))
    assert [t.name for t in read_index(tmp_path / TORCH_INDEX)] == ["a", "b"]
    (tmp_path / TORCH_INDEX).write_bytes(encode_index({**weight_map, "c": ONE}, 20))
    with pytest.raises(CheckpointError, match=r"does not end in \.bin"):
        read_index(tmp_path / TORCH_INDEX)


def test_an_encoded_index_has_the_form_of_the_hub() -> None:
    assert json.loads(encode_index(HONEST, 12)) == {
        "metadata": {"total_size": 12},
        "weight_map": HONEST,
    }


def test_a_name_is_resolved_for_single_files_too(tmp_path: Path) -> None:
    shard(tmp_path / "model.safetensors", "a")
    found = resolve_inside(tmp_path, "model.safetensors", tmp_path, (".safetensors",))
    assert found == tmp_path / "model.safetensors"
