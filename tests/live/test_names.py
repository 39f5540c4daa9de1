"""Names in memory and in files: what from_pretrained loads is loaded alike, and goes back as it was stored."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import save_file

from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.live import load_model

from .architectures import ARCHITECTURES, reference, stored_tensors


def assert_same(one, other):
    """Every tensor of two outputs is the same to the bit."""
    assert one.keys() == other.keys()
    kept = [key for key in one if torch.is_tensor(one[key])]
    assert kept
    assert not [key for key in kept if not torch.equal(one[key], other[key])]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_computes_what_from_pretrained_computes(saved, name, dtype):
    folder, batch = saved(name), ARCHITECTURES[name].batch()
    expected = reference(folder, getattr(torch, dtype))
    live = load_model(folder, dtype=dtype)
    own = live.module.state_dict()
    assert own.keys() == expected.state_dict().keys()
    for key, tensor in expected.state_dict().items():
        assert own[key].dtype == tensor.dtype, key
        assert torch.equal(own[key], tensor), key
    for key, buffer in expected.named_buffers():
        assert torch.equal(live.module.get_buffer(key), buffer), key
    if "pixel_values" in batch:
        batch["pixel_values"] = batch["pixel_values"].to(expected.dtype)
    with torch.no_grad():
        assert_same(live.module(**batch), expected(**batch))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tensors_in_memory_go_back_to_the_names_and_bytes_of_the_files(saved, name):
    folder = saved(name)
    live, stored = load_model(folder), stored_tensors(folder)
    own = live.module.state_dict()
    back = live.names.to_files({live.names.owners[key]: own[key] for key in own})
    assert back.keys() == stored.keys()
    assert not [key for key in stored if not torch.equal(back[key], stored[key].float())]
    for key in own:
        for file in live.names.files_of(key):
            assert key in live.names.touched_by([file])
    assert live.matched == len(stored)


def test_experts_that_files_keep_apart_are_one_tensor_in_memory(saved):
    live = load_model(saved("mixtral"))
    (fused,) = live.names.touched_by(["model.layers.1.block_sparse_moe.experts.2.w1.weight"])
    assert fused == "model.layers.1.mlp.experts.gate_up_proj"
    files = live.names.files_of(fused)
    assert len(files) == 8
    assert files[:2] == tuple(
        f"model.layers.1.block_sparse_moe.experts.{i}.w1.weight" for i in range(2)
    )


def rewritten(folder, made, change):
    """A copy of a checkpoint with other tensors."""
    shutil.copytree(folder, made)
    tensors = change(stored_tensors(folder))
    own = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(own, made / "model.safetensors", metadata={"format": "pt"})
    return made


def in_memory_names(tensors):
    """Mixtral's experts as transformers 5 has them in memory."""
    kept = {k: t for k, t in tensors.items() if ".experts." not in k}
    kept = {k.replace("block_sparse_moe", "mlp"): t for k, t in kept.items()}
    for layer in range(2):
        old = f"model.layers.{layer}.block_sparse_moe.experts"
        parts = {
            w: [tensors[f"{old}.{i}.{w}.weight"] for i in range(4)] for w in ("w1", "w2", "w3")
        }
        new = f"model.layers.{layer}.mlp.experts"
        kept[f"{new}.gate_up_proj"] = torch.cat([torch.stack(parts[w]) for w in ("w1", "w3")], 1)
        kept[f"{new}.down_proj"] = torch.stack(parts["w2"])
    return kept


def without(prefix):
    return lambda tensors: {k.removeprefix(prefix): t for k, t in tensors.items()}


def old_norms(tensors):
    return {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): t
        for k, t in tensors.items()
    }


LAYOUTS = {
    "experts stacked as in memory": ("mixtral", in_memory_names),
    "no prefix of the base model": ("gpt2", without("transformer.")),
    "norms of the first BERT": ("bert masked", old_norms),
    "a head that is tied, stored too": (
        "llama tied",
        lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"].clone()},
    ),
    "a head that is called tied, with numbers of its own": (
        "llama tied",
        lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"] + 1},
    ),
    "the tied head alone": (
        "llama tied",
        lambda t: {k.replace("model.embed_tokens", "lm_head"): v for k, v in t.items()},
    ),
    "half precision and more beside each other": (
        "llama",
        lambda t: {k: v.bfloat16() if "mlp" in k else v.double() for k, v in t.items()},
    ),
}


@pytest.mark.parametrize(("name", "change"), LAYOUTS.values(), ids=LAYOUTS)
def test_other_layouts_of_files_load_as_from_pretrained_loads_them(saved, tmp_path, name, change):
    folder = rewritten(saved(name), tmp_path / "made", change)
    expected, live = reference(folder), load_model(folder)
    state = live.module.state_dict()
    for key, tensor in expected.state_dict().items():
        assert torch.equal(state[key], tensor), key
    batch = ARCHITECTURES[name].batch()
    with torch.no_grad():
        assert_same(live.module(**batch), expected(**batch))
    stored = stored_tensors(folder)
    own = {live.names.owners[key]: state[key] for key in state}
    for key, tensor in live.names.to_files(own).items():
        assert torch.equal(tensor, stored[key].float()), key


def test_a_head_is_one_tensor_with_the_embedding_only_if_it_holds_the_same_numbers(saved, tmp_path):
    def is_one(folder):
        module = load_model(folder).module
        return module.lm_head.weight is module.model.embed_tokens.weight

    changes = {name: change for name, (_, change) in LAYOUTS.items() if "tied" in name}
    found = {
        name: is_one(rewritten(saved("llama tied"), tmp_path / str(i), change))
        for i, (name, change) in enumerate(changes.items())
    }
    assert found == {name: "of its own" not in name for name in changes}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: {k: v for k, v in t.items() if "norm.weight" not in k}, "lacks 5 tensors"),
        (lambda t: {**t, "extra": torch.ones(1)}, r"has 1 tensor without a place .*'extra'"),
        (lambda t: {**t, "model.norm.weight": torch.ones(17)}, r"has the shape \[17\]"),
        (
            lambda t: {**t, "norm.weight": t["model.norm.weight"] + 1},
            "two tensors for one place in its network, .*which differ",
        ),
    ],
)
def test_files_that_do_not_fit_the_network_are_refused_in_a_sentence(
    saved, tmp_path, change, sentence
):
    folder = rewritten(saved("llama"), tmp_path / "made", change)
    with pytest.raises(CompatibilityError, match=sentence) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_a_name_that_no_file_has_is_refused(saved):
    live = load_model(saved("llama"))
    with pytest.raises(UsageError, match=r"has no tensor 'model\.layers\.9'"):
        live.names.touched_by(["model.layers.9"])


def test_code_of_a_checkpoint_is_not_run(saved, tmp_path):
    import json

    folder = rewritten(saved("llama"), tmp_path / "made", dict)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["Own"], "auto_map": {"AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UsageError, match=r"'Own' .*code of a checkpoint's own is not run"):
        load_model(folder)
    assert not (tmp_path / "ran").exists()
