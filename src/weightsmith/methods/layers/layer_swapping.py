"""Layer swapping: the middle layers of one expert, the outer layers of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.errors import RecipeError
from weightsmith.graph import Scalar, Site, Value, solve, value, where
from weightsmith.methods.averages.linear import interpolate
from weightsmith.methods.layers.layer_rules import layer_changes, layer_squares
from weightsmith.methods.parts.registry import Base, method, shared


@method(
    "layer_swapping",
    title="Layer swapping",
    paper="Bandarkar et al., ICLR 2025, arXiv:2410.01335",
    base=Base.OPTIONAL,
    experts=(2, 2),
)
@dataclass(frozen=True, slots=True)
class LayerSwapping:
    """Take the outer layers and the rest from expert 2 (language), the middle layers from expert 1 (task).

        theta^l = (1 - s_l) theta_1^l + s_l theta_2^l,    l = 0..L-1
        s_l = 1                    for l < b and l >= L - u                         (bottom and top layers)
        s_l = 1/2                  in the t layers of the middle next to each swap  (transition)
        s_l = 0                    else

    so that s_l only depends on the layer and all tensors of a layer move together; where s_l is 0 or 1 they are
    copies, bit for bit. b = u = t = 0 gives expert 1's layers and b = L expert 2's. At an end where nothing is swapped
    there is no transition; layers of both transitions are averaged once. b + u beyond L is RecipeError.

    With select: measured, b and u follow from the weights. c_i^l = ||tau_i^l|| / ||theta_0^l|| over all tensors of
    a layer, scaled to sum to 1 over the layers, is where expert i changed most (measure: norm leaves out the
    divisor); the middle block [b, L - u) is the run of layers, at least one long, with the largest sum of
    c_1^l - c_2^l, the longest and then first of equals. This needs the base, and reads the stack once more.

    Tensors outside of layers - embeddings, final norm, head - are those of `rest`: an expert, the average, or the base.
    """

    bottom: int = shared(0, low=0, doc="b: number of first layers taken from expert 2")
    top: int = shared(0, low=0, doc="u: number of last layers taken from expert 2")
    transition: int = shared(0, low=0, doc="t: number of averaged layers at each swap")
    select: str = shared(
        "given",
        choices=("given", "measured"),
        doc="where b and u come from: the recipe, or weights",
    )
    measure: str = shared(
        "relative",
        choices=("relative", "norm"),
        doc="with select measured: change of a layer relative to its base, or as it is",
    )
    rest: str = shared(
        "second",
        choices=("first", "second", "average", "base"),
        doc="what tensors outside of layers are: those of expert 1 or 2, their average, or the base's",
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Swap by layer."""
        task, language = experts
        if base is None and (self.select == "measured" or self.rest == "base"):
            raise RecipeError(
                "layer_swapping needs a base for select: measured and for rest: base; give `base_model:`."
            )
        if site.layer is None:
            return self._rest(base, task, language)
        if self.select == "given":
            if self.bottom + self.top > site.layers > 0:
                raise RecipeError(
                    f"layer_swapping with bottom {self.bottom} and top {self.top} swaps more than the {site.layers} "
                    f"layers at {site.name!r}; lower them."
                )
            share = swap_share(site.layer, site.layers, self.bottom, self.top, self.transition)
            return interpolate(task, language, share) if share else task
        assert base is not None
        return _swapped(task, language, self._measured(base, task, language, site))

    def _rest(self, base: Value | None, task: Value, language: Value) -> Value:
        if self.rest == "average":
            return interpolate(task, language, 0.5)
        if self.rest == "base":
            assert base is not None
            return base
        return task if self.rest == "first" else language

    def _measured(self, base: Value, task: Value, language: Value, site: Site) -> Scalar:
        assert site.layer is not None
        rule = MeasuredShare(site.layer, self.transition, self.measure)
        squares = layer_squares(base, [task - base, language - base], site)
        (share,) = solve(rule, squares, 1)
        return share


def _swapped(task: Value, language: Value, share: Scalar) -> Value:
    """interpolate(task, language, share) for a share that is known only later, as exact at 0 and 1."""
    mixed = task + (language - task) * share
    inner = where(value(share).equals(0.0), task, mixed)
    return where(value(share).equals(1.0), language, inner)


def swap_share(layer: int, layers: int, bottom: int, top: int, transition: int) -> float:
    """s_l: the share of expert 2 in a layer."""
    end = layers - top
    if layer < bottom or layer >= end:
        return 1.0
    after_bottom = bottom > 0 and layer < bottom + transition
    before_top = top > 0 and layer >= end - transition
    return 0.5 if after_bottom or before_top else 0.0


@dataclass(frozen=True, slots=True)
class MeasuredShare:
    """s_l of one layer from the squared norms that `layer_squares` gives for two experts."""

    layer: int
    transition: int
    measure: str

    def __call__(self, *squares: Any) -> list[Any]:
        """One share."""
        task, language = layer_changes(squares, 2, self.measure, scaled=True)
        gains = [a - b for a, b in zip(task, language, strict=True)]
        bottom, top = middle_block(gains)
        return [swap_share(self.layer, len(gains), bottom, top, self.transition)]


def middle_block(gains: Sequence[Any]) -> tuple[int, int]:
    """(b, u) of the run [b, L - u) with the largest sum, the longest and then the first of equal ones."""
    best: tuple[Any, int, int] | None = None
    for start in range(len(gains)):
        whole: Any = 0.0
        for end in range(start + 1, len(gains) + 1):
            whole = whole + gains[end - 1]
            longer = best is not None and whole == best[0] and end - start > best[2] - best[1]
            if best is None or whole > best[0] or longer:
                best = (whole, start, end)
    assert best is not None
    return best[1], len(gains) - best[2]
