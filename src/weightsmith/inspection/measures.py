"""What is measured of two tensors that should be alike, as sums that add up over tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from weightsmith.graph import exact_sum


@dataclass(frozen=True, slots=True)
class Measures:
    """Sums over the elements of a tensor, or of many.

    `aa`, `bb`, `ab` are sums of a^2, b^2 and a b, `dd` that of (b - a)^2, `changed` the number of
    elements with another value (NaN equals NaN, and -0 equals 0), `other_bits` the tensors that are not
    the same byte for byte, `largest` the largest |b - a|. With a base, `uu`, `vv` and `uv` are the sums
    of squares and products of u = a - base and v = b - base, and `zz` that of base^2.
    """

    tensors: int = 0
    elements: int = 0
    aa: float = 0.0
    bb: float = 0.0
    ab: float = 0.0
    dd: float = 0.0
    changed: int = 0
    other_bits: int = 0
    largest: float = 0.0
    uu: float = 0.0
    vv: float = 0.0
    uv: float = 0.0
    zz: float = 0.0

    @property
    def relative_delta(self) -> float:
        """|b - a| / |a|, Euclidean norms; 0 for equal tensors and infinite where only a is 0."""
        return _ratio(math.sqrt(self.dd), math.sqrt(self.aa))

    @property
    def cosine(self) -> float | None:
        """Cosine between a and b; None where one of them is 0."""
        return _cosine(self.ab, self.aa, self.bb)

    @property
    def changed_share(self) -> float:
        """Share of elements with another value."""
        return self.changed / self.elements if self.elements else 0.0

    @property
    def delta_a(self) -> float:
        """|a - base| / |base|."""
        return _ratio(math.sqrt(self.uu), math.sqrt(self.zz))

    @property
    def delta_b(self) -> float:
        """|b - base| / |base|."""
        return _ratio(math.sqrt(self.vv), math.sqrt(self.zz))

    @property
    def delta_cosine(self) -> float | None:
        """Cosine between a - base and b - base; None where one of them is 0."""
        return _cosine(self.uv, self.uu, self.vv)

    def to_mapping(self, *, with_base: bool) -> dict[str, Any]:
        """As JSON has it; what was measured from a base is left out without one."""
        content: dict[str, Any] = {
            "tensors": self.tensors,
            "elements": self.elements,
            "relative_delta": self.relative_delta,
            "cosine": self.cosine,
            "changed": self.changed,
            "changed_share": self.changed_share,
            "largest_delta": self.largest,
            "different_tensors": self.other_bits,
        }
        if with_base:
            content |= {
                "delta_a": self.delta_a,
                "delta_b": self.delta_b,
                "delta_cosine": self.delta_cosine,
            }
        return content


def together(parts: Iterable[Measures]) -> Measures:
    """The measures of many tensors as if they were one; float sums are exact, so their order does not matter."""
    listed = list(parts)
    joined: dict[str, float | int] = {}
    for field in fields(Measures):
        numbers = [getattr(part, field.name) for part in listed]
        if field.name == "largest":
            joined["largest"] = (
                math.nan if any(n != n for n in numbers) else max(numbers, default=0.0)
            )
        elif all(isinstance(n, int) for n in numbers):
            joined[field.name] = sum(numbers)
        else:
            joined[field.name] = exact_sum(numbers)
    return Measures(**joined)  # type: ignore[arg-type]


def _ratio(over: float, under: float) -> float:
    if under == 0:
        return 0.0 if over == 0 else math.inf
    return over / under


def _cosine(product: float, first: float, second: float) -> float | None:
    norms = math.sqrt(first) * math.sqrt(second)
    if norms == 0:
        return None
    cosine = product / norms
    return cosine if cosine != cosine else max(-1.0, min(1.0, cosine))
