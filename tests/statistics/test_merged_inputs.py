"""RegMean++ against a loop over transformers' own networks that merges one layer after the other."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.live.architectures import reference, stored_tensors
from torch import nn

import weightsmith
from weightsmith.cli.main import execute
from weightsmith.errors import CompatibilityError, OutputError, RecipeError, UsageError
from weightsmith.progress import Silence
from weightsmith.statistics import Sample, Samples, collect_through
from weightsmith.statistics.forward_sums import GramSums

ALPHA = 0.9
# The parts of each network in the order in which they run.
PARTS = {
    "llama": ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head"],
    "bert classes": [
        "bert.embeddings",
        "bert.encoder.layer.0",
        "bert.encoder.layer.1",
        "bert.pooler",
        "classifier",
    ],
}


@pytest.fixture
def experts(saved, tmp_path):
    """Two checkpoints of a network, with other weights each."""

    def made(name: str) -> list[Path]:
        folders = []
        for number in range(2):
            folder = shutil.copytree(saved(name), tmp_path / f"expert-{number}")
            generator = torch.Generator().manual_seed(number)
            tensors = {
                key: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
                for key, tensor in load_file(folder / "model.safetensors").items()
            }
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
            folders.append(folder)
        return folders

    return made


def texts(seed: int, count: int = 6) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, 40, (5 + i % 2,), generator=generator) for i in range(count)]
    items = [Sample({"input_ids": row}) for row in rows]
    return Samples(f"texts {seed}", items, predictions=lambda model, batch: model.logits(batch))


def recipe_of(folder: Path, models, **more) -> dict:
    entries = [
        {"model": str(model), "statistics": str(folder / f"{model.name}.gram.safetensors")}
        for model in models
    ]
    return {"weightsmith": 1, "merge_method": "regmean", "models": entries, **more}


def grams_of(network, part, samples) -> dict[str, np.ndarray]:
    """X^T X / N of what the linear layers of a part read, in a whole forward of each item by itself."""
    rows: dict[str, list[torch.Tensor]] = {}

    def keeping(name):
        return lambda _, inputs: rows.setdefault(name, []).append(inputs[0].flatten(0, -2))

    inside = network.get_submodule(part)
    handles = [
        module.register_forward_pre_hook(keeping(f"{part}.{path}".rstrip(".")))
        for path, module in inside.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        for sample in samples.items:
            network(input_ids=sample.inputs["input_ids"][None])
    for handle in handles:
        handle.remove()
    return {
        name: np.asarray(torch.cat(own).double().T @ torch.cat(own).double()) / len(torch.cat(own))
        for name, own in rows.items()
    }


def regression(weights, grams) -> np.ndarray:
    """(sum_k W_k G_k) (sum_k G_k)^+ around the mean, off-diagonal elements times alpha."""
    damped = [gram * (ALPHA + (1 - ALPHA) * np.eye(len(gram))) for gram in grams]
    mean = sum(weights) / len(weights)
    residual = sum((w - mean) @ g for w, g in zip(weights, damped, strict=True))
    return mean + residual @ np.linalg.pinv(sum(damped), hermitian=True)


def merged_layer_by_layer(networks, samples, parts):
    """The merged network, and each expert's Gram matrices by the names of modules."""
    merged = copy.deepcopy(networks[0])
    found = [{} for _ in networks]
    for part in parts:
        for own, network, data in zip(found, networks, samples, strict=True):
            mixed = copy.deepcopy(merged)
            mixed.get_submodule(part).load_state_dict(network.get_submodule(part).state_dict())
            own.update(grams_of(mixed, part, data))
        with torch.no_grad():
            for name, parameter in merged.get_submodule(part).named_parameters():
                full = f"{part}.{name}"
                weights = [n.get_parameter(full).double().numpy() for n in networks]
                module = full.rpartition(".")[0]
                grams = [own[module] for own in found] if module in found[0] else None
                is_map = grams is not None and name.endswith("weight")
                value = regression(weights, grams) if is_map else sum(weights) / len(weights)
                parameter.copy_(torch.from_numpy(value))
    return merged, found


@pytest.mark.parametrize("name", PARTS)
def test_every_part_reads_what_the_merged_parts_before_it_give(experts, tmp_path, name):
    folders, samples = experts(name), [texts(0), texts(1)]
    recipe = recipe_of(tmp_path, folders)
    made = collect_through(recipe, data=samples, batch_size=2)
    networks = [reference(folder) for folder in folders]
    merged, grams = merged_layer_by_layer(networks, samples, PARTS[name])
    for own, file in zip(grams, made.files, strict=True):
        statistics = weightsmith.read_statistics(file.path)
        assert statistics.header.through.startswith("the merge by ")
        known = 0
        for module, gram in own.items():
            (stored,) = statistics.names(f"{module}.weight")
            found = statistics.checkpoint.tensors[stored]
            data = bytearray(found.nbytes)
            found.read_into(0, found.numel, memoryview(data))
            array = np.frombuffer(data, np.float32).reshape(found.shape)
            np.testing.assert_allclose(array, gram, rtol=1e-4, atol=1e-4 * np.abs(gram).max())
            known += 1
        assert known == sum(isinstance(m, nn.Linear) for m in networks[0].modules())
    weightsmith.merge(recipe, tmp_path / "out")
    expected = merged.state_dict()
    for key, tensor in stored_tensors(tmp_path / "out").items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-3, atol=1e-4)
    assert weightsmith.verify(tmp_path / "out").ok


