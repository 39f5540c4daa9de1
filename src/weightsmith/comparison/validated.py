"""What the study in docs/diagnostics.md found: how well each diagnostic predicts what a merge loses.

`benchmarks/diagnostics_study.py` measures these numbers and writes both this table and that page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Validity:
    """The rank correlation of a diagnostic with the measured drop, and its 95 % bootstrap interval over experts."""

    correlation: float
    low: float
    high: float

    @property
    def predicts(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


DATE = "2026-11-21"
FAMILIES: tuple[str, ...] = (
    "vision",
    "vision-tiny",
    "language",
)
VALIDITY: Mapping[str, Validity] = {
    "relative_delta": Validity(0.411, 0.001, 0.932),
    "norm_imbalance": Validity(-0.373, -0.759, 0.476),
    "distance": Validity(0.467, 0.093, 0.949),
    "delta_cosine": Validity(-0.034, -0.787, 0.432),
    "delta_alignment": Validity(-0.026, -0.777, 0.437),
    "cancellation": Validity(0.088, -0.429, 0.787),
    "sign_conflict": Validity(0.309, -0.275, 0.901),
    "subspace_overlap": Validity(0.014, -0.665, 0.469),
    "singular_interference": Validity(-0.320, -0.648, 0.163),
}
