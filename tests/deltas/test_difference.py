"""Differences of stored tensors, and the noise that rounding puts into them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from weightsmith.checkpoints.formats.weights import read_weights
from weightsmith.deltas.matrix_difference import MatrixDifference, is_same
from weightsmith.errors import NonFiniteError
from weightsmith.graph import range_finder


def stored(tmp_path, **tensors):
    save_file(tensors, tmp_path / "tensors.safetensors")
    return {t.name: t for t in read_weights(tmp_path / "tensors.safetensors").tensors}


def normal(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def test_rows_are_subtracted_in_float64_whatever_the_types(tmp_path):
    after, before = normal(0, 7, 5).to(torch.bfloat16), normal(1, 7, 5).float()
    found = stored(tmp_path, after=after, before=before)
    change = MatrixDifference(found["after"], found["before"], (7, 5))
    np.testing.assert_array_equal(change.rows(2, 6), (after.double() - before.double())[2:6])


def test_an_expert_begins_at_its_first_element(tmp_path):
    after, before = normal(0, 3, 4, 5).float(), normal(1, 3, 4, 5).float()
    found = stored(tmp_path, after=after, before=before)
    change = MatrixDifference(found["after"], found["before"], (4, 5), first=20)
    np.testing.assert_array_equal(change.rows(1, 4), (after.double() - before.double())[1, 1:])


def test_measures_do_not_depend_on_blocks(tmp_path, monkeypatch):
    after, before = normal(0, 40, 30).float(), normal(1, 40, 30).float()
    found = stored(tmp_path, after=after, before=before)
    change = MatrixDifference(found["after"], found["before"], (40, 30))
    expected = float((after.double() - before.double()).square().sum())
    assert change.measure().squares == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(range_finder, "_BLOCK", 70)
    assert change.measure().squares == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_noise_is_what_rounding_adds(tmp_path, dtype):
    exact = normal(0, 300, 200)
    rounded = exact.to(dtype)
    found = stored(tmp_path, after=rounded, before=rounded.clone())
    noise = MatrixDifference(found["after"], found["before"], (300, 200)).measure().noise
    assert float((rounded.double() - exact).square().sum()) == pytest.approx(noise, rel=0.05)


def test_damage_is_told_with_the_tensor(tmp_path):
    broken = normal(0, 3, 3).float()
    broken[1, 1] = float("nan")
    found = stored(tmp_path, after=broken, before=normal(1, 3, 3).float())
    with pytest.raises(NonFiniteError, match="after"):
        MatrixDifference(found["after"], found["before"], (3, 3)).measure()


def test_tensors_are_the_same_by_their_bytes(tmp_path):
    ints = torch.arange(6)
    found = stored(tmp_path, one=ints, two=ints.clone(), other=ints + 1, wide=ints.double())
    assert is_same(found["one"], found["two"])
    assert not is_same(found["one"], found["other"])
    assert not is_same(found["one"], found["wide"])
