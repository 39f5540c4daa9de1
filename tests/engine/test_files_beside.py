"""Weights in files of their own are merged, verified, replayed and resumed like all others, and written back there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import weightsmith

from .interrupted import Recorder, Stop, bytes_of

HEAD, DENSE, SPARSE = "value_head.safetensors", "2_Dense/model.safetensors", "sparse_linear.pt"
_PT = {"format": "pt"}


def _random(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _model(folder: Path, seed: int) -> Path:
    """A sentence encoder with a dense module, a value head, and a pickled sparse head."""
    (folder / "2_Dense").mkdir(parents=True)
    layers = {f"encoder.layer.{i}.output.dense.weight": _random((4, 4), seed + i) for i in (0, 1)}
    save_file(layers, folder / "model.safetensors", _PT)
    (folder / "config.json").write_text('{"model_type": "bert", "num_hidden_layers": 2}')
    listed = [{"path": ""}, {"path": "2_Dense"}]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "2_Dense/config.json").write_text('{"in_features": 4, "out_features": 2}')
    save_file({"linear.weight": _random((2, 4), seed + 3)}, folder / DENSE, _PT)
    save_file({"v_head.summary.weight": _random((1, 4), seed + 4)}, folder / HEAD, _PT)
    torch.save({"weight": _random((1, 4), seed + 5), "bias": torch.ones(1)}, folder / SPARSE)
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    _model(tmp_path / "a", 10)
    _model(tmp_path / "b", 20)
    return tmp_path


def _recipe(root: Path, **more: Any) -> dict[str, Any]:
    models = [{"model": str(root / name), "parameters": {"weight": 0.5}} for name in "ab"]
    return {"weightsmith": 1, "merge_method": "linear", "models": models, **more}


def _read(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True) if file.suffix == ".pt" else load_file(file)


def _mean(root: Path, file: str) -> dict[str, torch.Tensor]:
    one, other = _read(root / "a" / file), _read(root / "b" / file)
    return {name: (one[name] + other[name]) / 2 for name in one}


def _assert_mean(root: Path, out: Path, file: str) -> None:
    found, wanted = _read(out / file), _mean(root, file)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


def _findings(recipe: dict[str, Any]) -> list[tuple[str, str]]:
    return [(f.code, f.severity.value) for f in weightsmith.plan(recipe).findings]


def test_files_that_all_models_have_are_merged_into_the_same_files(pair):
    assert _findings(_recipe(pair)) == []
    weightsmith.merge(_recipe(pair), pair / "out")
    for file in ("model.safetensors", HEAD, DENSE, SPARSE):
        _assert_mean(pair, pair / "out", file)
    assert {path.name for path in (pair / "out").iterdir()} >= {"modules.json", "config.json"}
    assert (pair / "out/2_Dense/config.json").read_bytes() == (
        pair / "a/2_Dense/config.json"
    ).read_bytes()


def test_verify_and_replay_know_them(pair):
    out = pair / "out"
    weightsmith.merge(_recipe(pair), out)
    found = weightsmith.verify(out, recompute=99)
    assert found.ok
    assert f"{DENSE}/linear.weight" in found.recomputed
    weightsmith.replay(out, pair / "again")
    for file in (HEAD, DENSE, SPARSE):
        assert (pair / "again" / file).read_bytes() == (out / file).read_bytes()


@pytest.mark.parametrize("file", [HEAD, DENSE, SPARSE])
def test_verify_finds_a_change_in_each(pair, file):
    out = pair / "out"
    weightsmith.merge(_recipe(pair), out)
    changed = bytearray((out / file).read_bytes())
    at = changed.index(next(iter(_read(out / file).values())).numpy().tobytes())
    changed[at] ^= 1
    (out / file).write_bytes(changed)
    problems = " ".join(weightsmith.verify(out).problems)
    assert f"file '{file}' was changed" in problems
    assert (f"tensor '{file}/" in problems) or "do not match their CRC-32" in problems


@pytest.mark.parametrize("stop_at", [4, "writing the manifest"])
def test_an_interrupted_run_is_continued(pair, stop_at):
    out = pair / "out"
    weightsmith.merge(_recipe(pair), out)
    expected = bytes_of(out)
    shutil.rmtree(out)
    with pytest.raises(Stop):
        weightsmith.merge(_recipe(pair), out, progress=Recorder(stop_at))
    weightsmith.merge(_recipe(pair), out)
    assert bytes_of(out) == expected
    # It is replaced where nothing in it was changed, for which every file is looked at.
    weightsmith.merge(_recipe(pair), out, force=True)
    assert bytes_of(out) == expected


def test_pickles_and_safetensors_of_one_module_are_one_tensor(pair):
    file = pair / "b" / DENSE
    torch.save(load_file(file), file.with_name("pytorch_model.bin"))
    wanted = _mean(pair, DENSE)
    file.unlink()
    weightsmith.merge(_recipe(pair), pair / "out")
    torch.testing.assert_close(_read(pair / "out" / DENSE), wanted)


def test_what_one_model_lacks_is_copied_from_the_donor_and_said(pair):
    (pair / "b" / HEAD).unlink()
    assert _findings(_recipe(pair)) == [("file-of-some", "warning")]
    weightsmith.merge(_recipe(pair), pair / "out")
    assert (pair / "out" / HEAD).read_bytes() == (pair / "a" / HEAD).read_bytes()
    _assert_mean(pair, pair / "out", DENSE)


def test_what_the_donor_lacks_is_left_out_and_said(pair):
    (pair / "a" / HEAD).unlink()
    plan = weightsmith.plan(_recipe(pair))
    (finding,) = plan.findings
    assert "left out" in finding.message
    weightsmith.merge(_recipe(pair), pair / "out")
    assert not (pair / "out" / HEAD).exists()
    rules = [{"match": {"glob": f"{HEAD}/*"}, "keep": str(pair / "b")}]
    weightsmith.merge(_recipe(pair, rules=rules), pair / "kept")
    assert (pair / "kept" / HEAD).read_bytes() == (pair / "b" / HEAD).read_bytes()


def test_a_donor_that_is_not_merged_gives_its_own_files(pair):
    donor = _model(pair / "donor", 30)
    for name in "ab":
        (pair / name / HEAD).unlink()
    weightsmith.merge(_recipe(pair, donor=str(donor)), pair / "out")
    assert (pair / "out" / HEAD).read_bytes() == (donor / HEAD).read_bytes()
    _assert_mean(pair, pair / "out", DENSE)


def test_an_expression_follows_the_same_rule(pair):
    (pair / "b" / HEAD).unlink()
    recipe = {
        "weightsmith": 1,
        "checkpoints": {"x": str(pair / "a"), "y": str(pair / "b")},
        "expression": "0.5 * x + 0.5 * y",
    }
    assert _findings(recipe) == [("file-of-some", "warning")]
    weightsmith.merge(recipe, pair / "out")
    assert (pair / "out" / HEAD).read_bytes() == (pair / "a" / HEAD).read_bytes()
    _assert_mean(pair, pair / "out", SPARSE)


def test_slices_take_them_along(pair):
    recipe = _recipe(pair)
    sources = [{**entry, "layer_range": [0, 1]} for entry in recipe.pop("models")]
    weightsmith.merge({**recipe, "slices": [{"sources": sources}]}, pair / "out")
    _assert_mean(pair, pair / "out", DENSE)
    assert len(load_file(pair / "out/model.safetensors")) == 1


def test_an_encoder_with_all_its_weights_in_modules_folders_is_merged_there(pair):
    for name in "ab":
        folder = pair / name
        (folder / "0_Transformer").mkdir()
        for file in ("model.safetensors", "config.json"):
            shutil.move(folder / file, folder / "0_Transformer" / file)
        listed = [{"path": "0_Transformer"}, {"path": "2_Dense"}]
        (folder / "modules.json").write_text(json.dumps(listed))
        for file in (HEAD, SPARSE):
            (folder / file).unlink()
    weightsmith.merge(_recipe(pair), pair / "out")
    _assert_mean(pair, pair / "out", "0_Transformer/model.safetensors")
    assert not list((pair / "out").glob("*.safetensors"))
    assert (pair / "out/0_Transformer/config.json").is_file()
    assert weightsmith.verify(pair / "out").ok


def test_a_delta_package_gives_them_back(pair):
    weightsmith.pack_delta(pair / "b", pair / "a", pair / "package")
    weightsmith.unpack_delta(pair / "package", pair / "out")
    for file in ("model.safetensors", HEAD, DENSE):
        assert (pair / "out" / file).read_bytes() == (pair / "b" / file).read_bytes()
    torch.testing.assert_close(_read(pair / "out" / SPARSE), _read(pair / "b" / SPARSE))


def test_a_dtype_that_a_pickle_cannot_hold_is_refused_in_the_plan(pair):
    with pytest.raises(weightsmith.WeightsmithError, match=r"sparse_linear\.pt.*cannot hold"):
        weightsmith.plan(_recipe(pair, dtype="float8_e4m3fn"))
