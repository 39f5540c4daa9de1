"""Weights beside the main set: which files are part of a checkpoint, and what is said of the others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from weightsmith.checkpoints import open_checkpoint
from weightsmith.errors import CheckpointError
from weightsmith.naming import beside
from weightsmith.tensors import Kind


def _weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


def _model(folder: Path, **extra: tuple[int, ...]) -> Path:
    folder.mkdir(exist_ok=True)
    layer = {f"encoder.layer.{i}.output.dense.weight": np.ones((4, 4), np.float32) for i in (0, 1)}
    table = {"embeddings.word_embeddings.weight": np.ones((9, 4), np.float32)}
    save_file({**table, **layer, **_weights(**extra)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "bert", "num_hidden_layers": 2}')
    return folder


def _modules(folder: Path, *paths: str) -> None:
    listed = [{"idx": i, "name": str(i), "path": path} for i, path in enumerate(paths)]
    (folder / "modules.json").write_text(json.dumps(listed))


def _dense(folder: Path, name: str = "model.safetensors") -> None:
    folder.mkdir(parents=True)
    save_file(_weights(**{"linear.weight": (2, 4)}), folder / name)


def _codes(folder: Path) -> list[str]:
    return [finding.code for finding in open_checkpoint(folder).findings()]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("2_Dense/model.safetensors/linear.weight", ("2_Dense/model.safetensors", "linear.weight")),
        ("sparse_linear.pt/weight", ("sparse_linear.pt", "weight")),
        ("a.bin/b.pt/w", ("a.bin", "b.pt/w")),
        ("model.layers.0.weight", None),
        ("bert/encoder/weight", None),
        ("../x.safetensors/w", None),
        ("a/../x.safetensors/w", None),
        ("/etc/x.bin/w", None),
        ("c:x.bin/w", None),
        ("a\\x.bin/w", None),
        ("x.bin", None),
    ],
)
def test_a_name_with_a_file_is_told_from_all_others(name, parts):
    assert beside(name) == parts


def test_modules_heads_and_pickles_are_tensors_by_their_files(tmp_path):
    folder = _model(tmp_path / "m")
    _modules(folder, "", "1_Pooling", "2_Dense")
    _dense(folder / "2_Dense")
    save_file(_weights(**{"v_head.summary.weight": (1, 4)}), folder / "value_head.safetensors")
    torch.save({"weight": torch.ones(1, 4)}, folder / "sparse_linear.pt")
    opened = open_checkpoint(folder)
    assert set(opened.side_files) == {
        "2_Dense/model.safetensors",
        "value_head.safetensors",
        "sparse_linear.pt",
    }
    assert opened.tensors["2_Dense/model.safetensors/linear.weight"].shape == (2, 4)
    assert opened.findings() == []


def test_a_modules_pickle_is_called_like_its_safetensors(tmp_path):
    folder = _model(tmp_path / "m")
    _modules(folder, "", "2_Dense")
    (folder / "2_Dense").mkdir()
    torch.save({"linear.weight": torch.ones(2, 4)}, folder / "2_Dense/pytorch_model.bin")
    assert open_checkpoint(folder).side_files == ("2_Dense/model.safetensors",)


def test_the_modules_that_a_router_chooses_between_are_found(tmp_path):
    folder = _model(tmp_path / "m")
    _modules(folder, "", "1_Router")
    (folder / "1_Router").mkdir()
    routes = {"structure": {"query": ["query_0_Dense"], "document": ["document_0_Dense"]}}
    (folder / "1_Router/router_config.json").write_text(json.dumps(routes))
    for name in ("query_0_Dense", "document_0_Dense"):
        _dense(folder / "1_Router" / name)
    assert open_checkpoint(folder).side_files == (
        "1_Router/query_0_Dense/model.safetensors",
        "1_Router/document_0_Dense/model.safetensors",
    )


def test_a_sentence_encoder_may_have_all_its_weights_in_module_folders(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    _modules(folder, "0_Transformer", "2_Dense")
    _model(folder / "0_Transformer")
    _dense(folder / "2_Dense")
    opened = open_checkpoint(folder)
    assert len(opened.side_files) == 2
    name = "0_Transformer/model.safetensors/encoder.layer.1.output.dense.weight"
    assert (opened.places[name].layer, opened.places[name].depth) == (1, 1.0)


def test_the_language_model_is_the_main_sets_whatever_lies_beside(tmp_path):
    folder = _model(tmp_path / "m")
    save_file(
        _weights(**{"lm_head.weight": (9, 4), "embed_tokens.weight": (900, 4)}),
        folder / "prompts.safetensors",
    )
    opened = open_checkpoint(folder)
    assert (opened.vocab_size, opened.layer_count) == (9, 2)
    kinds = {opened.places[n].kind for n in opened.tensors if beside(n)}
    assert not kinds & {Kind.HEAD, Kind.EMBEDDING}


def test_a_head_beside_pytorch_model_bin_is_not_the_main_set(tmp_path):
    torch.save({"embed.weight": torch.ones(3, 4)}, tmp_path / "pytorch_model.bin")
    save_file(_weights(**{"v_head.summary.weight": (1, 4)}), tmp_path / "value_head.safetensors")
    opened = open_checkpoint(tmp_path)
    assert list(opened.tensors) == [
        "embed.weight",
        "value_head.safetensors/v_head.summary.weight",
    ]


@pytest.mark.parametrize(
    "name", ["consolidated.safetensors", "model.fp16.safetensors", "copy.safetensors"]
)
def test_a_second_set_is_mentioned_and_not_read(tmp_path, name):
    folder = _model(tmp_path / "m")
    (folder / name).write_bytes((folder / "model.safetensors").read_bytes())
    assert open_checkpoint(folder).side_files == ()
    (finding,) = open_checkpoint(folder).findings()
    assert finding.code == "second-set"
    assert name in finding.message


def test_a_file_beside_an_index_is_a_second_set(tmp_path):
    _model(tmp_path)
    shard = "model-00001-of-00001.safetensors"
    (tmp_path / shard).write_bytes((tmp_path / "model.safetensors").read_bytes())
    names = open_checkpoint(tmp_path).tensors
    index = {"weight_map": dict.fromkeys(names, shard)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    # Loaders take model.safetensors, and so it is here.
    assert {file.name for file in open_checkpoint(tmp_path).files()} == {"model.safetensors"}
    (finding,) = open_checkpoint(tmp_path).findings()
    assert finding.code == "second-set"
    assert shard in finding.message


def test_what_is_no_dict_of_tensors_is_said_and_not_copied(tmp_path):
    folder = _model(tmp_path / "m")
    torch.save({"state_dict": {"w": torch.ones(2)}}, folder / "projector.pt")
    torch.save({"w": torch.ones(2), "step": 3}, folder / "soft_prompt.bin")
    (folder / "odd.safetensors").write_bytes(b"nothing")
    assert _codes(folder) == ["side-file"] * 3


def test_trainers_state_and_exports_are_no_part_of_a_model(tmp_path):
    folder = _model(tmp_path / "m")
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state_0.pth"):
        torch.save({"step": 1}, folder / name)
    for name in ("checkpoint-500", "onnx", "1_Pooling"):
        (folder / name).mkdir()
    _model(folder / "checkpoint-500")
    assert _codes(folder) == []


def test_weights_in_a_folder_that_nothing_names_are_mentioned(tmp_path):
    folder = _model(tmp_path / "m")
    _model(folder / "vision_tower")
    (finding,) = open_checkpoint(folder).findings()
    assert "vision_tower" in finding.message


@pytest.mark.parametrize("path", ["../other", "/etc", "a/../../b", "x\\y"])
def test_a_list_of_modules_cannot_lead_out_of_the_folder(tmp_path, path):
    folder = _model(tmp_path / "m")
    _modules(folder, path)
    with pytest.raises(CheckpointError, match="straight into"):
        open_checkpoint(folder)


@pytest.mark.parametrize("text", ["{}", "[1]", '[{"path": 3}]', "[{"])
def test_a_damaged_list_of_modules_is_an_error(tmp_path, text):
    folder = _model(tmp_path / "m")
    (folder / "modules.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"modules\.json"):
        open_checkpoint(folder)


def test_a_tensor_cannot_pretend_to_lie_in_another_file(tmp_path):
    save_file(_weights(**{"x.safetensors/w": (2,)}), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="rename it"):
        open_checkpoint(tmp_path)


def test_a_module_whose_weights_leave_the_folder_is_refused(tmp_path):
    folder = _model(tmp_path / "m")
    _modules(folder, "", "2_Dense")
    _dense(tmp_path / "elsewhere")
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense/model.safetensors").symlink_to(tmp_path / "elsewhere/model.safetensors")
    with pytest.raises(CheckpointError, match="link"):
        open_checkpoint(folder)
