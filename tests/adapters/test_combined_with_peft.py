"""Adapters that peft wrote, combined and given back to it: what other combiners get wrong is right."""

from __future__ import annotations

import json

import numpy as np
import pytest

from weightsmith.adapters.as_changes import load_changes
from weightsmith.adapters.bounds import Bound
from weightsmith.adapters.combining import combine
from weightsmith.adapters.low_rank import low_rank_adapter
from weightsmith.adapters.reading import open_adapter
from weightsmith.adapters.writing import write_adapter
from weightsmith.checkpoints import open_checkpoint
from weightsmith.deltas.changed import read_matrix
from weightsmith.engine.adapter_combination import combine_loaded
from weightsmith.errors import CompatibilityError

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


def back(base, found, name):
    """What peft makes of a combined adapter."""
    out = base.parent / name
    write_adapter(found, out, base=open_checkpoint(base))
    return out, changes(base, merged(base, out, f"{name}-merged"))


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
    found, report = combine([load(base, one)], method, [1.0])
    assert report.lost < 1e-6
    _, expected = back(base, found, "again")
    assert_alike(expected, changes(base, merged(base, one, "merged")))


def test_adapters_of_all_kinds_with_any_weights_are_summed_exactly(tmp_path):
    base = llama(tmp_path)
    weights = [0.5, -0.3, 1.2, 0.25, 0.7, 0.9, -1.0]
    expected = {}
    loaded = []
    for i, (weight, kind) in enumerate(zip(weights, KINDS, strict=True)):
        one = lora(base, f"a{i}", i, **KINDS[kind])
        loaded.append(load(base, one))
        for name, change in changes(base, merged(base, one, f"m{i}")).items():
            expected[name] = expected.get(name, 0.0) + weight * change
    found, _ = combine(loaded, "cat", weights, base=open_checkpoint(base))
    out, again = back(base, found, "all")
    assert_alike(again, expected)
    # The scale is in the factors: nothing of the inputs' configurations may change it once more.
    config = json.loads((out / "adapter_config.json").read_text())
    assert not config.get("use_rslora")
    assert not config.get("use_dora")
    assert config.get("init_lora_weights", True) is True


def test_ranks_of_the_result_are_what_peft_loads_again(tmp_path):
    base = llama(tmp_path)
    folders = [lora(base, k, i, **KINDS[k]) for i, k in enumerate(("patterns", "alpha"))]
    loaded = [load(base, folder) for folder in folders]
    found, _ = combine(loaded, "linear", [0.5, 0.5], bound=Bound(energy=0.9))
    assert len({f.change.rank for f in found.factors.values()}) > 1
    out, again = back(base, found, "energy")
    assert_alike(again, {k: f.change.rows(0, f.change.shape[0]) for k, f in found.factors.items()})
    read = low_rank_adapter(open_adapter(out))
    assert {k: f.change.rank for k, f in read.factors.items()} == {
        k: f.change.rank for k, f in found.factors.items()
    }


@pytest.mark.parametrize("method", ["ties", "dare_ties", "magnitude_prune"])
def test_nonlinear_methods_reach_peft_with_what_their_rank_keeps(tmp_path, method):
    base = llama(tmp_path)
    loaded = [
        load(base, lora(base, k, i, **KINDS[k])) for i, k in enumerate(("rslora", "patterns"))
    ]
    found, report = combine_loaded(
        loaded, method, [1.0, 0.5], parameters={"density": 0.5}, bound=Bound(rank=6)
    )
    assert all(t.rank == 6 and 0.0 < t.lost < 1.0 for t in report.tensors)
    _, again = back(base, found, "nonlinear")
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
