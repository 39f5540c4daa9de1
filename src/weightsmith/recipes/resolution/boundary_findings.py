"""Where the layers of a result do not follow each other as they did in their source, known from headers alone."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from weightsmith.checkpoints import Checkpoint
from weightsmith.findings import Finding, Severity
from weightsmith.recipes.resolution.formula import OutputTensor, first_leaf
from weightsmith.wording import counted

_MOST_SHOWN = 4


@dataclass(frozen=True, slots=True)
class LayerOrigin:
    """A layer of a stack of a checkpoint; `checkpoint` is a key of `Resolved.checkpoints`."""

    checkpoint: str
    stack: str
    layer: int

    def neighbour(self, step: int) -> LayerOrigin:
        """The layer `step` further on; it need not exist."""
        return LayerOrigin(self.checkpoint, self.stack, self.layer + step)

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"checkpoint": self.checkpoint, "stack": self.stack, "layer": self.layer}


@dataclass(frozen=True, slots=True)
class LayerBoundary:
    """Output layer `after` of a stack, made of `left`, is followed by one made of `right`, which is not the next.

    `next` is the layer that used to follow `left`, and `previous` the one that used to come before `right`; they
    need not exist.
    """

    stack: str
    after: int
    left: LayerOrigin
    right: LayerOrigin
    next: LayerOrigin
    previous: LayerOrigin


def layer_origins(
    outputs: Sequence[OutputTensor], checkpoints: Mapping[str, Checkpoint]
) -> dict[str, tuple[LayerOrigin, ...]]:
    """For each stack of the result, the layer that each of its layers is made of.

    A merged layer counts as made of its first expert's, and a layer of several sources as of the one that gives
    most of its tensors. Stacks with a layer of unknown origin are left out.
    """
    votes: dict[str, dict[int, Counter[tuple[str, str, int]]]] = defaultdict(dict)
    for output in outputs:
        at = output.place
        if at.stack is None or at.layer is None:
            continue
        own = votes[at.stack].get(at.layer)
        if own is None:
            own = votes[at.stack][at.layer] = Counter()
        leaf = first_leaf(output.formula)
        origin = checkpoints[leaf.checkpoint].places[leaf.tensor]
        if origin.layer is not None and origin.stack is not None:
            own[leaf.checkpoint, origin.stack, origin.layer] += 1
    return {
        stack: tuple(LayerOrigin(*layers[i].most_common(1)[0][0]) for i in sorted(layers))
        for stack, layers in votes.items()
        if all(layers.values())
    }


def layer_boundaries(origins: Mapping[str, Sequence[LayerOrigin]]) -> tuple[LayerBoundary, ...]:
    """Every place where one layer is not followed by the next of its source."""
    return tuple(
        LayerBoundary(stack, after, left, right, left.neighbour(1), right.neighbour(-1))
        for stack, layers in origins.items()
        for after, (left, right) in enumerate(pairwise(layers))
        if right != left.neighbour(1)
    )


def repeated_layers(origins: Sequence[LayerOrigin]) -> tuple[LayerOrigin, ...]:
    """The layers that are used more than once, in the order of first use."""
    return tuple(origin for origin, uses in Counter(origins).items() if uses > 1)


def boundary_findings_of(
    outputs: Sequence[OutputTensor], checkpoints: Mapping[str, Checkpoint]
) -> list[Finding]:
    """A note on every stack with seams: where they are, what is repeated, and how large the result is."""
    origins = layer_origins(outputs, checkpoints)
    found = []
    for stack, layers in origins.items():
        boundaries = layer_boundaries({stack: layers})
        if not boundaries:
            continue
        listed = "; ".join(_described(boundary) for boundary in boundaries[:_MOST_SHOWN])
        more = (
            f"; and {len(boundaries) - _MOST_SHOWN} more" if len(boundaries) > _MOST_SHOWN else ""
        )
        repeated = repeated_layers(layers)
        twice = f"; {_runs(repeated)} used more than once" if repeated else ""
        parameters = sum(math.prod(output.shape) for output in outputs)
        found.append(
            Finding(
                Severity.NOTE,
                "seams",
                stack,
                f"{stack!r} has {len(layers)} layers ({parameters:,} parameters in all) with "
                f"{counted(len(boundaries), 'layer boundary', 'layer boundaries')}: {listed}{more}{twice}",
                "`weightsmith seams` measures them",
            )
        )
    return found


def _described(boundary: LayerBoundary) -> str:
    return (
        f"after layer {boundary.after}, layer {boundary.left.layer} of {boundary.left.checkpoint!r} is followed by "
        f"layer {boundary.right.layer} of {boundary.right.checkpoint!r}"
    )


def _runs(layers: Sequence[LayerOrigin]) -> str:
    """Layers as ranges: `layers 8-23 of 'base'`."""
    by_source: dict[str, list[int]] = defaultdict(list)
    for origin in layers:
        by_source[origin.checkpoint].append(origin.layer)
    parts = []
    for checkpoint, numbers in by_source.items():
        ranges: list[list[int]] = []
        for number in sorted(numbers):
            if ranges and number == ranges[-1][1] + 1:
                ranges[-1][1] = number
            else:
                ranges.append([number, number])
        spans = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
        parts.append(f"layers {spans} of {checkpoint!r}")
    return " and ".join(parts)
