"""Gradients flow through the merges, right and finite, also at degenerate points."""

from __future__ import annotations

import pytest
import torch

from weightsmith.methods import registry
from weightsmith.methods.registry import REQUIRED, Base

SMOOTH = (
    "linear soup wise_ft expo ema lawa wma slerp nuslerp multislerp karcher model_stock task_arithmetic passthrough "
    "task_karcher geometric_median lines"
).split()
PIECEWISE = (
    "ties breadcrumbs breadcrumbs_ties dare_linear dare_ties della della_linear sce ram ramplus_tl nearswap "
    "trimmed_mean arcee_fusion truncate tsv_m tsv_c resm iso_c iso_cts opcm knots doge svc"
).split()
WAYS = {
    "nuslerp": [
        {},
        {"nuslerp_flatten": False},
        {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    ],
    "model_stock": [{}, {"filter_wise": True}],
    "lines": [{"alpha": 0.3}, {}],
}


def draw(n, shape=(3, 4)):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n + 1, *shape, generator=generator, dtype=torch.float64)
    return [(x + 2 * inputs[0]).requires_grad_() for x in inputs]


def call(merge, name, shared=None, preset=registry.PAPER):
    spec = registry.get(name)
    required = {k: 0.4 for k, d in spec.defaults(preset).items() if d is REQUIRED}
    has_base = spec.base is Base.REQUIRED

    def run(*inputs):
        base, experts = (inputs[0], inputs[1:]) if has_base else (None, inputs)
        return merge(
            name, base, list(experts), shared={**required, **(shared or {})}, preset=preset
        )

    n = min(max(spec.experts[0], 3), spec.experts[1] or 3)
    return run, n + has_base


@pytest.mark.parametrize(
    ("name", "shared"), [(n, w) for n in SMOOTH for w in WAYS.get(n, [{}])], ids=str
)
def test_gradients_are_those_of_finite_differences(merge, name, shared):
    run, count = call(merge, name, shared)
    inputs = draw(count - 1)[:count]
    assert torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", PIECEWISE)
def test_gradients_of_piecewise_methods_are_finite_and_reach_every_expert(merge, name):
    shared = (
        {"rank": 2}
        if name == "truncate"
        else {"density": 0.7}
        if name in ("dare_linear", "dare_ties")
        else None
    )
    run, count = call(merge, name, shared)
    inputs = draw(count - 1)[:count]
    run(*inputs).sum().backward()
    assert all(x.grad is not None and torch.isfinite(x.grad).all() for x in inputs)
    assert sum(float(x.grad.abs().sum()) for x in inputs) > 0


DECOMPOSED = {
    "truncate",
    "tsv_m",
    "tsv_c",
    "resm",
    "iso_c",
    "iso_cts",
    "opcm",
    "knots",
    "doge",
    "svc",
}
DEGENERATE = [
    (name, preset)
    for name in registry.names()
    for preset in [registry.PAPER, *registry.get(name).presets]
]


@pytest.mark.parametrize(("name", "preset"), DEGENERATE)
@pytest.mark.parametrize("where", ["zero", "equal", "antipodal"])
def test_gradients_are_finite_at_degenerate_points(merge, name, preset, where):
    if where == "antipodal" and name in DECOMPOSED:
        pytest.skip("torch defines no gradient of equal singular values")
    run, count = call(merge, name, preset=preset)
    point = torch.arange(1.0, 13, dtype=torch.float64).reshape(3, 4) * (where != "zero")
    signs = [-1.0 if where == "antipodal" and i % 2 else 1.0 for i in range(count)]
    inputs = [(point * s).clone().requires_grad_() for s in signs]
    run(*inputs).sum().backward()
    assert all(x.grad is None or torch.isfinite(x.grad).all() for x in inputs)
