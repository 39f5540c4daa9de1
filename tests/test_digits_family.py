"""The family that the demo merges: its numbers are what the demo's table promises."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from statistics import mean

import pytest
import torch
from safetensors.torch import load_file

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits"


@pytest.fixture(scope="module")
def family():
    specification = importlib.util.spec_from_file_location("digits_family", EXAMPLE / "family.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules["digits_family"] = module
    specification.loader.exec_module(module)
    yield module
    del sys.modules["digits_family"]


@pytest.fixture(scope="module")
def states(family, tmp_path_factory):
    folders = family.build(tmp_path_factory.mktemp("digits"))
    return [load_file(folder / "model.safetensors") for folder in folders]


def test_the_base_reads_nothing(family, states):
    assert mean(family.score(states[0])) == pytest.approx(0.1, abs=0.02)


def test_each_expert_reads_its_own_half_of_the_digits_only(family, states):
    for state, own in zip(states[1:], family.EXPERTS.values(), strict=True):
        shares = family.score(state)
        assert min(shares[digit] for digit in own) > 0.9
        assert mean(shares[digit] for digit in range(10) if digit not in own) < 0.1
        assert mean(shares) < 0.56


def test_the_average_of_the_experts_reads_all_ten_digits(family, states):
    _, low, high = states
    shares = family.score({name: (low[name] + high[name]) / 2 for name in low})
    assert mean(shares) > 0.85
    assert min(shares) > 0.6


def test_task_arithmetic_reads_all_ten_digits(family, states):
    base, low, high = states
    merged = {
        name: base[name] + 0.6 * (low[name] - base[name]) + 0.6 * (high[name] - base[name])
        for name in base
    }
    shares = family.score(merged)
    assert mean(shares) > 0.85
    assert min(shares) > 0.6


def ties(base, experts, density):
    """TIES written out for one tensor: trim, elect the sign, average what agrees with it."""
    changes = []
    for expert in experts:
        change = (expert - base).flatten()
        kept = torch.topk(change.abs(), max(1, round(density * change.numel()))).indices
        changes.append(torch.zeros_like(change).index_put((kept,), change[kept]))
    stacked = torch.stack(changes)
    agrees = stacked * torch.sign(stacked.sum(0)) > 0
    return base + ((stacked * agrees).sum(0) / agrees.sum(0).clamp(min=1)).reshape(base.shape)


def test_ties_reads_all_ten_digits(family, states):
    base, *experts = states
    merged = {name: ties(base[name], [state[name] for state in experts], 0.2) for name in base}
    shares = family.score(merged)
    assert mean(shares) > 0.85
    assert min(shares) > 0.6


def test_the_family_is_the_same_every_time(family, states, tmp_path):
    family.build(tmp_path)
    again = load_file(tmp_path / "expert-high" / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in states[2].items())


def test_the_suite_has_every_held_out_image_once_in_the_task_of_its_half(family, states, tmp_path):
    from weightsmith.evaluation.items import read_labelled
    from weightsmith.evaluation.suite import load_suite

    _, held_out = family.load_images()
    family.write_suite(tmp_path, held_out)
    tasks = load_suite(tmp_path / "suite.yaml").tasks
    found = {task.name: read_labelled(task) for task in tasks}
    assert sum(len(items.labels) for items in found.values()) == len(held_out.digits) == 540
    assert set(found["low"].labels) == {0, 1, 2, 3, 4}
    assert found["high"].slices[0] == str(found["high"].labels[0])
    network = family.Classifier()
    network.load_state_dict(states[1])
    with torch.no_grad():
        guesses = network(torch.from_numpy(found["low"].inputs)).argmax(1).numpy()
    assert (guesses == found["low"].labels).mean() > 0.95
