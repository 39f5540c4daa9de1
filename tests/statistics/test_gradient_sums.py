"""Sums over gradients: pieces, several items together, and where they lie."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.live.architectures import ARCHITECTURES

import weightsmith
from weightsmith.errors import ResourceError
from weightsmith.live import WeightGradient
from weightsmith.live.weight_gradients import Product
from weightsmith.statistics import Sample, Samples, next_tokens
from weightsmith.statistics.gradient_sums import (
    GradientSums,
    GroupedSums,
    ScalarGradient,
    SquareSums,
)
from weightsmith.statistics.log_probabilities import LogProbabilities
from weightsmith.statistics.losses import ItemScalar
from weightsmith.statistics.sum_space import SMALL, SumSpace


@pytest.mark.parametrize("together", [1, 7, 1000])
def test_sums_do_not_depend_on_how_many_items_are_taken_together(monkeypatch, together):
    monkeypatch.setattr("weightsmith.statistics.gradient_sums._ROWS", together)
    monkeypatch.setattr("weightsmith.live.weight_gradients._PIECE", {"cpu": 50})
    generator = np.random.default_rng(0)
    items = [(generator.normal(size=(4, 30)), generator.normal(size=(4, 11))) for _ in range(5)]
    weights = generator.normal(size=(30, 11))
    factors = [-0.5, 0.25, 3.0, -1.0, 2.0]
    squares, means = SquareSums(5, SumSpace()), GradientSums(5, 1, SumSpace())
    sums = GroupedSums(squares, means)
    theta = {"w": torch.from_numpy(weights).float()}
    for i, (left, right) in enumerate(items):
        terms = [Product(torch.from_numpy(left).float(), torch.from_numpy(right).float())]
        own = ScalarGradient(WeightGradient((30, 11), terms), i, i != 2, factors[i])
        sums.add("w", own, theta)
    sums.finish(theta)
    every = [left.T @ right for left, right in items]
    scaled = np.stack([factor * one for factor, one in zip(factors, every, strict=True)])
    expected = {
        "w": sum(one**2 for i, one in enumerate(every) if i != 2) / 5,
        "w::0": scaled[0],
        "w::mean": scaled.mean(0),
        "w::absolute": np.abs(scaled).mean(0),
        "w::taylor": scaled.mean(0) * weights,
        "w::sensitivity": np.abs((scaled * weights).sum((1, 2))).mean()[None],
    }
    found = {**squares.take().tensors, **means.take(theta).tensors}
    assert found.keys() == expected.keys()
    for key, own in expected.items():
        np.testing.assert_allclose(found[key].numpy(), own, rtol=1e-4, atol=1e-5)


def test_large_sums_lie_in_files_that_nobody_sees(tmp_path):
    space = SumSpace(tmp_path)
    large, small = space.zeros(SMALL + 1, "cpu"), space.zeros(SMALL, "cpu")
    assert (large.dtype, small.dtype) == (torch.float32, torch.float64)
    assert not list(tmp_path.iterdir())
    large[SMALL] += 2
    assert float(large.sum()) == 2
    mapped = Path("/proc/self/maps").read_text().splitlines()
    assert len([line for line in mapped if str(tmp_path) in line]) == 1


def test_sums_without_room_are_told(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "ftruncate", full)
    with pytest.raises(ResourceError, match=r"No space left on device.: 16777220 bytes are needed"):
        SumSpace(tmp_path).zeros(SMALL + 1, "cpu")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_go_back_as_those_of_torch(dtype):
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    classes, factors = torch.tensor([0, 8, 3, 3]), torch.tensor([1.0, 0.0, -2.0, 0.5])
    own, other = (logits.clone().requires_grad_() for _ in range(2))
    expected = other.float().log_softmax(-1).gather(1, classes[:, None])[:, 0]
    found = LogProbabilities(own).of_classes(classes)
    assert torch.equal(found, expected)
    (found * factors).sum().backward()
    (expected * factors).sum().backward()
    torch.testing.assert_close(own.grad, other.grad)


def test_labels_that_are_drawn_in_pieces_are_the_same(monkeypatch):
    logs = torch.randn(9, 40, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    whole = ItemScalar("mc", seed=5)._drawn(logs)
    monkeypatch.setattr("weightsmith.statistics.losses._AT_ONCE", 80)
    assert torch.equal(ItemScalar("mc", seed=5)._drawn(logs), whole)


def test_tied_weights_have_the_same_sums_block_by_block(saved, tmp_path):
    rows = ARCHITECTURES["llama tied"].batch()["input_ids"]
    items = [Sample({"input_ids": row}, row[1:], 48) for row in (*rows, rows[0][:4])]
    data = Samples("items", items, "objective", next_tokens, is_text=True)
    files = {}
    for memory in (1, 1 << 40):
        out = tmp_path / f"{int(math.log2(memory))}.safetensors"
        made = weightsmith.collect(
            "fisher,gradients:2", saved("llama tied"), data=data, out=out, memory_bytes=memory
        )
        files[made.blocks] = [file.path.read_bytes() for file in made.files]
    assert files[True] == files[False]
