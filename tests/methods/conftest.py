"""One way to run a method on arrays, for every test of this room."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from weightsmith.graph.backends.torch_memory import evaluate, evaluate_model
from weightsmith.graph.graph import Value, source
from weightsmith.graph.site import Site, Statistic
from weightsmith.methods.parts import registry


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


def made_up(kind: str, site: Site, n: int, dtype: Any) -> list[Any]:
    """Statistics that follow the experts' labels: positive, with zeros among them; Gram matrices of few samples."""
    found = []
    for i in range(n):
        label = site.labels[i] if i < len(site.labels) else f"m{i}"
        rng = np.random.default_rng(zlib.crc32(label.encode()))
        if kind == "gram":
            if len(site.shape) < 2:
                return []
            width = site.shape[-1] if len(site.shape) < 4 else math.prod(site.shape[1:])
            stack = site.shape[:1] if len(site.shape) == 3 else ()
            samples = rng.normal(size=(*stack, width // 2 + 1, width))
            found.append((samples.swapaxes(-1, -2) @ samples).astype(dtype))
        elif kind == "gradients":
            found.append(list(rng.normal(size=(3, *site.shape)).astype(dtype)))
        else:
            drawn = rng.exponential(size=math.prod(site.shape)) * 1e-9
            drawn[rng.random(drawn.shape) < 0.1] = 0.0
            found.append(drawn.reshape(site.shape).astype(dtype))
    return found


def with_statistics(
    site: Site, kind: str, statistics: Sequence[Any], inputs: list[torch.Tensor]
) -> Site:
    """The site with statistics whose arrays are put behind the inputs."""
    entries = []
    for given in statistics:
        arrays = [as_tensor(a) for a in (given if isinstance(given, list) else [given])]
        values = tuple(source(len(inputs) + k) for k in range(len(arrays)))
        entries.append(Statistic(kind, values, tuple(arrays[0].shape)))
        inputs += arrays
    return replace(site, statistics=tuple(entries))


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
    statistics: Sequence[Any] | None = None,
    kind: str | None = None,
    **facts: Any,
) -> Any:
    """Merge arrays (a numpy array comes back) or torch tensors (a tensor comes back, with gradients).

    `statistics` has one array for each expert (a list of them for gradients); without it they are made up.
    """
    inputs = [as_tensor(a) for a in ([] if base is None else [base]) + list(experts)]
    site = Site("layer.weight", tuple(inputs[-1].shape), **facts)
    kinds = [k for k in registry.get(name).statistics if k != "metrics"]
    if kinds:
        kind = kind or kinds[0]
        if statistics is None:
            wide = any(a.dtype is torch.float64 for a in inputs)
            statistics = made_up(kind, site, len(experts), np.float64 if wide else np.float32)
        site = with_statistics(site, kind, statistics, inputs)
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
