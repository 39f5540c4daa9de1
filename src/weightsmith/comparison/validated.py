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
)
VALIDITY: Mapping[str, Validity] = {
    "relative_delta": Validity(0.841, 0.469, 0.974),
    "norm_imbalance": Validity(-0.334, -0.784, 0.604),
    "distance": Validity(0.867, 0.530, 0.980),
    "delta_cosine": Validity(-0.137, -0.913, 0.386),
    "delta_alignment": Validity(-0.124, -0.910, 0.389),
    "cancellation": Validity(0.242, -0.386, 0.914),
    "sign_conflict": Validity(0.108, -0.399, 0.915),
    "subspace_overlap": Validity(-0.048, -0.757, 0.491),
    "singular_interference": Validity(-0.437, -0.692, 0.143),
}
