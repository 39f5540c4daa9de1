"""Gram matrices of experts that are stacks in memory, against every token multiplied by itself."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.live.architectures import ARCHITECTURES, reference, stored_tensors

import weightsmith
from weightsmith.statistics import Samples, next_tokens, unpadded
from weightsmith.tensors import read_array


def data(name):
    return Samples("items", unpadded(ARCHITECTURES[name].batch()), "", next_tokens, is_text=True)


def routed(model, samples):
    """Tokens [N, D], chosen experts [N, K] of every mixture."""
    found = {}

    def hook(name):
        def keep(_, inputs, __):
            for kept, tensor in zip(found.setdefault(name, ([], [])), inputs[:2], strict=True):
                kept.append(tensor)

        return keep

    mixtures = {n: m for n, m in model.named_modules() if n.endswith(".experts")}
    handles = [m.register_forward_hook(hook(n)) for n, m in mixtures.items()]
    with torch.no_grad():
        for sample in samples.items:
            model(input_ids=sample.inputs["input_ids"][None])
    for handle in handles:
        handle.remove()
    return {n: [torch.cat(kept) for kept in own] for n, own in found.items()}, mixtures


def inner(name, experts, rows, e):
    """What the second matrix of an expert reads, in float64."""
    first = experts.gate_up_proj[e].double()
    if name == "gpt-oss":
        gate_up = rows @ first + experts.gate_up_proj_bias[e].double()
        return experts._apply_gate(gate_up)
    gate, up = (rows @ first.T).chunk(2, dim=1)
    return gate * gate.sigmoid() * up


# The names of the files of an expert's matrices: those that read tokens, and the one that reads what they give.
FILES = {
    "mixtral": ("{p}.{e}.w1.weight", "{p}.{e}.w3.weight", "{p}.{e}.w2.weight"),
    "deepseek v3": (
        "{p}.{e}.gate_proj.weight",
        "{p}.{e}.up_proj.weight",
        "{p}.{e}.down_proj.weight",
    ),
    "gpt-oss": ("{p}.gate_up_proj", "{p}.gate_up_proj", "{p}.down_proj"),
}


@pytest.mark.parametrize("name", FILES)
def test_grams_of_experts_are_of_the_tokens_routed_to_each(saved, tmp_path, name):
    folder, samples = saved(name), data(name)
    files = []
    for out, memory in (("whole", 1 << 40), ("blocks", 1)):
        place = tmp_path / f"{out}.safetensors"
        weightsmith.collect("gram", folder, data=samples, out=place, memory_bytes=memory)
        files.append(place.read_bytes())
    assert files[0] == files[1]
    statistics = weightsmith.read_statistics(tmp_path / "whole.safetensors")
    found, mixtures = routed(reference(folder), samples)
    assert found
    seen = 0
    for path, (tokens, index) in found.items():
        stored = path.replace(".mlp.", ".block_sparse_moe.") if name == "mixtral" else path
        for e in range(4):
            rows = tokens[(index == e).any(1)].double()
            with torch.no_grad():
                given = inner(name, mixtures[path], rows, e)
            for file, read in zip(FILES[name], (rows, rows, given), strict=True):
                key = file.format(p=stored, e=e)
                (held,) = statistics.names(key)
                gram = torch.from_numpy(read_array(statistics.checkpoint.tensors[held]))
                gram = gram[e] if gram.ndim == 3 else gram
                expected = read.T @ read / max(len(read), 1)
                torch.testing.assert_close(gram, expected, rtol=1e-4, atol=1e-6)
                if name == "gpt-oss":
                    counts = read_array(statistics.checkpoint.tensors[f"{key}::tokens"])
                    assert counts[e] == len(rows)
                else:
                    assert statistics.header.rows[held] == len(rows)
                seen += len(rows)
    assert seen


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
def test_regmean_merges_experts_by_their_own_tokens(saved, tmp_path, name):
    folder, models = saved(name), []
    for number in (1, 2):
        own = tmp_path / f"expert-{number}"
        own.mkdir()
        generator = torch.Generator().manual_seed(number)
        tensors = {
            key: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
            for key, tensor in stored_tensors(folder).items()
        }
        save_file(tensors, own / "model.safetensors", {"format": "pt"})
        (own / "config.json").write_bytes((folder / "config.json").read_bytes())
        out = tmp_path / f"{number}.safetensors"
        weightsmith.collect("gram", own, data=data(name), out=out)
        models.append({"model": str(own), "statistics": str(out)})
    recipe = {"weightsmith": 1, "merge_method": "regmean", "models": models}
    recipe["parameters"] = {"alpha": 1.0}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    weightsmith.merge(tmp_path / "r.yaml", tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    one, other = (load_file(tmp_path / f"expert-{n}" / "model.safetensors") for n in (1, 2))
    key = next(k for k in merged if FILES[name][2].format(p="", e=1)[1:] in k)
    grams = []
    for number in (1, 2):
        statistics = weightsmith.read_statistics(tmp_path / f"{number}.safetensors")
        own = torch.from_numpy(read_array(statistics.checkpoint.tensors[key]))
        grams.append(own[1] if own.ndim == 3 else own)
    matrices = [t[key][1].T if t[key].ndim == 3 else t[key] for t in (one, other)]
    # What the merged matrix gets wrong on both experts' tokens has no part that a matrix could mend.
    found = (merged[key][1].T if merged[key].ndim == 3 else merged[key]).double()
    left = sum((found - m.double()) @ g for m, g in zip(matrices, grams, strict=True))
    scale = sum((matrices[0] - matrices[1]).double().abs().max() * g.abs().max() for g in grams)
    assert float(left.abs().max()) < 1e-4 * float(scale)
    assert not torch.allclose(found.float(), (matrices[0] + matrices[1]) / 2, atol=1e-4)
