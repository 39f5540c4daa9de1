"""Presets named after the authors' code, against that code's computation in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import weightsmith


def merged(method, base, experts, preset="reference", **parameters):
    states = [
        {name: torch.from_numpy(t) for name, t in state.items()} for state in (base, *experts)
    ]
    found = weightsmith.merge_state_dicts(
        method, states[1:], base=states[0], parameters=parameters, preset=preset
    )
    return {name: t.numpy() for name, t in found.items()}


def polar(a):
    u, _, v = np.linalg.svd(a, full_matrices=False)
    return u @ v


def tsv_m(taus, kept):
    parts = [np.linalg.svd(t, full_matrices=False) for t in taus]
    left = np.concatenate([u[:, :kept] for u, _, _ in parts], 1)
    right = np.concatenate([v[:kept] for _, _, v in parts])
    values = np.concatenate([s[:kept] for _, s, _ in parts])
    return polar(left) @ np.diag(values) @ polar(right)


def iso_c(taus, _):
    total = sum(taus)
    return polar(total) * np.linalg.svd(total, compute_uv=False).mean()


def iso_cts(taus, _, fraction=0.8):
    total, n = sum(taus), len(taus)
    full = min(total.shape)
    own = round((full - int(full * fraction)) / n)
    common = full - own * n
    u, s, v = (x[..., :common] if i < 2 else x[:common] for i, x in enumerate(np.linalg.svd(total)))
    parts = [np.linalg.svd(t - u @ u.T @ t, full_matrices=False) for t in taus]
    left = np.concatenate([*(p[0][:, :own] for p in parts), u], 1)
    right = np.concatenate([*(p[2][:own] for p in parts), v])
    values = np.concatenate([*(p[1][:own] for p in parts), s])
    return polar(left) @ polar(right) * values.mean()


def family(names, seed=0, shape=(9, 9), experts=2):
    rng = np.random.default_rng(seed)
    base = {name: rng.standard_normal(shape) for name in names}
    return base, [
        {name: t + 0.1 * rng.standard_normal(shape) for name, t in base.items()}
        for _ in range(experts)
    ]


@pytest.mark.parametrize(
    ("method", "rule", "preset"),
    [
        ("tsv_m", tsv_m, "reference"),
        ("iso_c", iso_c, "reference"),
        ("iso_cts", iso_cts, "reference"),
    ],
)
@pytest.mark.parametrize("projection", ["text_projection", "clip.text_projection.weight"])
def test_authors_decompose_all_matrices_but_the_text_projection(method, rule, preset, projection):
    query = "visual.transformer.resblocks.0.attn.q_proj.weight"
    base, experts = family([query, projection])
    taus = {name: [e[name] - base[name] for e in experts] for name in base}
    found = merged(method, base, experts, preset)
    wanted = base[query] + rule(taus[query], 9 // 2)
    np.testing.assert_allclose(found[query], wanted, atol=1e-11)
    averaged = base[projection] + np.mean(taus[projection], axis=0)
    np.testing.assert_allclose(found[projection], averaged, atol=1e-13)
    paper = merged(method, base, experts, "paper")
    assert np.abs(paper[projection] - averaged).max() > 0.01


def test_the_lossless_form_averages_the_text_projection_too():
    base, experts = family(["text_projection"], shape=(9, 4))
    taus = [e["text_projection"] - base["text_projection"] for e in experts]
    found = merged("tsv_m", base, experts, "lossless")["text_projection"]
    np.testing.assert_allclose(found, base["text_projection"] + np.mean(taus, axis=0), atol=1e-13)


@pytest.mark.parametrize(
    "left",
    [
        "visual.proj",
        "text_projection",
        "visual.positional_embedding",
        "token_embedding.weight",
        "visual.ln_post.weight",
    ],
)
def test_wudis_vision_code_merges_attention_and_mlps_alone(left):
    block = "visual.transformer.resblocks.0."
    moved = [f"{block}attn.in_proj_weight", f"{block}mlp.c_fc.weight"]
    base, experts = family([*moved, left])
    if left.endswith("ln_post.weight"):
        base, experts = base | {left: base[left][0]}, [e | {left: e[left][0]} for e in experts]
    found = merged("wudi", base, experts, "original", steps=0)
    np.testing.assert_array_equal(found[left], base[left])
    for name in moved:
        total = base[name] + sum(e[name] - base[name] for e in experts)
        np.testing.assert_allclose(found[name], total, atol=1e-13)
