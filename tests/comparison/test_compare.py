"""Comparing real checkpoints and recipes: what is planted in their weights is what is found."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

import weightsmith
from weightsmith.comparison.versions import SCHEMA
from weightsmith.errors import UsageError

ITEMS, CLASSES = 60, 4


def save(folder, answers):
    """A checkpoint that answers the i-th one-hot input with answers[i]: its last layer is the table of answers."""
    folder.mkdir()
    table = np.zeros((CLASSES, ITEMS), np.float32)
    table[answers, np.arange(ITEMS)] = 1
    tensors = {
        "model.embed.weight": np.eye(ITEMS, dtype=np.float32),
        "model.embed.bias": np.zeros(ITEMS, np.float32),
        "classifier.weight": table,
        "classifier.bias": np.zeros(CLASSES, np.float32),
    }
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "digits-mlp",
        "num_inputs": ITEMS,
        "hidden_size": ITEMS,
        "num_hidden_layers": 0,
        "num_labels": CLASSES,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture
def bed(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(2)
    labels = generator.integers(CLASSES, size=ITEMS)
    halves = np.where(np.arange(ITEMS) < ITEMS // 2, "first", "second")
    inputs = np.eye(ITEMS, dtype=np.float32)
    np.savez(tmp_path / "t.npz", inputs=inputs, labels=labels, half=halves)
    task = {"name": "t", "kind": "classification", "data": "t.npz", "slice": "half"}
    suite = tmp_path / "suite.yaml"
    suite.write_text(yaml.safe_dump({"suite": "s", "tasks": [task]}))
    old = labels.copy()
    old[[4, 9, 33, 34, 50]] = (labels[[4, 9, 33, 34, 50]] + 1) % CLASSES
    new = old.copy()
    new[[9, 50]] = labels[[9, 50]]  # won
    new[[0, 7, 40]] = (labels[[0, 7, 40]] + 2) % CLASSES  # lost
    new[33] = (labels[33] + 3) % CLASSES  # wrong in another way
    return {
        "suite": suite,
        "old": save(tmp_path / "old", old),
        "new": save(tmp_path / "new", new),
        "labels": labels,
    }


def test_flips_planted_in_the_weights_of_a_pair_are_found_exactly(bed):
    found = weightsmith.compare(bed["old"], bed["new"], bed["suite"])
    flips = found.tasks[0].change.flips
    assert flips.negative == ("0", "7", "40")
    assert flips.positive == ("9", "50")
    assert flips.inconsistent == ("33",)
    assert flips.both_wrong == 3
    lost = {name: change.flips.negative for name, change in found.tasks[0].slices}
    assert lost == {"first": ("0", "7"), "second": ("40",)}


def test_a_model_compared_with_itself_has_no_flips_and_no_difference(bed):
    change = weightsmith.compare(bed["old"], bed["old"], bed["suite"]).tasks[0].change
    assert not change.flips.negative
    assert not change.flips.positive
    # No flip among so many items leaves room for some among others: 1.96 sqrt(2) / (N + 2) either way.
    room = 1.959964 * 2**0.5 / (change.items + 2)
    estimate = change.difference.estimate
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((-room, 0, room))


def test_a_recipe_is_compared_without_being_written(bed, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "weightsmith": 1,
                "merge_method": "linear",
                "models": [
                    {"model": bed["old"], "parameters": {"weight": 0.1}},
                    {"model": bed["new"], "parameters": {"weight": 0.9}},
                ],
            }
        )
    )
    found = weightsmith.compare(bed["new"], recipe, bed["suite"], parents=[bed["old"]])
    assert not found.tasks[0].change.flips.negative
    (parent,) = found.parents
    assert parent.tasks[0].change.flips.negative == ("0", "7", "40")


def test_the_parents_are_each_compared_with_the_new_model(bed):
    found = weightsmith.compare(
        bed["old"], bed["new"], bed["suite"], parents=[bed["old"], bed["new"]], base=bed["old"]
    )
    assert [parent.subject for parent in found.parents] == [bed["old"], bed["new"]]
    assert found.skill is not None


def test_the_mapping_is_json_with_a_schema(bed):
    content = weightsmith.compare(bed["old"], bed["new"], bed["suite"]).to_mapping()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["schema"] == SCHEMA


def test_a_checkpoint_needs_a_suite(bed):
    with pytest.raises(UsageError, match="name a suite"):
        weightsmith.compare(bed["old"], bed["new"])


def test_one_path_is_no_list_of_parents():
    with pytest.raises(UsageError, match="parents is a list"):
        weightsmith.compare("old.json", "new.json", parents="old.json")
