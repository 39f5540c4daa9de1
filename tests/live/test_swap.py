"""Weights exchanged in place: the same as loading anew, in the same memory, and all or nothing."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from weightsmith.errors import CheckpointError, CompatibilityError, UsageError
from weightsmith.live import KeptNetwork, load_model, open_source
from weightsmith.live.residency import Residency

from .architectures import ARCHITECTURES, stored_tensors


def states(live):
    return {key: tensor.clone() for key, tensor in live.module.state_dict().items()}


def assert_states(one, other):
    assert one.keys() == other.keys()
    assert not [key for key in one if not torch.equal(one[key], other[key])]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_swap_is_a_load_in_the_memory_that_is_there(saved, name):
    first, second = saved(name), saved(name, 1)
    live = load_model(first)
    parameters = dict(live.module.named_parameters())
    places = {key: p.data_ptr() for key, p in parameters.items()}
    live.swap(second)
    assert_states(live.module.state_dict(), states(load_model(second)))
    assert {key: p.data_ptr() for key, p in live.module.named_parameters()} == places
    assert all(own is parameters[key] for key, own in live.module.named_parameters())
    assert live.name == str(second)
    live.swap(stored_tensors(first))
    assert_states(live.module.state_dict(), states(load_model(first)))


def test_some_tensors_are_put_in_their_places_and_the_others_stay(saved, monkeypatch):
    live = load_model(saved("mixtral"))
    other = stored_tensors(saved("mixtral", 1))
    name = "model.layers.0.block_sparse_moe.experts.3.w3.weight"
    expected = states(live)
    expected["model.layers.0.mlp.experts.gate_up_proj"][3, 24:] = other[name]
    asked = []
    place = Residency.place
    monkeypatch.setattr(
        Residency,
        "place",
        lambda self, names, *rest: (asked.append(list(names)), place(self, names, *rest)),
    )
    live.put({name: other[name]})
    assert_states(live.module.state_dict(), expected)
    assert asked == [["model.layers.0.mlp.experts.gate_up_proj"]]
    assert torch.equal(live.names.to_files(dict(live.module.named_parameters()))[name], other[name])


def test_ties_follow_the_weights(saved):
    live = load_model(saved("llama tied"))
    tensors = stored_tensors(saved("llama tied"))
    embedding = tensors["model.embed_tokens.weight"]
    live.put({"model.embed_tokens.weight": embedding + 1})
    assert torch.equal(live.module.lm_head.weight, embedding + 1)
    live.swap({**tensors, "lm_head.weight": embedding * 2})
    assert torch.equal(live.module.lm_head.weight, embedding * 2)
    assert torch.equal(live.module.model.embed_tokens.weight, embedding)
    live.swap(tensors)
    assert live.module.lm_head.weight is live.module.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: {**t, "more": torch.ones(1)}, "without a place"),
        (lambda t: {k: v for k, v in t.items() if k != "model.norm.weight"}, "lacks 1 tensor"),
        (lambda t: {**t, "model.norm.weight": torch.ones(9)}, r"has the shape \[9\]"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(saved, change, sentence):
    live = load_model(saved("llama"))
    before = states(live)
    with pytest.raises(CompatibilityError, match=sentence):
        live.swap(change(stored_tensors(saved("llama", 1))))
    assert_states(live.module.state_dict(), before)
    live.logits(ARCHITECTURES["llama"].batch())


def test_another_network_is_refused_by_a_swap_and_built_by_a_kept_network(saved):
    live = load_model(saved("llama"))
    with pytest.raises(CompatibilityError, match=r"another config\.json than .*load it by itself"):
        live.swap(saved("mistral"))
    kept = KeptNetwork()
    first = kept.model_of(open_source(saved("llama")))
    assert kept.model_of(open_source(saved("llama", 1))) is first
    assert_states(first.module.state_dict(), states(load_model(saved("llama", 1))))
    second = kept.model_of(open_source(saved("mistral")))
    assert second is not first
    assert_states(second.module.state_dict(), states(load_model(saved("mistral"))))


def test_a_swap_that_breaks_off_leaves_a_model_that_does_not_run(saved, tmp_path):
    live = load_model(saved("llama"))
    broken = tmp_path / "broken"
    shutil.copytree(saved("llama", 1), broken)
    source = open_source(broken)
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError):
        live.swap(source)
    with pytest.raises(UsageError, match="not in memory as a whole"):
        live.logits(ARCHITECTURES["llama"].batch())
    live.swap(saved("llama", 1))
    assert_states(live.module.state_dict(), states(load_model(saved("llama", 1))))


def test_entries_of_the_configuration_that_say_nothing_of_the_network_may_differ(saved, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(saved("llama", 1), other)
    config = json.loads((other / "config.json").read_text())
    config |= {"transformers_version": "4.0.0", "dtype": "bfloat16"}
    (other / "config.json").write_text(json.dumps(config))
    live = load_model(saved("llama"))
    live.swap(other)
    assert_states(live.module.state_dict(), states(load_model(other)))


def test_a_recipe_is_swapped_in_as_what_it_merges_to(saved, tmp_path):
    import weightsmith
    from weightsmith.evaluation.subjects import open_subject

    recipe = {
        "weightsmith": 1,
        "merge_method": "linear",
        "models": [{"model": str(saved("llama", i))} for i in range(2)],
    }
    live = load_model(saved("llama"))
    live.swap(open_subject(weightsmith.Recipe.load(recipe)))
    weightsmith.merge(recipe, tmp_path / "out")
    assert_states(live.module.state_dict(), states(load_model(tmp_path / "out")))


def test_a_mixed_tensor_is_read_in_pieces(saved, monkeypatch, tmp_path):
    monkeypatch.setattr("weightsmith.live.tensor_reading._PIECE", 7)
    tensors = stored_tensors(saved("llama"))
    made = tmp_path / "made"
    shutil.copytree(saved("llama"), made)
    save_file({k: v.bfloat16() for k, v in tensors.items()}, made / "model.safetensors")
    own = load_model(made).module.state_dict()
    assert not [k for k, v in tensors.items() if not torch.equal(own[k], v.bfloat16().float())]
