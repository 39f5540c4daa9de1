"""One way to run a method on arrays, for every test of this room."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from weightsmith.methods import registry
from weightsmith.tensors.graph import Site, Value, source
from weightsmith.tensors.torch_memory import evaluate, evaluate_model


def trace(
    name: str,
    has_base: bool,
    n: int,
    site: Site,
    *,
    shared: Mapping[str, Any] | None = None,
    per_expert: Sequence[Mapping[str, Any]] | None = None,
    preset: str = registry.PAPER,
) -> Value:
    spec = registry.get(name)
    built = spec.build(shared or {}, per_expert or [{}] * n, preset=preset)
    offset = 1 if has_base else 0
    return built.combine(
        source(0) if has_base else None, [source(offset + i) for i in range(n)], site
    )


def as_tensor(array: Any) -> torch.Tensor:
    return array if isinstance(array, torch.Tensor) else torch.from_numpy(np.array(array))


def merge_arrays(
    name: str,
    base: Any | None,
    experts: Sequence[Any],
    *,
    shared: Mapping[str, Any] | None = None,
    per_expert: Sequence[Mapping[str, Any]] | None = None,
    preset: str = registry.PAPER,
    **facts: Any,
) -> Any:
    """Merge arrays (a numpy array comes back) or torch tensors (a tensor comes back, with gradients)."""
    inputs = [as_tensor(a) for a in ([] if base is None else [base]) + list(experts)]
    site = Site("layer.weight", tuple(inputs[-1].shape), **facts)
    graph = trace(
        name,
        base is not None,
        len(experts),
        site,
        shared=shared,
        per_expert=per_expert,
        preset=preset,
    )
    merged = evaluate(graph, inputs)
    return merged if any(isinstance(e, torch.Tensor) for e in experts) else merged.numpy()


@pytest.fixture(scope="session")
def merge() -> Callable[..., Any]:
    return merge_arrays


@pytest.fixture(scope="session")
def merge_model() -> Callable[..., dict[str, np.ndarray]]:
    """Merge several tensors at once: {name: (base, experts, facts of the site)}."""

    def run(
        name: str,
        tensors: Mapping[str, tuple[Any, Sequence[Any], Mapping[str, Any]]],
        **how: Any,
    ) -> dict[str, np.ndarray]:
        graphs, inputs = {}, {}
        for key, (base, experts, facts) in tensors.items():
            inputs[key] = [as_tensor(a) for a in [base, *experts]]
            site = Site(key, tuple(inputs[key][0].shape), **facts)
            graphs[key] = trace(name, True, len(experts), site, **how)
        return {k: v.numpy() for k, v in evaluate_model(graphs, inputs).items()}

    return run
