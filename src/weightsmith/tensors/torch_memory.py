"""Graphs evaluated with torch over whole tensors in memory, with gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightsmith.tensors.graph import Cut, Node, Scalar, Scope, Value, walk
from weightsmith.tensors.layers import adds_to
from weightsmith.tensors.order import Selection, local_cut
from weightsmith.tensors.passes import (
    Collect,
    CutPoint,
    Histogram,
    has_row_nodes,
    reduction_levels,
    selected_count,
    used_sources,
)
from weightsmith.tensors.torch_interpreter import (
    Interpreter,
    collect_keys,
    column_numbers,
    count_keys,
    magnitude_keys,
    reduce_piece,
)


def evaluate(
    output: Value, sources: Sequence[Tensor], *, work: torch.dtype | None = None
) -> Tensor:
    """The value of a graph over whole tensors in memory, in work precision; gradients flow to the sources.

    The first source has the shape of the result, and so have all others but statistics of their own shape, which
    only `whole` nodes see. Model-scope reductions run over this one tensor.
    """
    return evaluate_model({"": output}, {"": sources}, work=work)[""]


def evaluate_model(
    outputs: Mapping[str, Value],
    sources: Mapping[str, Sequence[Tensor]],
    *,
    groups: Mapping[Node, Any] | None = None,
    work: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Values of many tensors' graphs, with model-scope reductions taken over all of them.

    `groups` says which model-scope reductions of different tensors are one (by default: those at the same position of
    each graph). Tensors that take part in them are computed in float64 if one of them is.
    """
    works = dict.fromkeys(outputs, work) | _joint_work(outputs, sources, work)
    known: dict[str, dict[Node, Any]] = {name: {} for name in outputs}
    while True:
        progressed = False
        pending: dict[Any, list[tuple[str, Scalar | Cut]]] = {}
        late: set[Any] = set()
        for name, output in outputs.items():
            levels = reduction_levels([output], known[name])
            late |= {groups[r] for later in levels[1:] for r in later if groups and r in groups}
            model_position = 0
            for reduction in levels[0] if levels else []:
                progressed = True
                if reduction.scope is Scope.MODEL:
                    key = groups[reduction] if groups else model_position
                    model_position += 1
                    pending.setdefault(key, []).append((name, reduction))
                else:
                    measured = _measure([reduction], [sources[name]], [known[name]], works[name])
                    known[name].update(zip([reduction], measured, strict=True))
        ready = {key: members for key, members in pending.items() if key not in late} or pending
        for members in ready.values():
            names = [name for name, _ in members]
            measured = _measure(
                [r for _, r in members],
                [sources[n] for n in names],
                [known[n] for n in names],
                works[names[0]],
            )
            for (name, reduction), result in zip(members, measured, strict=True):
                known[name][reduction] = result
        if not progressed:
            break
    return {
        name: _run_whole([output], sources[name], known[name], works[name])[0]
        for name, output in outputs.items()
    }


def _joint_work(
    outputs: Mapping[str, Value],
    sources: Mapping[str, Sequence[Tensor]],
    work: torch.dtype | None,
) -> dict[str, torch.dtype | None]:
    """float64 for every tensor of model-wide statistics if one has it, since magnitudes are compared across them."""
    joined = [
        name
        for name, output in outputs.items()
        if any(getattr(node, "scope", None) is Scope.MODEL for node in walk([output]))
    ]
    wide = work is None and any(s.dtype is torch.float64 for n in joined for s in sources[n])
    return dict.fromkeys(joined, torch.float64) if wide else {}


def _run_whole(
    roots: Sequence[Node],
    sources: Sequence[Tensor],
    known: dict[Node, Any],
    work: torch.dtype | None,
) -> list[Tensor]:
    dtype = work or (
        torch.float64 if any(s.dtype is torch.float64 for s in sources) else torch.float32
    )
    shape = _shape_of(roots, sources, known)
    row_length = shape[-1] if shape else 1
    known = _with_whole_nodes(roots, sources, known, dtype)
    interpreter = Interpreter(roots, known, dtype, has_row_nodes(roots, known))
    flat = [s.to(dtype).reshape(-1) if s.shape == shape else None for s in sources]
    return [t.reshape(shape) for t in interpreter.run(flat, 0, row_length)]


