"""Moments of two networks on the same data, against all rows of both written out."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tests.live.architectures import ARCHITECTURES, FEW, reference
from torch import nn

import weightsmith
from weightsmith.cli.main import execute
from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.live import ActivationStore, Passage, load_model, quiet_library
from weightsmith.statistics import Samples, next_tokens, one_class, unpadded
from weightsmith.statistics.cross_sums import CrossSums

from . import reference as by_hand
from .killing import killed_after

NORMS = (nn.LayerNorm, transformers.models.llama.modeling_llama.LlamaRMSNorm)


def items_of(name):
    """Items of an architecture, with labels if they are texts."""
    items = unpadded(ARCHITECTURES[name].batch()) * 2
    if name == "vit classes":
        items = [replace(i, labels=torch.tensor([n % 3]), classes=3) for n, i in enumerate(items)]
        return Samples("images", items, "log-likelihood", one_class)
    items = [replace(i, labels=i.inputs["input_ids"][1:], classes=48) for i in items]
    return Samples("texts", items, "log-likelihood", next_tokens, is_text=True)


def narrow(folder, seed=3):
    """A llama of other widths."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(**{**FEW, "hidden_size": 24, "intermediate_size": 20})
    with quiet_library():
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def cross(model, other, data, out, what="cross", **options):
    weightsmith.collect(what, model, other=other, data=data, out=out, **options)
    return load_file(out), weightsmith.read_statistics(out).header


def moments(side, x, y):
    return {
        f"{side}_cross": x.T @ y / len(x),
        f"{side}_mean": x.mean(0),
        f"{side}_mean_with": y.mean(0),
        f"{side}_square": x.square().mean(0),
        f"{side}_square_with": y.square().mean(0),
    }


@pytest.mark.parametrize("name", ["llama", "vit classes", "llama beside narrow"])
def test_moments_are_those_of_all_rows_of_both(saved, tmp_path, name):
    name, _, is_narrow = name.partition(" beside ")
    model = saved(name)
    other = narrow(tmp_path / "narrow") if is_narrow else saved(name, 1)
    data = items_of(name)
    found, header = cross(model, other, data, tmp_path / "c.safetensors")
    rows = [
        by_hand.passages(reference(folder), data.items, (nn.Linear, *NORMS))
        for folder in (model, other)
    ]
    names = load_model(model).names
    measured = set()
    for module, (read, given) in rows[0].items():
        (key,) = names.files_of(f"{module}.weight")
        expected = moments("input", read, rows[1][module][0])
        if not module.endswith("norm") and "layernorm" not in module and module != "lm_head":
            expected |= moments("output", given, rows[1][module][1])
        for word, value in expected.items():
            leader = header.same.get(key, key) if word.startswith("input") else key
            own = found[f"{leader}::{word}"]
            torch.testing.assert_close(own.double(), value, rtol=1e-4, atol=1e-5)
            measured.add(f"{leader}::{word}")
        assert header.rows[key] == len(read)
    patches = {key for key in found if "patch_embeddings" in key}
    assert found.keys() - patches == measured
    assert header.other_name == other.name
    assert header.other_digest != header.digest
    if name == "llama":
        layer = "model.layers.0"
        assert header.same[f"{layer}.mlp.up_proj.weight"] == f"{layer}.mlp.gate_proj.weight"


def test_a_network_beside_itself_has_its_gram_matrices(saved, tmp_path):
    model, data = saved("llama"), items_of("llama")
    found, _ = cross(model, model, data, tmp_path / "c.safetensors")
    weightsmith.collect("gram", model, data=data, out=tmp_path / "g.safetensors")
    grams = load_file(tmp_path / "g.safetensors")
    for key, upper in grams.items():
        own = found[f"{key.partition('::')[0]}::input_cross"]
        rows, columns = torch.triu_indices(*own.shape)
        torch.testing.assert_close(own[rows, columns], upper, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("what", ["cross", "cross,gram,fisher"])
@pytest.mark.usefixtures("one_thread")
def test_block_by_block_is_whole_to_the_bit_and_goes_on(saved, tmp_path, what):
    model, other, data = saved("llama"), saved("llama", 1), items_of("llama")
    files = []
    for out, memory in (("whole", 1 << 40), ("blocks", 1)):
        made = weightsmith.collect(
            what,
            model,
            other=other,
            data=data,
            out=tmp_path / f"{out}.safetensors",
            memory_bytes=memory,
        )
        assert made.blocks == (out == "blocks")
        files.append([file.path.read_bytes() for file in made.files])
    assert files[0] == files[1]
    out = tmp_path / "k.safetensors"

    def collecting(progress=None):
        return weightsmith.collect(
            what, model, other=other, data=data, out=out, memory_bytes=1, progress=progress
        )

    steps = len(data.items) * 2 + 1 if "," in what else 4
    assert killed_after(steps, collecting) == signal.SIGKILL
    assert Path(f"{out}.partial").exists()
    assert [file.path.read_bytes() for file in collecting().files] == files[0]


def test_two_models_are_needed_and_must_be_alike(saved, tmp_path, capsys):
    model, data, out = saved("llama"), items_of("llama"), tmp_path / "o.safetensors"
    with pytest.raises(UsageError, match="give the other one with --with"):
        weightsmith.collect("cross", model, data=data, out=out)
    with pytest.raises(UsageError, match="Only cross is of two models"):
        weightsmith.collect("gram", model, other=model, data=data, out=out)
    with pytest.raises(CompatibilityError, match="beside"):
        weightsmith.collect("cross", model, other=saved("gpt2"), data=data, out=out)
    with pytest.raises(UsageError, match="different blocks"):
        cross(model, one_layer(tmp_path / "one"), data, out, memory_bytes=1)
    small = tmp_path / "small"
    with quiet_library():
        config = transformers.LlamaConfig(**{**FEW, "vocab_size": 8})
        transformers.LlamaForCausalLM(config).save_pretrained(small)
    with pytest.raises(CompatibilityError, match="small"):
        cross(model, small, data, out)
    assert not list(tmp_path.glob("o.*"))
    command = ["collect", "cross", str(model), "--data", "none.txt", "--out", str(out)]
    assert execute(command) == 2
    assert capsys.readouterr().err.count("\n") == 1


def one_layer(folder):
    """A llama that ends after its first block."""
    config = transformers.LlamaConfig(**{**FEW, "num_hidden_layers": 1})
    with quiet_library():
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_module_that_one_network_calls_alone_is_told(saved):
    models = [load_model(saved("llama", seed)) for seed in (0, 1)]
    sums = CrossSums(*models, ActivationStore(1 << 20))
    passage = Passage((), "model.norm", (torch.ones(1, 3, 16),), {}, torch.ones(1, 3, 16))
    sums.see(passage)
    with pytest.raises(UsageError, match=r"calls model\.norm where"):
        sums.begin()
    sums = CrossSums(*models, ActivationStore(1 << 20))
    with pytest.raises(UsageError, match=r"calls model\.norm where"):
        sums.see_other(passage)
