"""What is asked of a package, and whether it can be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from weightsmith.deltas import LOSSY
from weightsmith.errors import UsageError
from weightsmith.naming import nearest
from weightsmith.tensors import parse_size


@dataclass(frozen=True, slots=True)
class Goal:
    """What is asked of a package: `lossless`, or a `budget` in bytes, or a largest relative `error` per tensor."""

    kind: str = "lossless"
    limit: float | None = None


def goal_of(budget: str | int | None, error: float | None, dense_bytes: int) -> Goal:
    """The goal for a fine-tune of so many bytes. Raises UsageError for what cannot be."""
    if budget is not None and error is not None:
        raise UsageError("A package has either a budget or a largest error: give one of them.")
    if budget is not None:
        return Goal("budget", budget_bytes(budget, dense_bytes))
    if error is None:
        return Goal()
    if not 0 <= error < 1:
        raise UsageError(
            f"An error of {error} is not possible: give a number from 0 (exact) to below 1 (no change at all)."
        )
    return Goal("error", error)


def budget_bytes(budget: str | int, dense_bytes: int) -> int:
    """Bytes of a budget: a size such as `300MB`, or a share of `dense_bytes` such as `1/16`. Raises UsageError."""
    text = str(budget).strip()
    try:
        if "/" not in text:
            return parse_size(text)
        share = Fraction(text.replace(" ", ""))
    except (ValueError, ZeroDivisionError):
        raise UsageError(
            f"{text!r} is no budget: give a share of the fine-tune's bytes such as 1/16, or a size such as 300MB."
        ) from None
    if not 0 < share <= 1:
        raise UsageError(
            f"A budget of {text} of the fine-tune's bytes is not possible: give a share up to 1/1."
        )
    return int(share * dense_bytes)


def check_codecs(goal: Goal, codecs: Sequence[str] | None) -> None:
    """Raise UsageError for codecs that are unknown, or that a lossless package has no use for."""
    if codecs is None:
        return
    if goal.kind == "lossless":
        raise UsageError(
            "A lossless package has one codec: leave the codecs out, or give a budget or an error."
        )
    known = list(LOSSY)
    if not codecs:
        raise UsageError(f"Name at least one codec of {', '.join(known)}, or leave them out.")
    for codec in codecs:
        if codec not in known:
            near = nearest(codec, known)
            hint = f"did you mean {near!r}?" if near else f"there are {', '.join(known)}."
            raise UsageError(f"There is no lossy codec {codec!r}; {hint}")
