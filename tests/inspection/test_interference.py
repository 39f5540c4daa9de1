"""What several models changed, and where their changes meet, against float64 arithmetic done here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from weightsmith.checkpoints import open_checkpoint
from weightsmith.inspection.interference import measure_interference
from weightsmith.inspection.subspaces import (
    leading_directions,
    measure_overlaps,
    subspace_overlap,
)

Q = "model.layers.{}.self_attn.q_proj.weight"


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def measured(checkpoint, base, *experts, **options):
    opened = open_checkpoint(checkpoint("base", base))
    others = [open_checkpoint(checkpoint(f"e{i}", e)) for i, e in enumerate(experts)]
    return measure_interference(opened, others, **options)


@pytest.mark.parametrize("threads", [1, 3])
def test_sums_are_those_of_float64_arithmetic(checkpoint, threads):
    base = {Q.format(i): normal(i, 700, 300) for i in range(2)}
    experts = [{n: t + normal(9 + k, 700, 300) * 0.1 for n, t in base.items()} for k in range(3)]
    found = measured(checkpoint, base, *experts, threads=threads).total
    flat = np.concatenate([t.ravel() for t in base.values()]).astype(np.float64)
    changes = [np.concatenate([t.ravel() for t in e.values()]) - flat for e in experts]
    for i, u in enumerate(changes):
        expected = np.linalg.norm(u) / np.linalg.norm(flat)
        assert found.relative(i) == pytest.approx(expected, rel=1e-6)
        for j, v in enumerate(changes):
            cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
            assert found.cosine(i, j) == pytest.approx(cosine, rel=1e-5)
    pairs = [(0, 1), (0, 2), (1, 2)]
    products = np.concatenate([changes[i] * changes[j] for i, j in pairs])
    conflict = np.count_nonzero(products < 0) / np.count_nonzero(products)
    assert found.sign_conflict == pytest.approx(conflict, rel=1e-12)
    assert found.mean_cosine == pytest.approx(np.mean([found.cosine(i, j) for i, j in pairs]))


def test_values_that_one_expert_alone_changed_are_in_no_conflict(checkpoint):
    base = {"w": np.zeros(4, np.float32)}
    one = {"w": np.array([1, 1, -1, 0], np.float32)}
    two = {"w": np.array([-1, 1, 0, 0], np.float32)}
    found = measured(checkpoint, base, one, two).total
    assert found.sign_conflict == 0.5
    assert (found.oppose, found.pairs) == (1, 2)
    assert found.relative(0) == math.inf


def test_no_change_has_neither_cosine_nor_conflict(checkpoint):
    base = {"w": normal(1, 5)}
    found = measured(checkpoint, base, base, base).total
    assert (found.relative(0), found.cosine(0, 1), found.mean_cosine) == (0.0, None, None)
    assert found.sign_conflict is None


def test_nan_is_not_taken_for_a_cosine(checkpoint):
    base = {"w": np.ones(3, np.float32)}
    bad = {"w": np.array([1, np.nan, 2], np.float32)}
    assert math.isnan(measured(checkpoint, base, bad, {"w": normal(1, 3)}).total.cosine(0, 1))


def test_tensors_of_other_shapes_are_left_out_and_named(checkpoint):
    base = {"w": normal(1, 3), "v": normal(2, 3), "n": np.arange(3)}
    found = measured(checkpoint, base, {"w": normal(3, 3), "v": normal(4, 4)})
    assert [t.name for t in found.tensors] == ["w"]
    assert found.left_out == ("v",)


def low_rank(seed, rows, columns, rank):
    return normal(seed, rows, rank) @ normal(seed + 1, rank, columns)


@pytest.mark.parametrize("turned", [False, True])
def test_leading_directions_are_those_of_the_singular_value_decomposition(checkpoint, turned):
    base = normal(1, 90, 60)
    falling = low_rank(2, 90, 60, 5) + 0.05 * normal(4, 90, 60)
    b = open_checkpoint(checkpoint("b", {"w": base})).tensors["w"]
    e = open_checkpoint(checkpoint("e", {"w": base + falling})).tensors["w"]
    found = leading_directions(b, e, 5, turned=turned)
    change = (base + falling).astype(np.float64) - base
    exact = np.linalg.svd(change.T if turned else change)[0][:, :5]
    assert subspace_overlap(found, exact) == pytest.approx(1, abs=1e-6)
    assert np.abs(np.diag(found.T @ exact)) == pytest.approx(np.ones(5), abs=1e-3)


def test_overlap_is_one_for_one_subspace_and_zero_for_orthogonal_ones():
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((20, 8)))[0]
    turned = basis[:, :4] @ np.linalg.qr(np.random.default_rng(1).standard_normal((4, 4)))[0]
    assert subspace_overlap(basis[:, :4], turned) == pytest.approx(1)
    assert subspace_overlap(basis[:, :4], basis[:, 4:]) == pytest.approx(0, abs=1e-12)
    assert subspace_overlap(basis[:, :4], basis[:, 2:6]) == pytest.approx(0.5)


def test_overlaps_are_of_matrices_within_the_blocks(checkpoint):
    base = {Q.format(i): normal(i, 40, 30) for i in range(2)}
    base |= {"model.embed_tokens.weight": normal(7, 50, 30), "model.norm.weight": normal(8, 30)}
    shared = low_rank(20, 40, 30, 2)
    moved = [
        {n: t + (shared if n == Q.format(0) else 0) for n, t in base.items()} for _ in range(2)
    ]
    opened = open_checkpoint(checkpoint("base", base))
    experts = [open_checkpoint(checkpoint(f"e{i}", e)) for i, e in enumerate(moved)]
    (found,) = measure_overlaps(opened, experts)
    assert found.name == Q.format(0)
    assert (found.rank, found.chance) == (2, 2 / 40)
    assert found.overlap == pytest.approx(1)


def test_half_precision_is_read_as_it_is(checkpoint):
    base = torch.from_numpy(normal(1, 30, 20)).to(torch.bfloat16)
    expert = (base.float() + torch.from_numpy(low_rank(5, 30, 20, 3))).to(torch.bfloat16)
    b = open_checkpoint(checkpoint("b", {"w": base})).tensors["w"]
    e = open_checkpoint(checkpoint("e", {"w": expert})).tensors["w"]
    change = expert.double().numpy() - base.double().numpy()
    exact = np.linalg.svd(change)[0][:, :3]
    assert subspace_overlap(leading_directions(b, e, 3), exact) == pytest.approx(1, abs=1e-4)
