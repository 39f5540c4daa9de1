"""Gradients of a graph with respect to numbers in it and to sources, with torch, one tile of the inputs at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weightsmith.graph.backends.torch_backend import decode
from weightsmith.graph.backends.torch_interpreter import Interpreter, reduce_piece, torch_dtype
from weightsmith.graph.backends.torch_memory import evaluate_model
from weightsmith.graph.graph import Node, Scalar, Value
from weightsmith.graph.passes import PassSpec, evaluate_scalar, has_row_nodes
from weightsmith.tensors import DType

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class GradientTile:
    """Elements [start, start + count) of a tensor: the bytes of each source, None where it is not used.

    `loss` are those of dL/d output in the tile, with their dtype. `selected` has masks of the tile, in work precision,
    as the merge computes them: an element at a threshold differs in its last bit where other kernels compute it.
    """

    start: int
    count: int
    buffers: Sequence[memoryview | None]
    loss: tuple[memoryview, DType]
    selected: Mapping[Node, memoryview]


class Pull:
    """Pulls gradients of a pass back to `numbers`: free ones, and reductions of earlier passes that depend on them.

    The pass is one over a tensor as `spec` has it, in whose `known` the numbers are.
    """

    def __init__(self, spec: PassSpec, numbers: Iterable[Node]) -> None:
        self._spec = spec
        self._work = torch_dtype(spec.work)
        self._row_length = spec.shape[-1] if spec.shape else 1
        self._leaves = leaves_of({node: spec.known[node] for node in numbers})

    def of_output(self, output: Value, tiles: Iterable[GradientTile]) -> dict[Node, float]:
        """sum <dL/d output, d output / d number> in float64, for each number."""

        def weigh(tile: GradientTile, values: list[Tensor]) -> Tensor:
            return (values[0].double() * decode(*tile.loss, torch.float64, _CPU)).sum()

        return self._pulled([output], tiles, weigh)

    def of_reduction(
        self, reduction: Scalar, weight: float, tiles: Iterable[GradientTile]
    ) -> dict[Node, float]:
        """`weight` times the gradient of a sum or dot product over the tensor."""

        def weigh(_tile: GradientTile, values: list[Tensor]) -> Tensor:
            return reduce_piece(reduction.op, values) * weight

        return self._pulled(reduction.inputs, tiles, weigh)

    def of_sources(
        self,
        output: Value,
        weights: Mapping[Scalar, float],
        tiles: Iterable[GradientTile],
        indices: Sequence[int],
    ) -> Iterator[tuple[int, list[NDArray[np.float64]]]]:
        """Element by element the gradient of sources: <dL/d output, output> + sum_r weights_r r over reductions r.

        Yields the first element of each tile, with an array [elements] for each of the `indices`.
        """
        parts = [part for reduction in weights for part in reduction.inputs]
        roots = [output, *parts]
        known = _as_tensors(self._spec.known)
        interpreter = self._interpreter(roots, known)
        for tile in tiles:
            if tile.selected:
                interpreter = self._interpreter(roots, {**known, **self._masks(tile)})
            decoded = self._decoded(tile)
            leaves = [_leaf(decoded, index) for index in indices]
            with torch.enable_grad():
                values = interpreter.run(decoded, tile.start, tile.count, self._row_length)
                total = (values[0].double() * decode(*tile.loss, torch.float64, _CPU)).sum()
                at = 1
                for reduction, weight in weights.items():
                    own = values[at : at + len(reduction.inputs)]
                    total = total + reduce_piece(reduction.op, own) * weight
                    at += len(own)
            yield tile.start, [g.double().numpy() for g in _gradients_of(total, leaves)]

    def _masks(self, tile: GradientTile) -> dict[Node, Tensor]:
        """What thresholds select in a tile."""
        return {
            node: decode(mask, self._spec.work, self._work, _CPU)
            for node, mask in tile.selected.items()
        }

    def _pulled(
        self,
        roots: Sequence[Node],
        tiles: Iterable[GradientTile],
        weigh: Callable[[GradientTile, list[Tensor]], Tensor],
    ) -> dict[Node, float]:
        known = {**_as_tensors(self._spec.known), **self._leaves}
        interpreter = self._interpreter(roots, known)
        totals = dict.fromkeys(self._leaves, 0.0)
        for tile in tiles:
            if tile.selected:
                interpreter = self._interpreter(roots, {**known, **self._masks(tile)})
            with torch.enable_grad():
                values = interpreter.run(
                    self._decoded(tile), tile.start, tile.count, self._row_length
                )
                scalar = weigh(tile, values)
            for node, found in _gradients(scalar, self._leaves).items():
                totals[node] += found
        return totals

    def _interpreter(self, roots: Sequence[Node], known: Mapping[Node, Any]) -> Interpreter:
        return Interpreter(roots, known, self._work, has_row_nodes(roots, known))

    def _decoded(self, tile: GradientTile) -> list[Tensor | None]:
        dtypes = self._spec.source_dtypes
        return [
            None if buffer is None else decode(buffer, dtype, self._work, _CPU)
            for buffer, dtype in zip(tile.buffers, dtypes, strict=True)
        ]


def leaves_of(values: Mapping[Node, Any]) -> dict[Node, Tensor]:
    """float64 scalars in the places of numbers, of which gradients are taken."""
    return {
        node: torch.tensor(float(value), dtype=torch.float64, requires_grad=True)
        for node, value in values.items()
    }


def pull_scalars(
    weights: Mapping[Scalar, float], values: Mapping[Node, float]
) -> dict[Node, float]:
    """sum_s weights_s d s / d number for arithmetic s on numbers that have `values`, in float64."""
    leaves = leaves_of(values)
    memo: dict[Node, Any] = dict(leaves)
    total = torch.zeros((), dtype=torch.float64)
    for scalar, weight in weights.items():
        total = total + evaluate_scalar(scalar, memo) * weight
    return _gradients(total, leaves)


def pull_tensor(
    output: Value,
    sources: Sequence[Tensor],
    loss: Tensor,
    known: Mapping[Node, Any],
    numbers: Iterable[Node],
) -> dict[Node, float]:
    """As `Pull.of_output`, over a tensor that is in memory whole, through everything that a graph may have."""
    leaves = leaves_of({node: known[node] for node in numbers})
    held = {**_as_tensors(known), **leaves}
    made = evaluate_model({"": output}, {"": sources}, known=held)[""]
    return _gradients((made.double() * loss.double()).sum(), leaves)


def pull_sources(
    output: Value,
    sources: Sequence[Tensor],
    loss: Tensor,
    known: Mapping[Node, Any],
    indices: Sequence[int],
) -> list[Tensor]:
    """As `Pull.of_sources`, over tensors that are in memory whole; in the shapes of the sources."""
    given: list[Tensor | None] = list(sources)
    leaves = [_leaf(given, index) for index in indices]
    with torch.enable_grad():
        read = [one for one in given if one is not None]
        made = evaluate_model({"": output}, {"": read}, known=_as_tensors(known))[""]
        total = (made.double() * loss.double()).sum()
    return _gradients_of(total, leaves)


def _leaf(sources: list[Tensor | None], index: int) -> Tensor:
    """A source as a leaf that has a gradient, put in its place."""
    found = sources[index]
    assert found is not None
    sources[index] = leaf = found.detach().requires_grad_(True)
    return leaf


def _gradients_of(total: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    if not total.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(total, list(leaves), allow_unused=True)
    return [
        torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)
    ]


def _as_tensors(known: Mapping[Node, Any]) -> dict[Node, Any]:
    """The same with numbers as torch's, since small functions between passes work in one library."""
    numbers = {n: float(k) for n, k in known.items() if isinstance(k, (float, np.floating))}
    return {**known, **{n: torch.tensor(k, dtype=torch.float64) for n, k in numbers.items()}}


def _gradients(total: Tensor, leaves: Mapping[Node, Tensor]) -> dict[Node, float]:
    if not total.requires_grad:
        return dict.fromkeys(leaves, 0.0)
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {node: 0.0 if g is None else float(g) for node, g in zip(leaves, found, strict=True)}
