"""Weighted sums of two models whose weights follow how alike the models are, column by column (cosine A and B)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.errors import RecipeError
from weightsmith.graph import Columns, Site, Value, apply, column_dot, scalars
from weightsmith.methods.parts.registry import Base, method, shared

_SOURCE = (
    "recoilme, 2023, losslessmix; sd-webui-supermerger and sd-mecha, add_cosine_a and add_cosine_b"
)


def _alpha() -> Any:
    return shared(
        0.5, doc="what is taken off the similarity: 0 stays near the base, 1 is the expert"
    )


def _lowest() -> Any:
    return shared(0.0, doc="the similarity that counts as 0")


def _highest() -> Any:
    return shared(1.0, doc="the similarity that counts as 1; above `lowest`")


@method(
    "cosine_a",
    title="Cosine A",
    paper=_SOURCE,
    base=Base.REQUIRED,
    experts=(1, 1),
    presets={"supermerger": {"with_mean": True}},
)
@dataclass(frozen=True, slots=True)
class CosineA:
    """Keep columns of the base where it is like the expert, and take the expert's elsewhere.

        theta = k theta_0 + (1 - k) theta_1,   k = clip((s - lowest) / (highest - lowest) - alpha, 0, 1)
        s = cos(column of theta_0, column of theta_1)                                         one number per column
        s = (cos + mean of cos over the tensor's columns) / 2                                 with_mean

    A column is all outputs for one input (one input and place of a kernel), along the first axis; a vector is one
    column. A column of zeros has s = 0. Two passes; sums in float64. sd-mecha has the first form of s, supermerger
    the second, and supermerger takes for lowest and highest the extremes of s over the model, but for the VAE and for
    one percent at each end: these are numbers of a model, so they are given here, and 0 and 1 (sd-mecha) leave s as it
    is. alpha = 1 gives the expert, up to one rounding. No source says which alpha is best; 0.5 is the middle.
    """

    alpha: float = _alpha()
    lowest: float = _lowest()
    highest: float = _highest()
    with_mean: bool = shared(
        False, doc="average the cosine of a column with the tensor's mean cosine"
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Take from the expert what is unlike."""
        follow = "mean" if self.with_mean else "columns"
        return _mixed(base, experts, site, KeptShare(self.alpha, self.lowest, self.highest, follow))


@method("cosine_b", title="Cosine B", paper=_SOURCE, base=Base.REQUIRED, experts=(1, 1))
@dataclass(frozen=True, slots=True)
class CosineB:
    """As `cosine_a`, by columns and by the tensor as a whole.

        theta = k theta_0 + (1 - k) theta_1,   k = clip((s - lowest) / (highest - lowest) - alpha, 0, 1)
        s = (cos(column of theta_0, column of theta_1) + cos(theta_0, theta_1)) / 2

    The second cosine is of the tensors as vectors, and is 0 where one is zero. Columns, passes, lowest and highest are
    as in `cosine_a`.
    """

    alpha: float = _alpha()
    lowest: float = _lowest()
    highest: float = _highest()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Take from the expert what is unlike."""
        share = KeptShare(self.alpha, self.lowest, self.highest, "tensor")
        return _mixed(base, experts, site, share)


@dataclass(frozen=True, slots=True)
class KeptShare:
    """1 - k for every column, from the squares and products of columns; `follow` says what s is made of."""

    alpha: float
    lowest: float
    highest: float
    follow: str

    def __call__(self, base: Any, expert: Any, product: Any) -> Any:
        """One number for each column, in [0, 1]."""
        alike = _cosine(base, expert, product)
        if self.follow == "mean":
            alike = (alike + alike.mean()) / 2.0
        if self.follow == "tensor":
            alike = (alike + _cosine(base.sum(), expert.sum(), product.sum())) / 2.0
        kept = (alike - self.lowest) / (self.highest - self.lowest) - self.alpha
        return 1.0 - scalars.clamp(kept, 0.0, 1.0)


def _cosine(base: Any, expert: Any, product: Any) -> Any:
    # The product of a zero with anything is 0, whatever its length is taken for; roots have no slope at 0.
    lengths = [scalars.sqrt(scalars.where(square > 0.0, square, 1.0)) for square in (base, expert)]
    return product / (lengths[0] * lengths[1])


def _mixed(base: Value | None, experts: Sequence[Value], site: Site, share: KeptShare) -> Value:
    assert base is not None
    if share.highest <= share.lowest:
        raise RecipeError(
            f"highest is {share.highest:g} and must lie above lowest, which is {share.lowest:g}; change one of them."
        )
    if site.numel == 0:
        return base
    expert = experts[0]
    rows = site.shape[0] if site.shape else 1
    view = Columns(rows, site.numel // rows)
    squares = [column_dot(one, one, view) for one in (base, expert)]
    taken = apply(share, *squares, column_dot(base, expert, view))
    return base + (expert - base) * taken
