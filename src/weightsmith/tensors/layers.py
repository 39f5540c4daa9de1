"""Statistics of one layer of a stack that are known throughout the stack."""

from __future__ import annotations

from dataclasses import dataclass, field

from weightsmith.tensors.graph import Node, Scalar, Scope, Site, Value


@dataclass(frozen=True, slots=True)
class LayerPart:
    """The layer of a stack over whose tensors a model-wide reduction runs.

    Every tensor of the model knows the result; only those that `counts` is true for add to it.
    """

    stack: str
    layer: int
    counts: bool = field(compare=False, repr=False)


def layer_dot(x: Value, y: Value, site: Site, layer: int) -> Scalar:
    """Sum of products over all tensors of one layer of the stack that `site` lies in, known throughout the stack."""
    part = LayerPart(site.stack, layer, site.layer == layer)
    return Scalar("dot", (x, y), (part,), scope=Scope.MODEL)


def adds_to(reduction: Node) -> bool:
    """Whether the tensor that a reduction was traced for is among those that it runs over."""
    return all(part.counts for part in reduction.attributes if isinstance(part, LayerPart))