def _shape_of(
    roots: Sequence[Node], sources: Sequence[Tensor], known: dict[Node, Any]
) -> torch.Size:
    """The result's, which the first source has, or the statistics' where the roots are made of them alone."""
    shapes = [sources[i].shape for i in sorted(used_sources(roots, known))]
    return shapes[0] if shapes and sources[0].shape not in shapes else sources[0].shape


def _with_whole_nodes(
    roots: Sequence[Node],
    sources: Sequence[Tensor],
    known: dict[Node, Any],
    dtype: torch.dtype,
) -> dict[Node, Any]:
    known = dict(known)
    for node in walk(roots, known):
        if node.op == "whole" and node not in known:
            inputs = [_run_whole([i], sources, known, dtype)[0] for i in node.inputs]
            result = node.attributes[0](torch, *inputs, *node.attributes[1:])
            known[node] = result if isinstance(result, list) else result.reshape(-1)
        elif node.op == "part" and node not in known:
            known[node] = known[node.inputs[0]][node.attributes[0]].reshape(-1)
    return known


def _measure(
    reductions: Sequence[Scalar | Cut],
    sources: Sequence[Sequence[Tensor]],
    known: Sequence[dict[Node, Any]],
    work: torch.dtype | None,
) -> list[Any]:
    first = reductions[0]
    count = 2 if first.op == "dot" else 1
    values = [
        _run_whole(r.inputs[:count], s, k, work)
        for r, s, k in zip(reductions, sources, known, strict=True)
        if adds_to(r)
    ]
    if isinstance(first, Cut):
        return _measure_cut(first, [v[0] for v in values], known[0])
    if not values:
        return [torch.zeros((), dtype=torch.float64)] * len(reductions)
    if first.columns is not None:
        columns = first.columns
        return [column_numbers(first.op, [t.reshape(-1) for t in v], columns) for v in values]
    parts = torch.stack([reduce_piece(first.op, [t.reshape(-1) for t in v]) for v in values])
    return [parts.max() if first.op == "peak" else parts.sum()] * len(reductions)


def _measure_cut(cut: Cut, values: Sequence[Tensor], known: dict[Node, Any]) -> list[CutPoint]:
    population = sum(v.numel() for v in values)
    k = selected_count(cut, known, population)
    keys = [magnitude_keys(v).reshape(-1) for v in values]
    selection = Selection(k, population, 63 if values[0].dtype is torch.float64 else 31)
    offsets = np.cumsum([0] + [v.numel() for v in values])
    while selection.result is None:
        asked = selection.request()
        part = asked.only_part if isinstance(asked, Collect) else None
        chosen = range(len(keys)) if part is None else [part]
        parts: list[Any] = [
            count_keys(keys[i], asked)
            if isinstance(asked, Histogram)
            else collect_keys(keys[i], asked, int(offsets[i]))
            for i in chosen
        ]
        selection.absorb(asked, parts)
    found = selection.result
    magnitude = _selected_magnitude(found, values, offsets)
    return [
        replace(local_cut(found, int(o), v.numel()), magnitude=magnitude)
        for o, v in zip(offsets, values, strict=False)
    ]


def _selected_magnitude(found: CutPoint, values: Sequence[Tensor], offsets: Any) -> Any:
    """The magnitude of a cut; where gradients are recorded, with that of the element it was found at."""
    if found.last_index < 0 or not any(v.requires_grad for v in values):
        return found.magnitude
    which = int(np.searchsorted(offsets, found.last_index, side="right")) - 1
    return values[which].reshape(-1)[found.last_index - int(offsets[which])].abs().double()
