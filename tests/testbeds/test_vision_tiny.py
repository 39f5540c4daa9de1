"""The family that tests and demonstrations use: its checkpoints, heads, figures and digests."""

from __future__ import annotations

import json
from statistics import mean

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

import weightsmith
from weightsmith.testbeds.build import build
from weightsmith.testbeds.models import heads, vit

TASKS = ("shapes", "gratings", "dots", "digits")


def a_head():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 8, generator=generator)
    labels = torch.arange(40) % 4
    return heads.make_head(features, labels, ("a", "b", "γ", "d"), 16.0), features, labels


def test_a_head_points_at_the_centred_means_of_its_classes():
    head, features, labels = a_head()
    for k in range(4):
        towards = (features[labels == k].double().mean(0) - features.double().mean(0)).numpy()
        towards /= np.linalg.norm(towards)
        assert np.allclose(head.directions[k].numpy(), towards, atol=1e-6)
    centred = features.double() - features.double().mean(0)
    cosines = centred / centred.norm(dim=1, keepdim=True) @ head.directions.double().T
    assert torch.allclose(head.logits(features).double(), 16 * cosines, atol=1e-5)


def test_a_head_file_reads_back_and_is_the_same_each_time(tmp_path):
    head, features, labels = a_head()
    for name in ("a", "b", "c", "d"):
        heads.write_head(head, tmp_path / name)
    assert len({(tmp_path / name).read_bytes() for name in "abcd"}) == 1
    again = heads.read_head(tmp_path / "a")
    assert again.classes == head.classes
    assert torch.equal(again.logits(features), head.logits(features))
    assert again.right(features, labels) == head.right(features, labels)


def test_a_vit_reads_back_as_it_was_though_its_names_differ_on_disk(tmp_path):
    model = vit.new_model(vit.VitSize(width=16, layers=2, heads=2), seed=3)
    vit.write_model(model, tmp_path)
    again = vit.read_model(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as stored:
        on_disk = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    assert len(on_disk) == len(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    images = torch.randn(3, 1, 24, 24)
    assert torch.equal(vit.all_features(model, images), vit.all_features(again, images))


def test_the_same_seed_gives_the_same_network_and_another_does_not():
    size = vit.VitSize(width=16, layers=1, heads=2)
    one, same, other = (vit.new_model(size, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build("vision-tiny", tmp_path_factory.mktemp("built") / "family")


@pytest.fixture(scope="module")
def record(built):
    return json.loads((built / "family.json").read_text())


@pytest.mark.slow
def test_every_expert_beats_the_base_on_its_own_task_and_the_average_loses_it(record):
    figures = record["figures"]
    base = [figures["base"][task]["test"] for task in TASKS]
    own = [figures[f"experts/{task}"][task]["test"] for task in TASKS]
    average = [figures["average"][task]["test"] for task in TASKS]
    assert all(expert > start + 0.03 for expert, start in zip(own, base, strict=True))
    assert mean(own) > mean(base) + 0.1
    assert mean(own) > mean(average) + 0.1


@pytest.mark.slow
def test_the_figures_are_those_of_the_files(built, record):
    for member in record["members"]:
        model = vit.read_model(built / member)
        for task in TASKS:
            head = heads.read_head(built / f"heads/{task}.safetensors")
            with np.load(built / f"data/{task}.test.npz") as items:
                images = torch.from_numpy(items["inputs"].astype(np.float32))
                labels = torch.from_numpy(items["labels"])
            right = head.right(vit.all_features(model, images), labels)
            assert right == pytest.approx(record["figures"][member][task]["test"], abs=1e-4)


@pytest.mark.slow
def test_the_suites_name_files_that_are_there(built):
    for split in ("validation", "test"):
        suite = yaml.safe_load((built / f"suite.{split}.yaml").read_text())
        assert [task["name"] for task in suite["tasks"]] == list(TASKS)
        for task in suite["tasks"]:
            assert (built / task["data"]).is_file()
            assert split in task["data"]
            assert (built / task["head"]).is_file()


@pytest.mark.slow
def test_a_second_build_from_nothing_has_the_same_digests(record, tmp_path):
    again = json.loads((build("vision-tiny", tmp_path / "family") / "family.json").read_text())
    assert again["files"] == record["files"]


@pytest.mark.slow
def test_weightsmith_merges_to_the_figures_that_the_build_measured(built, record, tmp_path):
    (name,) = [name for name in record["figures"] if name.startswith("task arithmetic")]
    recipe = {
        "weightsmith": 1,
        "merge_method": "task_arithmetic",
        "base_model": str(built / "base"),
        "models": [{"model": str(built / f"experts/{task}")} for task in TASKS],
        "parameters": {"lambda": float(name.partition(", ")[2])},
    }
    weightsmith.merge(weightsmith.Recipe.load(recipe), tmp_path / "merged")
    model = vit.read_model(tmp_path / "merged")
    for task in TASKS:
        head = heads.read_head(built / f"heads/{task}.safetensors")
        with np.load(built / f"data/{task}.test.npz") as items:
            images = torch.from_numpy(items["inputs"].astype(np.float32))
            right = head.right(vit.all_features(model, images), torch.from_numpy(items["labels"]))
        assert right == pytest.approx(record["figures"][name][task]["test"], abs=2e-3)