def test_the_first_block_reads_what_it_reads_without_the_merge_if_embeddings_agree(
    experts, tmp_path
):
    folders, samples = experts("llama"), [texts(0), texts(1)]
    both = [load_file(folder / "model.safetensors") for folder in folders]
    both[1]["model.embed_tokens.weight"] = both[0]["model.embed_tokens.weight"].clone()
    save_file(both[1], folders[1] / "model.safetensors", {"format": "pt"})
    made = collect_through(recipe_of(tmp_path, folders), data=samples)
    for file, folder, data in zip(made.files, folders, samples, strict=True):
        plain = tmp_path / "plain.safetensors"
        weightsmith.collect("gram", folder, data=data, out=plain)
        through, alone = load_file(file.path), load_file(plain)
        assert through.keys() == alone.keys()
        for name, tensor in alone.items():
            is_first = ".layers.0." in name
            assert torch.equal(through[name], tensor) is is_first, name


def test_a_run_that_is_interrupted_goes_on_and_gives_the_same(experts, tmp_path, monkeypatch):
    folders, samples = experts("llama"), [texts(0), texts(1)]
    recipe = recipe_of(tmp_path, folders)

    class Interrupted(Silence):
        def advance(self, amount, what=""):
            if what == "model.layers.1":
                raise KeyboardInterrupt

    whole = [f.path.read_bytes() for f in collect_through(recipe, data=samples).files]
    for entry in recipe["models"]:
        Path(entry["statistics"]).unlink()
    with pytest.raises(KeyboardInterrupt):
        collect_through(recipe, data=samples, progress=Interrupted())
    seen = []
    take = GramSums.take
    monkeypatch.setattr(
        GramSums, "take", lambda self, prefix: seen.append(prefix) or take(self, prefix)
    )
    again = collect_through(recipe, data=samples)
    assert [f.path.read_bytes() for f in again.files] == whole
    assert seen == ["lm_head", "lm_head"]
    # Other weights of the merge are another request.
    seen.clear()
    recipe["models"][0]["parameters"] = {"weight": 2.0}
    collect_through(recipe, data=samples)
    assert seen[0] == "model.layers.0"


def test_two_commands_lead_from_a_recipe_to_its_merge(experts, corpus, tmp_path, capsys):
    folders = experts("family language and lora")
    recipe = tmp_path / "regmean.yaml"
    names = [f"{folder.name}.gram.safetensors" for folder in folders]
    models = [{"model": str(f), "statistics": n} for f, n in zip(folders, names, strict=True)]
    recipe.write_text(json.dumps({"weightsmith": 1, "merge_method": "regmean", "models": models}))
    command = ["collect", "gram", str(recipe), "--data", str(corpus), "--context", "16"]
    assert execute([*command, "--limit", "3", "--quiet"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    # They lie beside the recipe, which is where it means them to be.
    assert all((tmp_path / name).is_file() and name in said for name in names)
    assert execute(["merge", str(recipe), str(tmp_path / "out"), "--quiet"]) == 0
    capsys.readouterr()
    assert execute([*command, "--out", str(tmp_path / "no.safetensors")]) == 2
    assert "into the files that its models name" in capsys.readouterr().err
    assert execute([*command, "--data", str(corpus), "--data", str(corpus)]) == 2
    assert "has 2 models, but 3 data are given" in capsys.readouterr().err


def test_what_has_no_layers_to_go_through_is_said_in_a_sentence(experts, saved, tmp_path):
    folders, data = experts("llama"), texts(0)

    def refused(error, match, recipe, data=data):
        with pytest.raises(error, match=match):
            collect_through(recipe, data=data)

    recipe = recipe_of(tmp_path, folders)
    bare = {**recipe, "models": [{"model": str(folder)} for folder in folders]}
    refused(RecipeError, "one file under `statistics:`", bare)
    same = copy.deepcopy(recipe)
    same["models"][1]["statistics"] = same["models"][0]["statistics"]
    refused(RecipeError, "name the same statistics", same)
    other = copy.deepcopy(recipe)
    other["models"][1]["model"] = str(saved("mistral"))
    refused(CompatibilityError, "merge models of one network", other)
    weights = copy.deepcopy(recipe)
    weights["models"][0]["statistics"] = str(folders[0] / "model.safetensors")
    refused(OutputError, "model.safetensors", weights)
    refused(RecipeError, "statistics of kind fisher", {**recipe, "merge_method": "fisher"})
    shared = saved("albert masked")
    again = shutil.copytree(shared, tmp_path / "again")
    refused(UsageError, "more than once", recipe_of(tmp_path, [shared, again]))
    assert not list(tmp_path.glob("*.gram.safetensors"))
