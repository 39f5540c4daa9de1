"""Tensors that are computed when they are read have the bytes of the merge, and one is kept at a time."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import weightsmith
from weightsmith.engine import LazyMerge
from weightsmith.errors import RecipeError
from weightsmith.tensors import read_bytes


@pytest.fixture
def recipe(tmp_path):
    rng = np.random.default_rng(0)
    models = []
    for number in range(3):
        path = tmp_path / f"{number}.safetensors"
        tensors = {name: rng.normal(size=(6, 5)).astype(np.float32) for name in ("a", "b", "c")}
        save_file(tensors, path)
        models.append({"model": str(path)})
    return {
        "weightsmith": 1,
        "merge_method": "ties",
        "base_model": models[0]["model"],
        "models": models[1:],
        "parameters": {"density": 0.4},
    }


def test_a_tensor_that_is_read_is_that_of_the_merge(recipe, tmp_path):
    weightsmith.merge(recipe, tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    lazy = LazyMerge(weightsmith.plan(recipe)).tensors
    assert lazy.keys() == merged.keys()
    for name in ("c", "a", "b", "a"):
        assert lazy[name].shape == merged[name].shape
        assert bytes(read_bytes(lazy[name], 7, 19)) == merged[name].reshape(-1)[7:19].tobytes()


def test_only_the_last_tensor_is_kept(recipe):
    merge = LazyMerge(weightsmith.plan(recipe))
    first = merge.computed("a")
    assert merge.computed("a") is first
    merge.computed("b")
    assert merge.computed("a") is not first


def test_a_plan_with_errors_is_refused(recipe, tmp_path):
    save_file({"a": np.ones((2, 2), np.float32)}, tmp_path / "other.safetensors")
    recipe["models"].append({"model": str(tmp_path / "other.safetensors")})
    with pytest.raises(RecipeError):
        LazyMerge(weightsmith.plan(recipe))
