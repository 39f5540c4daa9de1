"""`weightsmith collect` as it is typed: from a checkpoint and a text file to a merge by two commands."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from weightsmith.cli.main import execute

MODEL = "family language and lora"
METHODS = {
    "fisher": ("fisher", "fisher", False),
    "ota": ("ota", "fisher", False),
    "rcp": ("rcp", "gradients:2", True),
    "regmean": ("regmean", "gram", False),
}


@pytest.fixture
def expert(saved, tmp_path):
    """A checkpoint beside that of the base, by number."""

    def folder(number):
        own = shutil.copytree(saved(MODEL), tmp_path / f"expert-{number}")
        generator = torch.Generator().manual_seed(number)
        tensors = {
            name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in load_file(own / "model.safetensors").items()
        }
        save_file(tensors, own / "model.safetensors", {"format": "pt"})
        return own

    return folder


@pytest.mark.parametrize("method", METHODS)
def test_two_commands_lead_to_a_merge(expert, saved, corpus, tmp_path, capsys, method):
    name, what, needs_base = METHODS[method]
    models = []
    for number in (1, 2):
        model, out = str(expert(number)), str(tmp_path / f"{number}.safetensors")
        command = ["collect", what, model, "--data", str(corpus), "--out", out]
        assert execute([*command, "--context", "16", "--limit", "3", "--quiet"]) == 0
        models.append({"model": model, "statistics": out})
    recipe = {"weightsmith": 1, "merge_method": name, "models": models}
    if needs_base:
        recipe["base_model"] = str(saved(MODEL))
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    assert execute(["merge", str(tmp_path / "r.yaml"), str(tmp_path / "out"), "--quiet"]) == 0
    assert "error" not in capsys.readouterr().err
    merged, one, other = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "out", tmp_path / "expert-1", tmp_path / "expert-2")
    )
    # What was measured made a difference.
    weight = "model.layers.1.mlp.down_proj.weight"
    assert not torch.allclose(merged[weight], (one[weight] + other[weight]) / 2, atol=1e-4)


def test_several_kinds_go_into_files_of_their_own(saved, corpus, tmp_path, capsys):
    out = tmp_path / "m.safetensors"
    command = [
        "collect",
        "gram,channels",
        str(saved(MODEL)),
        "--data",
        str(corpus),
        "--out",
        str(out),
    ]
    assert execute([*command, "--context", "16", "--limit", "3", "--memory", "1KiB", "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert [file["kind"] for file in found["files"]] == ["gram", "channels"]
    assert [file["path"] for file in found["files"]] == [
        str(tmp_path / f"m.{kind}.safetensors") for kind in ("gram", "channels")
    ]
    assert found["block_by_block"] is True
    assert found["estimator"] is None
    assert "forward" in shown.err
    assert execute([*command, "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'm.gram.safetensors'}  gram  8 tensors of ")


def test_errors_are_one_line(saved, tmp_path, capsys):
    command = [
        "collect",
        "grams",
        str(saved(MODEL)),
        "--data",
        "none.txt",
        "--out",
        "o.safetensors",
    ]
    assert execute(command) == 2
    assert capsys.readouterr().err == (
        "weightsmith: error: There are no statistics 'grams'; did you mean 'gram'?\n"
    )
    command = ["collect", "gram", str(saved(MODEL)), "--data", "none.txt"]
    assert execute([*command, "--out", str(tmp_path / "o.safetensors")]) == 2
    assert "'none.txt' cannot be read" in capsys.readouterr().err
