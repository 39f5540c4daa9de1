"""What an extraction kept and lost, tensor by tensor, and what is worth knowing about it."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightsmith.deltas import Matrix
from weightsmith.findings import Finding, Severity
from weightsmith.lora.treatments import Treatment
from weightsmith.tensors import DType, shown


@dataclass(frozen=True, slots=True)
class ExtractedTensor:
    """What became of the change of one tensor, or of one expert of a fused one.

    `change` is ||W_finetune - W_base||_F, `error` what of it the adapter does not hold, in the same norm and measured
    on the numbers that are stored; both are None for tensors of integers and those without a counterpart in the base.
    `noise` is what rounding the fine-tune to its own dtype is expected to add to `change`, `signal` the number of
    singular values well above those of such noise (None where all that were found are). `rank` is 0 without factors.
    """

    key: str
    treatment: Treatment
    shape: tuple[int, ...]
    dtype: DType
    change: float | None
    error: float | None
    noise: float = 0.0
    rank: int = 0
    signal: int | None = None
    nbytes: int = 0
    why: str = ""

    @property
    def relative(self) -> float:
        """error / change; 0 where there is nothing to lose."""
        return (self.error or 0.0) / self.change if self.change else 0.0

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "tensor": self.key,
            "treatment": self.treatment.value,
            "shape": list(self.shape),
            "rank": self.rank,
            "change": self.change,
            "error": self.error,
            "relative_error": self.relative,
            "rounding_noise": self.noise,
            "signal_rank": self.signal,
            "bytes": self.nbytes,
            **({"why": self.why} if self.why else {}),
        }


@dataclass(frozen=True, slots=True)
class ExtractionReport:
    """Every tensor that differs; `unchanged` counts the others, `dtype` is that of the factors."""

    tensors: tuple[ExtractedTensor, ...]
    unchanged: int
    dtype: DType
    findings: tuple[Finding, ...] = ()

    @property
    def change(self) -> float:
        """||W_finetune - W_base||_F over all tensors."""
        return math.hypot(*(t.change or 0.0 for t in self.tensors))

    @property
    def error(self) -> float:
        """||W_finetune - (W_base + adapter)||_F over all tensors."""
        return math.hypot(*(t.error or 0.0 for t in self.tensors))

    @property
    def relative(self) -> float:
        """error / change."""
        return self.error / self.change if self.change else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that are written."""
        return sum(t.nbytes for t in self.tensors)

    @property
    def left_out(self) -> tuple[ExtractedTensor, ...]:
        """The tensors whose whole change is lost."""
        return tuple(t for t in self.tensors if t.treatment is Treatment.LEFT_OUT)

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "change": self.change,
            "error": self.error,
            "relative_error": self.relative,
            "bytes": self.nbytes,
            "dtype": str(self.dtype),
            "unchanged": self.unchanged,
            "left_out": len(self.left_out),
            "tensors": [tensor.to_mapping() for tensor in self.tensors],
            "findings": [finding.to_mapping() for finding in self.findings],
        }


def signal_rank(values: Matrix, noise: float, shape: tuple[int, int]) -> int | None:
    """How many singular values are above twice the largest that noise of this norm has; None if all of them are.

    A matrix of m x n independent errors of variance v has singular values up to about sqrt(v) (sqrt(m) + sqrt(n));
    twice, because arithmetic in a narrow type adds errors of its own to those of the last rounding.
    """
    rows, columns = shape
    edge = 2.0 * noise / math.sqrt(rows * columns) * (math.sqrt(rows) + math.sqrt(columns))
    count = int(np.count_nonzero(values > edge))
    return None if count == len(values) and count < min(shape) else count


def findings_of(
    tensors: Sequence[ExtractedTensor],
    resized: Iterable[str],
    tied: Iterable[str],
    ignored: Sequence[str] = (),
) -> list[Finding]:
    """Warnings of what is lost whole, of what PEFT takes otherwise or ignores, and notes."""
    found = list(_losses(tensors))
    faint = [t for t in tensors if t.change is not None and t.change**2 <= 2.0 * t.noise**2]
    if faint:
        first = faint[0]
        found.append(
            Finding(
                Severity.NOTE,
                "within-rounding",
                first.key,
                f"the change of {_counted(faint)} is hardly more than the rounding to {first.dtype} that it went "
                "through, so that much of what is extracted is noise",
                "compare with a copy of the fine-tune in a wider type if there is one",
            )
        )
    found.extend(
        Finding(
            Severity.WARNING,
            "resized",
            name,
            f"{shown(name)} has another number of rows than the base's and is stored whole",
            "merge with `weightsmith adapter merge`, or resize the base's table and head before PEFT loads the adapter",
        )
        for name in resized
    )
    found.extend(
        Finding(
            Severity.WARNING,
            "tied-factors",
            name,
            f"{shown(name)} is the head as well, and PEFT adds its factors twice when it merges them into the base",
            "merge with `weightsmith adapter merge`, or have the table stored whole",
        )
        for name in tied
    )
    if ignored:
        more = f" and {len(ignored) - 1} more" if len(ignored) > 1 else ""
        found.append(
            Finding(
                Severity.WARNING,
                "left-out-by-peft",
                ignored[0],
                f"PEFT takes {shown(ignored[0])}{more} for experts when it loads the adapter, and leaves the factors "
                "out without a word",
                "merge with `weightsmith adapter merge`",
            )
        )
    return found


def _losses(tensors: Sequence[ExtractedTensor]) -> Iterable[Finding]:
    reasons: Mapping[str, list[ExtractedTensor]] = collections.defaultdict(list)
    for tensor in tensors:
        if tensor.treatment is Treatment.LEFT_OUT:
            reasons[tensor.why].append(tensor)
    for why, lost in reasons.items():
        yield Finding(
            Severity.WARNING,
            "left-out",
            lost[0].key,
            f"the change of {_counted(lost)} is left out: {why}",
        )


def _counted(tensors: Sequence[ExtractedTensor]) -> str:
    more = f" and of {len(tensors) - 1} more" if len(tensors) > 1 else ""
    return f"{shown(tensors[0].key)}{more}"
