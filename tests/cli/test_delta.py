"""`weightsmith delta`: pack, unpack and show, and a library of packages on the command line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file


def same(a, b) -> bool:
    """Whether two checkpoints hold the same tensors."""
    one, two = (load_file(folder / "model.safetensors") for folder in (a, b))
    return one.keys() == two.keys() and all(np.array_equal(one[n], two[n]) for n in one)


def test_pack_show_and_unpack(family, weightsmith):
    packed = weightsmith("delta", "pack", "one", "--base", "base", "package", "--quiet")
    assert packed.code == 0
    assert packed.err == ""
    assert packed.out.splitlines()[-1].startswith("package  xxh3-checkpoint-1:")
    shown = weightsmith("delta", "show", "package", "--tensors")
    assert shown.code == 0
    assert "lossless" in shown.out
    assert "model.norm.weight" in shown.out
    assert weightsmith("delta", "unpack", "package", "again", "--quiet").code == 0
    assert same(family / "one", family / "again")
    assert weightsmith("verify", "again", "--recompute", "7").code == 0
    assert weightsmith("diff", "one", "package").code == 0
    assert json.loads(weightsmith("diff", "one", "package", "--json").out)["identical"]
    assert weightsmith("inspect", "package").code == 0


def test_a_package_is_a_model_of_a_recipe(family, weightsmith):
    for name in ("one", "two"):
        assert (
            weightsmith("delta", "pack", name, "--base", "base", f"p-{name}", "--quiet").code == 0
        )
    (family / "packages.yaml").write_text(
        (family / "ties.yaml").read_text().replace("model: ", "model: p-").replace("p-base", "base")
    )
    for recipe, out in (("ties.yaml", "a"), ("packages.yaml", "b")):
        assert weightsmith("merge", recipe, out, "--quiet").code == 0
    assert same(family / "a", family / "b")


def test_lossy_packages_and_json(weightsmith):
    made = weightsmith(
        "delta", "pack", "one", "--base", "base", "package", "--error", "0.2", "--json", "--quiet"
    )
    content = json.loads(made.out)
    assert content["goal"] == "error"
    assert content["error"] <= 0.2
    assert content["bytes"] > 0
    assert (content.pop("out"), content.pop("seconds") > 0) == ("package", True)
    assert json.loads(weightsmith("delta", "show", "package", "--json").out) == content


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["pack", "one", "out"], 2, "--base"),
        (["pack", "one", "--base", "base", "out", "--budget", "lots"], 2, "no budget"),
        (["pack", "one", "--base", "base", "out", "--budget", "10"], 2, "at least"),
        (["pack", "one", "--base", "base", "out", "--error", "2"], 2, "below 1"),
        (["pack", "one", "--base", "base", "out", "--codecs", "sign"], 2, "one codec"),
        (["pack", "one", "--base", "base", "two"], 4, "exists"),
        (["pack", "nothing", "--base", "base", "out"], 4, "nothing"),
        (["unpack", "one", "out"], 4, "weightsmith-delta.json"),
        (["show", "one"], 4, "weightsmith-delta.json"),
        (["list", "nowhere"], 2, "no folder"),
        (["dedupe", "nowhere"], 2, "no folder"),
        (["gc", "nowhere"], 2, "no folder"),
        (["materialise", ".", "one", "out"], 2, "no model"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_in_one_line_and_leaves_nothing(
    family, weightsmith, arguments, code, words
):
    before = sorted(family.rglob("*"))
    result = (
        weightsmith("delta", *arguments, "--quiet")
        if arguments[0] in ("pack", "unpack")
        else (weightsmith("delta", *arguments))
    )
    assert result.code == code
    assert words in result.err
    assert len(result.err.splitlines()) == 1
    assert sorted(family.rglob("*")) == before


def test_another_base_is_refused(family, weightsmith):
    weightsmith("delta", "pack", "one", "--base", "base", "package", "--quiet")
    result = weightsmith("delta", "unpack", "package", "out", "--base", "two", "--quiet")
    assert result.code == 4
    # The first of the file.
    assert "lm_head.weight" in result.err
    assert not (family / "out").exists()


def test_a_library(family, weightsmith):
    (family / "library").mkdir()
    shutil.copytree(family / "one", family / "copy")
    for name in ("one", "two", "copy"):
        packed = weightsmith("delta", "pack", name, "--base", "base", f"library/{name}", "--quiet")
        assert packed.code == 0
    listed = weightsmith("delta", "list", "library")
    assert "3 models" in listed.out
    found = json.loads(weightsmith("delta", "list", "library", "--json").out)
    assert [member["name"] for member in found["members"]] == ["copy", "one", "two"]
    assert json.loads(weightsmith("delta", "dedupe", "library", "--json").out)["streams"] >= 0
    assert "shared stream" in weightsmith("delta", "dedupe", "library").out
    assert "0 things" in weightsmith("delta", "gc", "library", "--dry-run").out
    made = json.loads(weightsmith("delta", "gc", "library", "--json").out)
    assert made == {"schema": 1, "removed": True, "bytes": 0, "paths": []}
    assert weightsmith("delta", "materialise", "library", "copy", "out", "--quiet").code == 0
    assert same(family / "one", family / "out")
