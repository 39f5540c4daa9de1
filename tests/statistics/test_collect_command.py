"""`weightsmith collect` as it is typed: from a checkpoint and a text file to a merge by two commands."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from weightsmith.cli.main import execute

MODEL = "family language and lora"
METHODS = {
    "fisher": ("fisher", "fisher", {}),
    "ota": ("ota", "fisher", {}),
    "rcp": ("rcp", "gradients:2", {"base_model": 2}),
    "regmean": ("regmean", "gram", {}),
}


@pytest.mark.parametrize("method", METHODS)
def test_two_commands_lead_to_a_merge(saved, corpus, tmp_path, capsys, method):
    name, what, more = METHODS[method]
    models = []
    for seed in (0, 1):
        out = tmp_path / f"{seed}.safetensors"
        command = [
            "collect",
            what,
            str(saved(MODEL, seed)),
            "--data",
            str(corpus),
            "--out",
            str(out),
        ]
        assert execute([*command, "--context", "16", "--limit", "3", "--quiet"]) == 0
        models.append({"model": str(saved(MODEL, seed)), "statistics": str(out)})
    recipe = {"weightsmith": 1, "merge_method": name, "models": models}
    if more:
        recipe["base_model"] = str(saved(MODEL, 2))
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    assert execute(["merge", str(tmp_path / "r.yaml"), str(tmp_path / "out"), "--quiet"]) == 0
    assert "kind" not in capsys.readouterr().err
    merged, first = (load_file(f / "model.safetensors") for f in (tmp_path / "out", saved(MODEL)))
    assert merged.keys() == first.keys()
    assert any(not tensor.equal(first[key]) for key, tensor in merged.items())


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
