"""Small adapters in memory, and merging rules written independently of the code under test."""

from __future__ import annotations

import numpy as np

from weightsmith.deltas.changes import LowRankChange
from weightsmith.lora.algebra import zeros
from weightsmith.lora.bounds import RankBound
from weightsmith.lora.low_rank_adapters import Factors, LowRankAdapter

SHAPES = {
    "model.layers.0.self_attn.q_proj.weight": (12, 10),
    "model.layers.0.mlp.down_proj.weight": (9, 16),
    "model.layers.1.self_attn.q_proj.weight": (12, 10),
}


def change(rng, shape=(12, 10), rank=3, scale=1.0):
    return LowRankChange(
        rng.normal(size=(shape[0], rank)), rng.normal(size=(rank, shape[1])), scale
    )


def adapter(seed, rank=3, scale=1.0, shapes=None, **rest):
    rng = np.random.default_rng(seed)
    shapes = SHAPES if shapes is None else shapes
    factors = {n: Factors(n, change(rng, s, rank, scale), s) for n, s in shapes.items()}
    return LowRankAdapter(factors, **rest)


def regauged(found, seed=0):
    """The same adapter with every product written differently."""
    rng = np.random.default_rng(seed)
    factors = {}
    for key, f in found.factors.items():
        gauge = rng.normal(size=(f.change.rank, f.change.rank)) + 3.0 * np.eye(f.change.rank)
        c = f.change
        moved = LowRankChange(c.left @ gauge, np.linalg.solve(gauge, c.right), c.scale)
        factors[key] = Factors(f.target, moved, f.shape, f.kind, f.input_first, f.part)
    return LowRankAdapter(factors, found.replaced, found.added)


def dense(found):
    """Every change of an adapter as a matrix."""
    if isinstance(found, LowRankChange):
        return found.scale * found.left @ found.right
    return {key: dense(f.change) for key, f in found.factors.items()}


def cut(matrix, rank):
    u, s, vt = np.linalg.svd(matrix)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def assert_same(found, expected, atol=1e-12):
    found = dense(found) if isinstance(found, LowRankAdapter) else found
    assert list(found) == list(expected)
    for key, matrix in expected.items():
        assert np.allclose(found[key], matrix, rtol=0, atol=atol), key


def weighted_sum(weights):
    def rule(models):
        return {k: sum(w * m[k] for w, m in zip(weights, models, strict=True)) for k in models[0]}

    return rule


def ties(density, weights):
    """Trim over all tensors of a model together, elect by the sum, divide by the weights that took part."""

    def rule(models):
        trimmed = []
        for model in models:
            flat = np.concatenate([m.reshape(-1) for m in model.values()])
            kept = int(np.floor(density * flat.size))
            order = np.argsort(-abs(flat), kind="stable")[:kept]
            mask = np.zeros(flat.size)
            mask[order] = 1.0
            trimmed.append(flat * mask)
        weighted = [w * t for w, t in zip(weights, trimmed, strict=True)]
        elected = np.sign(sum(weighted))
        agree = [np.sign(v) == elected for v in weighted]
        total = sum(np.where(a, v, 0.0) for a, v in zip(agree, weighted, strict=True))
        shares = sum(np.where(a, abs(w), 0.0) for a, w in zip(agree, weights, strict=True))
        flat = total / np.where(shares > 0.0, shares, 1.0)
        merged, at = {}, 0
        for key, matrix in models[0].items():
            merged[key] = flat[at : at + matrix.size].reshape(matrix.shape)
            at += matrix.size
        return merged

    return rule


def in_space(space, adapters, rule, bound=None):
    """Factors merged by a rule for matrices in a space, tensor by tensor, and what each lost."""
    keys = list(dict.fromkeys(key for a in adapters for key in a.factors))
    first = {key: next(a.factors[key] for a in adapters if key in a.factors) for key in keys}
    entered = {}
    for key in keys:
        none = zeros(*first[key].change.shape)
        changes = [a.factors[key].change if key in a.factors else none for a in adapters]
        entered[key] = space.enter(changes, input_first=first[key].input_first)
    models = [{k: e.coordinates[i] for k, e in entered.items()} for i in range(len(adapters))]
    made = {k: entered[k].leave(m, bound or RankBound()) for k, m in rule(models).items()}
    return {k: dense(m.change) for k, m in made.items()}, {k: m.lost for k, m in made.items()}
