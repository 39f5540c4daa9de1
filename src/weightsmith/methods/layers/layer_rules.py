"""Per-layer facts that layer rules share: how much each expert changed each layer of a stack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weightsmith.graph import Scalar, Site, Value, dot, scalars
from weightsmith.methods.parts.span import root


def layer_squares(base: Value, deltas: Sequence[Value], site: Site) -> list[Scalar]:
    """||theta_0||^2 and ||tau_1||^2, ..., ||tau_N||^2 of every layer of the stack: L times N + 1 numbers."""
    found = []
    for layer in range(site.layers):
        found.append(dot(base, base, site.over_layer(layer, "base")))
        found += [dot(d, d, site.over_layer(layer, "change", i)) for i, d in enumerate(deltas)]
    return found


def layer_changes(
    squares: Sequence[Any], experts: int, measure: str, *, scaled: bool
) -> list[list[Any]]:
    """c[i][l] from what `layer_squares` gives; with `scaled`, each expert's sum to 1 over the layers.

    Measures: `relative` ||tau_i^l|| / ||theta_0^l||, and `norm` ||tau_i^l||. A layer whose base is zero counts by
    its norm, and an expert that changed nothing by 0 everywhere.
    """
    layers = len(squares) // (experts + 1)
    changes: list[list[Any]] = [[] for _ in range(experts)]
    for layer in range(layers):
        base, *own = squares[layer * (experts + 1) : (layer + 1) * (experts + 1)]
        divisor = scalars.where(base > 0, root(base), 1.0) if measure == "relative" else 1.0
        for i, square in enumerate(own):
            changes[i].append(root(square) / divisor)
    return [_shares(row) for row in changes] if scaled else changes


def _shares(row: Sequence[Any]) -> list[Any]:
    whole: Any = 0.0
    for change in row:
        whole = whole + change
    return [scalars.divide(change, whole) for change in row]
