"""Adapters that peft wrote, combined and given back to it: what other combiners get wrong is right."""

from __future__ import annotations

import json

import numpy as np
import pytest

from weightsmith.adapters.adapter_reading import open_adapter
from weightsmith.checkpoints import open_checkpoint
from weightsmith.deltas.changed import read_matrix
from weightsmith.engine.adapter_api import combine_adapters
from weightsmith.errors import CompatibilityError
from weightsmith.lora.as_changes import load_changes
from weightsmith.lora.low_rank_adapters import low_rank_adapter

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from .peft_family import llama, lora, merged

KINDS = {
    "alpha": {"r": 4, "lora_alpha": 16},
    "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "patterns": {
        "r": 4,
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 6},
        "alpha_pattern": {"v_proj": 5},
    },
    "dora": {"r": 3, "use_dora": True},
    "embeddings": {"r": 3, "target_modules": ["q_proj", "embed_tokens"]},
    "whole modules": {"r": 2, "modules_to_save": ["lm_head"]},
    "other tensors": {"r": 5, "target_modules": ["up_proj", "q_proj"]},
}


def changes(base, folder):
    """W' - W of every tensor that peft's merge changes."""
    before, after = open_checkpoint(base).tensors, open_checkpoint(folder).tensors
    found = {name: read_matrix(after[name]) - read_matrix(before[name]) for name in before}
    return {name: change for name, change in found.items() if change.any()}


def load(base, folder):
    return load_changes(open_adapter(folder), open_checkpoint(base))


def combined(base, folders, name, *asked, **more):
    """Combine adapters, and give the result with what peft makes of it."""
    out = base.parent / name
    made = combine_adapters(folders, out, *asked, base=base, **more)
    return made, changes(base, merged(base, out, f"{name}-merged"))


def assert_alike(found, expected):
    assert sorted(found) == sorted(expected)
    for name, change in expected.items():
        size = np.linalg.norm(change)
        assert np.linalg.norm(found[name] - change) < 2e-5 * size, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["cat", "svd"])
def test_one_adapter_with_weight_one_is_that_adapter(tmp_path, kind, method):
    base = llama(tmp_path)
    one = lora(base, "one", 1, **KINDS[kind])
    made, again = combined(base, [one], "again", method=method, weights=[1.0])
    assert all(lost < 1e-6 for lost in made.lost.values())
    assert_alike(again, changes(base, merged(base, one, "merged")))


def test_adapters_of_all_kinds_with_any_weights_are_summed_exactly(tmp_path):
    base = llama(tmp_path)
    weights = [0.5, -0.3, 1.2, 0.25, 0.7, 0.9, -1.0]
    expected = {}
    folders = []
    for i, (weight, kind) in enumerate(zip(weights, KINDS, strict=True)):
        folders.append(lora(base, f"a{i}", i, **KINDS[kind]))
        for name, change in changes(base, merged(base, folders[-1], f"m{i}")).items():
            expected[name] = expected.get(name, 0.0) + weight * change
    _, again = combined(base, folders, "all", method="cat", weights=weights)
    assert_alike(again, expected)
    # The scale is in the factors: nothing of the inputs' configurations may change it once more.
    config = json.loads((tmp_path / "all" / "adapter_config.json").read_text())
    assert not config.get("use_rslora")
    assert not config.get("use_dora")
    assert config.get("init_lora_weights", True) is True


def test_ranks_of_the_result_are_what_peft_loads_again(tmp_path):
    base = llama(tmp_path)
    folders = [lora(base, k, i, **KINDS[k]) for i, k in enumerate(("patterns", "alpha"))]
    _, again = combined(base, folders, "energy", weights=[0.5, 0.5], energy=0.9)
    found = low_rank_adapter(open_adapter(tmp_path / "energy"))
    assert len({f.change.rank for f in found.factors.values()}) > 1
    assert_alike(again, {k: f.change.rows(0, f.change.shape[0]) for k, f in found.factors.items()})


@pytest.mark.parametrize("method", ["ties", "dare_ties", "magnitude_prune"])
def test_nonlinear_methods_reach_peft_with_what_their_rank_keeps(tmp_path, method):
    base = llama(tmp_path)
    folders = [lora(base, k, i, **KINDS[k]) for i, k in enumerate(("rslora", "patterns"))]
    asked = {"weights": [1.0, 0.5], "parameters": {"density": 0.5}, "rank": 6}
    made, again = combined(base, folders, "nonlinear", method=method, **asked)
    found = low_rank_adapter(open_adapter(tmp_path / "nonlinear"))
    assert {f.change.rank for f in found.factors.values()} == {6}
    assert set(made.lost) == set(found.factors)
    assert all(0.0 < lost < 1.0 for lost in made.lost.values())
    assert_alike(again, {k: f.change.rows(0, f.change.shape[0]) for k, f in found.factors.items()})


def test_a_dora_needs_its_base(tmp_path):
    base = llama(tmp_path)
    dora = lora(base, "dora", 0, **KINDS["dora"])
    with pytest.raises(CompatibilityError, match="DoRA, which divides by norms"):
        low_rank_adapter(open_adapter(dora))


def test_a_dora_can_be_cut_when_it_is_loaded(tmp_path):
    base = llama(tmp_path)
    dora = lora(base, "dora", 0, **KINDS["dora"])
    whole = load(base, dora)
    cut = low_rank_adapter(open_adapter(dora), open_checkpoint(base), rank=4)
    for key, factors in cut.factors.items():
        true = whole.factors[key].change
        dense = true.rows(0, true.shape[0])
        u, s, vt = np.linalg.svd(dense)
        assert factors.change.rank == 4
        assert np.allclose(
            factors.change.rows(0, dense.shape[0]), (u[:, :4] * s[:4]) @ vt[:4], atol=1e-9
        )
