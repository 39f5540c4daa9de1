"""Graphs evaluated with torch over whole tensors in memory, with gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightsmith.graph.backends.torch_interpreter import (
    Interpreter,
    collect_equal,
    collect_keys,
    column_numbers,
    count_keys,
    magnitude_keys,
    reduce_piece,
)
from weightsmith.graph.equal_magnitudes import EqualMagnitudes, model_ranks, rank_key
from weightsmith.graph.graph import (
    Node,
    Scalar,
    Scope,
    Threshold,
    Value,
    adds_to,
    statistic_of,
    walk,
)
from weightsmith.graph.model_statistics import ModelStatistic
from weightsmith.graph.order import Selection, local_threshold
from weightsmith.graph.passes import (
    Collect,
    CollectPart,
    Histogram,
    HistogramPart,
    Request,
    ThresholdPoint,
    has_row_nodes,
    reduction_levels,
    selected_count,
    used_sources,
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
    work: torch.dtype | None = None,
    equal_magnitudes: EqualMagnitudes = EqualMagnitudes.HASH,
    known: Mapping[Node, Any] | None = None,
) -> dict[str, Tensor]:
    """Values of many tensors' graphs, with model-scope reductions of one name taken over all of them.

    Tensors that take part in them are computed in float64 if one of them is. `equal_magnitudes` decides what a
    threshold over the model takes of equals; the order of files is that of `outputs`. `known` are numbers that nothing
    has to be measured for, free ones among them.
    """
    works = dict.fromkeys(outputs, work) | _joint_work(outputs, sources, work)
    given = known or {}
    known_of: dict[str, dict[Node, Any]] = {name: dict(given) for name in outputs}
    order = list(outputs) if equal_magnitudes is EqualMagnitudes.FILE else sorted(outputs)
    while True:
        progressed = False
        pending: dict[ModelStatistic, dict[str, list[Scalar | Threshold]]] = {}
        late: set[ModelStatistic | None] = set()
        for name in order:
            levels = reduction_levels([outputs[name]], known_of[name])
            late |= {statistic_of(r) for later in levels[1:] for r in later}
            for reduction in levels[0] if levels else []:
                progressed = True
                statistic = statistic_of(reduction)
                if statistic is not None:
                    pending.setdefault(statistic, {}).setdefault(name, []).append(reduction)
                else:
                    known_of[name][reduction] = _measured(
                        reduction, sources[name], known_of[name], works[name]
                    )
        ready = {key: members for key, members in pending.items() if key not in late} or pending
        for members in ready.values():
            found = _measured_over(members, sources, known_of, works, equal_magnitudes)
            for name, reductions in members.items():
                known_of[name].update(dict.fromkeys(reductions, found[name]))
        if not progressed:
            break
    return {
        name: _run_whole([output], sources[name], known_of[name], works[name])[0]
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
    return [t.reshape(shape) for t in interpreter.run(flat, 0, shape.numel(), row_length)]


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


def _measured(
    reduction: Scalar | Threshold,
    sources: Sequence[Tensor],
    known: dict[Node, Any],
    work: torch.dtype | None,
) -> Any:
    values = _reduced(reduction, sources, known, work)
    if isinstance(reduction, Threshold):
        (threshold,) = _thresholds(reduction, {"": values[0]}, known, None)
        return threshold
    if reduction.columns is not None:
        return column_numbers(reduction.op, [t.reshape(-1) for t in values], reduction.columns)
    return reduce_piece(reduction.op, [t.reshape(-1) for t in values])


def _measured_over(
    members: Mapping[str, Sequence[Scalar | Threshold]],
    sources: Mapping[str, Sequence[Tensor]],
    known: Mapping[str, dict[Node, Any]],
    works: Mapping[str, torch.dtype | None],
    equal_magnitudes: EqualMagnitudes,
) -> dict[str, Any]:
    """What a statistic over several tensors is for each of them."""
    firsts = {name: reductions[0] for name, reductions in members.items()}
    values = {
        name: _reduced(first, sources[name], known[name], works[name])
        for name, first in firsts.items()
        if adds_to(first)
    }
    name, first = next(iter(firsts.items()))
    if isinstance(first, Threshold):
        magnitudes = {n: v[0] for n, v in values.items()}
        return dict(
            zip(firsts, _thresholds(first, magnitudes, known[name], equal_magnitudes), strict=True)
        )
    if not values:
        return dict.fromkeys(firsts, torch.zeros((), dtype=torch.float64))
    pieces = [reduce_piece(first.op, [t.reshape(-1) for t in v]) for v in values.values()]
    parts = torch.stack(pieces)
    return dict.fromkeys(firsts, parts.max() if first.op == "peak" else parts.sum())


def _reduced(
    reduction: Scalar | Threshold,
    sources: Sequence[Tensor],
    known: dict[Node, Any],
    work: torch.dtype | None,
) -> list[Tensor]:
    return _run_whole(reduction.inputs[: 2 if reduction.op == "dot" else 1], sources, known, work)


def _thresholds(
    threshold: Threshold,
    values: Mapping[str, Tensor],
    known: dict[Node, Any],
    equal_magnitudes: EqualMagnitudes | None,
) -> list[ThresholdPoint]:
    """A threshold over tensors in their order, as each of them sees it."""
    sizes = [v.numel() for v in values.values()]
    k = selected_count(threshold, known, sum(sizes))
    keys = [magnitude_keys(v).reshape(-1) for v in values.values()]
    ranks = None
    if equal_magnitudes is EqualMagnitudes.HASH:
        ranks = model_ranks(list(zip(values, sizes, strict=True)))
    key_bits = 63 if any(v.dtype is torch.float64 for v in values.values()) else 31
    selection = Selection(k, sum(sizes), key_bits, ranks=ranks)
    offsets = np.cumsum([0, *sizes])
    while selection.result is None:
        asked = selection.request()
        part = asked.only_part if isinstance(asked, Collect) else None
        chosen = range(len(keys)) if part is None else [part]
        names = list(values)
        parts = [_answer(keys[i], asked, names[i], int(offsets[i])) for i in chosen]
        selection.absorb(asked, parts)
    found = selection.result
    magnitude = _selected_magnitude(found, values, offsets)
    return [
        replace(local_threshold(found, int(offset), size, rank_key(name)), magnitude=magnitude)
        for name, offset, size in zip(values, offsets, sizes, strict=False)
    ]


def _selected_magnitude(found: ThresholdPoint, values: Mapping[str, Tensor], offsets: Any) -> Any:
    """The magnitude of a cut; where gradients are recorded, with that of the element it was found at."""
    tensors = list(values.values())
    if found.last_index < 0 or not any(v.requires_grad for v in tensors):
        return found.magnitude
    which = int(np.searchsorted(offsets, found.last_index, side="right")) - 1
    return tensors[which].reshape(-1)[found.last_index - int(offsets[which])].abs().double()


def _answer(keys: Tensor, asked: Request, tensor: str, offset: int) -> HistogramPart | CollectPart:
    if isinstance(asked, Histogram):
        return count_keys(keys, asked)
    if isinstance(asked, Collect):
        return collect_keys(keys, asked, offset)
    part = collect_equal(keys, replace(asked, rank_key=rank_key(tensor)), 0)
    return replace(part, indices=part.indices + offset)
