"""REPAIR: the units of a merged network brought back to the statistics that their parents' units have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.graph import Site, Value
from weightsmith.methods.parts.registry import Base, method


@method(
    "repair",
    title="REPAIR and reset of batch norm",
    paper="Jordan et al., ICLR 2023, arXiv:2211.08403",
    base=Base.IGNORED,
    experts=(1, 1),
    statistics=("repair",),
    cost="O(m n)",
)
@dataclass(frozen=True, slots=True)
class Repair:
    """The one model, merged before, with every unit rescaled as its statistics file says.

        unit y = W x + b:   W' = s W;   b' = s (b - mu) + mu*;   s = sigma* / sigma      row by row
        batch norm:         running_mean' = E z;   running_var' = Var z                  z what the norm reads

    mu and sigma are mean and deviation of y over data in the merged network, all layers before it being repaired
    already; mu* and sigma* the weighted means of those of its parents. Averaging shrinks the variance of units, more
    from layer to layer; this takes it back, and a network with batch norm needs only its running statistics measured
    anew. `weightsmith collect repair` measures all of it, and writes s for weights of two axes and more, and the new
    values of biases and running statistics. What the file does not name stays as it is. Folding s and mu* into weight
    and bias is exact but for rounding. The authors divide by sqrt(sigma^2 + 1e-5); here units that are constant over
    the data keep their scale instead. One expert, tensors of any shapes.
    """

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Rescale a weight, or put a vector in its place; the base plays no part."""
        if not site.statistics:
            return experts[0]
        found = site.statistics[0].value
        return found if len(site.shape) < 2 else experts[0] * found
