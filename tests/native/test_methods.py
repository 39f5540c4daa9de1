"""Every registered method gives the same output from both backends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from weightsmith.graph.backends import native
from weightsmith.graph.columns import ColumnSums
from weightsmith.graph.graph import Node, Scope, Threshold, source, walk
from weightsmith.graph.order import Selection
from weightsmith.graph.passes import Collect, PassSpec, reduction_levels, selected_count
from weightsmith.graph.site import Site
from weightsmith.methods.parts import registry
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.place import Kind, Place

SHAPE = (24, 130)
VALUES: dict[type, Any] = {float: 0.4, int: 1, bool: True}


def build(spec: registry.MethodSpec, count: int, given: dict[str, Any]) -> Any:
    """The method with its defaults; required numbers are made up."""
    missing = {
        k: VALUES[p.kind] for k, p in spec.parameters.items() if p.default is registry.REQUIRED
    }
    return spec.build(missing | given, [{}] * count, where="test")


def merge(
    backend: Any, name: str, buffers: list[memoryview], tools: Any, **given: Any
) -> torch.Tensor:
    """Measure level by level, then compute the output, all in one tile."""
    spec = registry.get(name)
    most = spec.experts[1] or 3
    experts = [source(i) for i in range(1, 1 + min(3, most))]
    site = Site(Place("layers.3.mlp.weight", Kind.MLP_UP, 3, 8), SHAPE, 11, ("a", "b", "c"))
    base = None if spec.base is registry.Base.IGNORED else source(0)
    output = build(spec, len(experts), given).combine(base, experts, site)
    known: dict[Node, Any] = {}
    dtypes = (DType.BFLOAT16,) * len(buffers)
    if any(node.op == "whole" for node in walk([output], known)):
        pytest.skip("matrix methods are computed by the engine")
    while levels := reduction_levels([output], known):
        for node in levels[0]:
            known[node] = measure(backend, node, known, dtypes, buffers, tools)
    return tools.run(
        backend, PassSpec(SHAPE, dtypes, ((output, DType.FLOAT32),), (), known), buffers
    ).output


def measure(backend: Any, node: Any, known: Any, dtypes: Any, buffers: Any, tools: Any) -> Any:
    if isinstance(node, Threshold):
        k = selected_count(node, known, int(np.prod(SHAPE)))
        selection = Selection(k, int(np.prod(SHAPE)), 31)
        while selection.result is None:
            asked = selection.request()
            assert isinstance(asked, Collect)
            spec = PassSpec(SHAPE, dtypes, reductions=((node, asked),), known=known)
            selection.absorb(asked, tools.run(backend, spec, buffers).result.partials)
        return selection.result
    assert node.scope is not Scope.ROW
    spec = PassSpec(SHAPE, dtypes, reductions=((node, None),), known=known)
    (partials,) = tools.run(backend, spec, buffers).result.partials
    if node.columns is not None:
        sums = ColumnSums(node.op, node.columns, SHAPE)
        sums.admit(partials)
        return sums.result
    return np.float64(partials.max() if node.op == "peak" else partials.sum())


def drawn(tools: Any) -> list[memoryview]:
    rng = np.random.default_rng(5)
    base = rng.normal(size=SHAPE)
    return [
        tools.encode(base + (rng.normal(size=SHAPE) * 0.1 if i else 0), DType.BFLOAT16)
        for i in range(4)
    ]


@pytest.mark.parametrize("name", registry.names())
def test_the_method_gives_the_reference_output(name: str, reference: Any, tools: Any) -> None:
    buffers = drawn(tools)
    ours, theirs = (merge(b, name, buffers, tools) for b in (native.load(), reference))
    # Elementwise bits are equal, but sums agree to float64 rounding only, so that a coefficient may differ in its
    # last float32 place.
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("ties", {"trim_scope": "row", "density": 0.4}),
        ("ties", {"trim_scope": "row", "density": 0.4, "rescale": "l1", "vote": "count"}),
        ("della", {"ranking": "magnitude", "adaptive": "row"}),
        ("della", {"adaptive": "tensor"}),
        ("dare_ties", {"drop": "magnitude"}),
        ("ties", {"trim_count": "one_more", "weight_stage": "after", "normalize": "count"}),
    ],
)
def test_a_variant_gives_the_reference_output(
    name: str, given: dict[str, Any], reference: Any, tools: Any
) -> None:
    buffers = drawn(tools)
    ours, theirs = (merge(b, name, buffers, tools, **given) for b in (native.load(), reference))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
