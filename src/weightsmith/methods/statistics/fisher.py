"""Fisher-weighted averaging: every weight counts as much as its model's loss depends on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.graph import Site, Value, maximum
from weightsmith.methods.averages.linear import normalized, weighted_average
from weightsmith.methods.parts.curvature import element_average, scaled, squares
from weightsmith.methods.parts.registry import Base, method, per_expert, shared


@method(
    "fisher",
    title="Fisher-weighted average",
    paper="Matena and Raffel, NeurIPS 2022, arXiv:2111.09832",
    base=Base.IGNORED,
    statistics=("fisher", "adam", "gradients"),
    cost="O(N m n), and as much reading again for the Fishers",
    generalises=("linear", "soup"),
    presets={
        "reference": {"floor": 1e-6, "uninformed": "first"},
        "mergelm": {"smoothing": 1e-6},
        "bloomberg": {"normalize": "tensor", "smoothing": 1e-10},
    },
)
@dataclass(frozen=True, slots=True)
class Fisher:
    """Average in which every element has the weight of its Fisher information.

        theta = sum_i w_i F_i theta_i / sum_i w_i F_i        elementwise, F_i = E_x E_y (d log p(y | x) / d theta)^2

    F_i is read from a statistics file: diagonal Fishers, Adam's second moments, or gradients of single samples, whose
    squares are averaged. With normalize (model, the default) each F_i is divided by its Euclidean norm over the whole
    model, so that a model with larger gradients does not win by that alone; `tensor` divides by the norm of each
    tensor. Where nobody has information (all F_i = 0) the result is the plain mean, or the first expert's value
    (uninformed: first). The authors' code raises the first expert's Fisher to a floor of 1e-6 (preset reference), which
    outweighs Fishers of large language models; MergeLM and Bloomberg's code add a constant to all Fishers and to their
    norms (presets mergelm, bloomberg). Norms are those of the Fishers as they are, before a floor or constant. Tensors
    without statistics are averaged with the weights w_i. Result and experts have one shape; every element lies between
    the smallest and largest expert's.
    """

    weight: tuple[float, ...] = per_expert(1.0, low=0.0, doc="coefficient of each Fisher")
    normalize: str = shared(
        "model",
        choices=("none", "model", "tensor"),
        switch={"paper": "model"},
        doc="divide each Fisher by its Euclidean norm over the model or the tensor",
    )
    floor: float = shared(0.0, low=0.0, doc="least Fisher; its norm is that of the Fisher before")
    floor_on: str = shared("first", choices=("first", "all"), doc="whose Fisher has the floor")
    smoothing: float = shared(
        0.0, low=0.0, doc="added to every Fisher, and to the norm that it had before"
    )
    uninformed: str = shared(
        "average",
        choices=("average", "first"),
        doc="elements whose Fishers are all 0: the mean of the experts, or the first expert",
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Average the experts element by element; the base plays no part."""
        if not site.statistics:
            return weighted_average(experts, normalized(self.weight))
        fishers = [self._fisher(squares(s), site, i) for i, s in enumerate(site.statistics)]
        weights = [f if w == 1.0 else f * w for f, w in zip(fishers, self.weight, strict=True)]
        return element_average(experts, weights, uninformed=self.uninformed)

    def _fisher(self, fisher: Value, site: Site, expert: int) -> Value:
        raised = fisher
        if self.floor > 0.0 and (expert == 0 or self.floor_on == "all"):
            raised = maximum(fisher, self.floor)
        if self.smoothing > 0.0:
            raised = raised + self.smoothing
        return scaled(
            raised, self.normalize, site, expert, measured=fisher, constant=self.smoothing
        )
