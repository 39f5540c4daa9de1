"""`weightsmith bundle`: create, list, extract, and what they say when something is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from weightsmith.cli.main import execute


@pytest.fixture
def family(tmp_path):
    rng = np.random.default_rng(0)
    base = {"layer.0.weight": rng.normal(size=(6, 5)).astype(np.float32)}
    for name in ("base", "math", "code"):
        folder = tmp_path / name
        folder.mkdir()
        noise = 0 if name == "base" else rng.normal(size=(6, 5)).astype(np.float32)
        tensors = {n: b + noise for n, b in base.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "emr.yaml").write_text(
        yaml.safe_dump(
            {
                "weightsmith": 1,
                "merge_method": "emr",
                "base_model": str(tmp_path / "base"),
                "models": [{"model": str(tmp_path / "math")}, {"model": str(tmp_path / "code")}],
            }
        )
    )
    return tmp_path


def test_create_list_and_extract(family, capsys):
    out = family / "tasks"
    assert execute(["bundle", "create", str(family / "emr.yaml"), str(out), "--quiet"]) == 0
    capsys.readouterr()
    assert execute(["bundle", "list", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [task["label"] for task in shown["tasks"]] == ["math", "code"]
    assert shown["method"] == "emr"
    # base and shared vector, two masks of 30 bits, two rescalers
    assert shown["bytes"] == 2 * 30 * 4 + 2 * 4 + 2 * 4
    assert execute(["bundle", "list", str(out)]) == 0
    text = capsys.readouterr().out
    assert "math" in text
    assert "code" in text
    one = family / "one"
    assert execute(["bundle", "extract", str(out), "code", str(one), "--quiet"]) == 0
    assert execute(["verify", str(one), "--recompute", "1"]) == 0
    expert = load_file(family / "code" / "model.safetensors")["layer.0.weight"]
    rebuilt = load_file(one / "model.safetensors")["layer.0.weight"]
    base = load_file(family / "base" / "model.safetensors")["layer.0.weight"]
    np.testing.assert_allclose(np.abs(rebuilt - base).sum(), np.abs(expert - base).sum(), rtol=1e-5)
    capsys.readouterr()
    assert execute(["inspect", f"{out}#code"]) == 0
    assert execute(["diff", f"{out}#code", str(one)]) == 0


def test_a_bundle_that_refers_to_its_base_takes_it_from_where_it_is_said_to_be(family, capsys):
    out = family / "tasks"
    create = ["bundle", "create", str(family / "emr.yaml"), str(out), "--refer-to-base", "--quiet"]
    assert execute(create) == 0
    assert set(load_file(out / "model.safetensors")) >= {"layer.0.weight::shared"}
    assert "layer.0.weight" not in load_file(out / "model.safetensors")
    (family / "base").rename(family / "moved")
    extract = ["bundle", "extract", str(out), "math", str(family / "one"), "--quiet"]
    assert execute(extract) != 0
    assert "--base" in capsys.readouterr().err
    assert not (family / "one").exists()
    assert execute([*extract, "--base", str(family / "code")]) != 0
    assert "digest" in capsys.readouterr().err
    assert not (family / "one").exists()
    assert execute([*extract, "--base", str(family / "moved")]) == 0


def test_mistakes_are_told_in_one_line(family, capsys):
    out = family / "tasks"
    assert execute(["bundle", "list", str(family / "base")]) != 0
    assert "weightsmith-bundle.json" in capsys.readouterr().err
    assert execute(["bundle", "create", str(family / "emr.yaml"), str(out), "--quiet"]) == 0
    assert execute(["bundle", "extract", str(out), "prose", str(family / "one")]) != 0
    assert "'math', 'code'" in capsys.readouterr().err
    (family / "loop").symlink_to(family / "loop")
    assert execute(["bundle", "extract", str(family / "loop"), "code", str(family / "one")]) == 4
    assert "is no folder: give a task bundle" in capsys.readouterr().err
    assert execute(["inspect", str(out)]) != 0
    assert "#TASK" in capsys.readouterr().out


def test_a_merge_into_a_bundle_can_be_reported(family, capsys):
    text = (family / "emr.yaml").read_text() + "bundle: {base: reference}\n"
    (family / "bundle.yaml").write_text(text)
    page = family / "page.html"
    recipe, out = str(family / "bundle.yaml"), str(family / "out")
    assert execute(["merge", recipe, out, "--quiet", "--report", str(page)]) == 0
    capsys.readouterr()
    assert "emr" in page.read_text()
