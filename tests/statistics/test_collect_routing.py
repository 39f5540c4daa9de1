"""What routers choose, against every expert run on every token by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tests.live.architectures import ARCHITECTURES, reference

import weightsmith
from weightsmith.errors import CompatibilityError
from weightsmith.live import load_model
from weightsmith.statistics import Samples, next_tokens, unpadded


def data(name):
    items = [
        replace(item, labels=item.inputs["input_ids"][1:], classes=48)
        for item in unpadded(ARCHITECTURES[name].batch())
    ]
    return Samples("items", items, "", next_tokens, is_text=True)


def routed(model, samples):
    """Tokens [N, D], chosen experts [N, K] and their weights, of every mixture."""
    found = {}

    def hook(name):
        def keep(_, inputs, __):
            for kept, tensor in zip(found.setdefault(name, ([], [], [])), inputs, strict=True):
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


@pytest.mark.parametrize("name", ["mixtral", "qwen3 moe", "gpt-oss"])
def test_routing_is_that_of_all_tokens(saved, tmp_path, name):
    folder, samples = saved(name), data(name)
    names = load_model(folder).names
    found, mixtures = routed(reference(folder), samples)
    files = []
    for out, memory in (("whole", 1 << 40), ("blocks", 1)):
        place = tmp_path / f"{out}.safetensors"
        weightsmith.collect("routing", folder, data=samples, out=place, memory_bytes=memory)
        files.append(place.read_bytes())
    assert files[0] == files[1]
    statistics = load_file(tmp_path / "whole.safetensors")
    assert len(found) == 2
    for path, (tokens, index, weights) in found.items():
        parent = path.rpartition(".")[0]
        router = next(r for r in ("gate", "router") if f"{parent}.{r}.weight" in names.owners)
        (key,) = names.files_of(f"{parent}.{router}.weight")
        experts = len(statistics[f"{key}::chosen"])
        chosen = torch.stack([(index == e).any(1) for e in range(experts)]).double().mean(1)
        mean = torch.stack([(weights * (index == e)).sum(1) for e in range(experts)]).mean(1)
        outputs = []
        with torch.no_grad():
            for e in range(experts):
                one = torch.full((len(tokens), 1), e)
                outputs.append(mixtures[path](tokens, one, torch.ones(len(tokens), 1)))
        unit = [o / o.norm(dim=1, keepdim=True) for o in outputs]
        cosines = torch.stack([torch.stack([(a * b).sum(1).mean() for b in unit]) for a in unit])
        for mark, expected in (
            ("chosen", chosen),
            ("weights", mean),
            ("outputs", torch.stack([o.mean(0) for o in outputs])),
            ("similarity", cosines),
        ):
            torch.testing.assert_close(
                statistics[f"{key}::{mark}"], expected.float(), rtol=1e-4, atol=1e-6
            )


def test_a_network_without_mixtures_has_no_routing(saved, tmp_path):
    with pytest.raises(CompatibilityError, match="nothing that routing statistics are of"):
        weightsmith.collect(
            "routing", saved("llama"), data=data("llama"), out=tmp_path / "o.safetensors"
        )
    assert not list(tmp_path.iterdir())
