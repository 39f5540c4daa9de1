"""A method run on a few arrays in memory, without recipes and files."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from weightsmith.graph import Site, Statistic, Value, evaluate_model, source
from weightsmith.methods import METRICS, PAPER, MeasuredOn, registry
from weightsmith.tensors import Kind, Place

_PLACED = {field.name for field in fields(Place)}


def merge_arrays(
    name: str,
    base: Any | None,
    experts: Sequence[Any],
    *,
    shared: Mapping[str, Any] | None = None,
    per_expert: Sequence[Mapping[str, Any]] | None = None,
    preset: str = PAPER,
    statistics: Sequence[Any] | None = None,
    kind: str | None = None,
    **facts: Any,
) -> Any:
    """Merge arrays of one shape by the method called `name`, with torch, as one tensor of a model.

    An array comes back, or, where an expert is a torch tensor, a tensor, through which gradients flow. `statistics`
    has one array for each expert (a list of them for gradients), or one for the base, of the `kind` given, or of the
    one that the method prefers; without it they are made up. `facts` are those of the `Site` and its place, such as
    role or layer.
    """
    import torch

    inputs = [_tensor(a) for a in ([] if base is None else [base]) + list(experts)]
    site = site_of("layer.weight", inputs[-1].shape, **facts)
    spec = registry.get(name)
    kinds = [k for k in spec.statistics if k != METRICS]
    if kinds:
        kind = kind or kinds[0]
        if statistics is None:
            wide = any(a.dtype is torch.float64 for a in inputs)
            dtype = np.float64 if wide else np.float32
            labels = [
                site.labels[i] if i < len(site.labels) else f"m{i}" for i in range(len(experts))
            ]
            if spec.measured_on is MeasuredOn.BASE:
                labels = ["base"]
            statistics = _made_up(kind, site, labels, dtype)
        site = _with_statistics(site, kind, statistics, inputs)
    graph = _trace(
        name,
        base is not None,
        len(experts),
        site,
        shared=shared,
        per_expert=per_expert,
        preset=preset,
    )
    merged = evaluate_model({"": graph}, {"": inputs})[""]
    return merged if any(isinstance(e, torch.Tensor) for e in experts) else merged.numpy()


def site_of(name: str, shape: Sequence[int], *, role: str = "other", **facts: Any) -> Site:
    """The site of a tensor; `role` is written as in recipes, `facts` are fields of `Site` and of its `Place`."""
    placed = {key: facts.pop(key) for key in _PLACED & facts.keys()}
    return Site(Place(name, Kind(role), **placed), tuple(shape), **facts)


def merge_models(
    name: str,
    tensors: Mapping[str, tuple[Any, Sequence[Any], Mapping[str, Any]]],
    **how: Any,
) -> dict[str, Any]:
    """Merge several tensors as those of one model: by name the base, the experts, and facts of the `Site`.

    `how` is `shared`, `per_expert` and `preset`, as for `merge_arrays`.
    """
    graphs, inputs = {}, {}
    for key, (base, experts, facts) in tensors.items():
        inputs[key] = [_tensor(a) for a in [base, *experts]]
        site = site_of(key, inputs[key][0].shape, **facts)
        graphs[key] = _trace(name, True, len(experts), site, **how)
    return {k: v.numpy() for k, v in evaluate_model(graphs, inputs).items()}


def _trace(
    name: str,
    has_base: bool,
    n: int,
    site: Site,
    *,
    shared: Mapping[str, Any] | None = None,
    per_expert: Sequence[Mapping[str, Any]] | None = None,
    preset: str = PAPER,
) -> Value:
    built = registry.get(name).build(shared or {}, per_expert or [{}] * n, preset=preset)
    offset = 1 if has_base else 0
    return built.combine(
        source(0) if has_base else None, [source(offset + i) for i in range(n)], site
    )


def _made_up(kind: str, site: Site, labels: Sequence[str], dtype: Any) -> list[Any]:
    """Statistics by the labels of what they are of: positive, with zeros; Gram matrices of few samples."""
    found: list[Any] = []
    for label in labels:
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


def _with_statistics(site: Site, kind: str, statistics: Sequence[Any], inputs: list[Any]) -> Site:
    """The site with statistics whose arrays are put behind the inputs."""
    entries = []
    for given in statistics:
        arrays = [_tensor(a) for a in (given if isinstance(given, list) else [given])]
        values = tuple(source(len(inputs) + k) for k in range(len(arrays)))
        entries.append(Statistic(kind, values, tuple(arrays[0].shape)))
        inputs += arrays
    return replace(site, statistics=tuple(entries))


def _tensor(array: Any) -> Any:
    import torch

    return array if isinstance(array, torch.Tensor) else torch.from_numpy(np.array(array))
