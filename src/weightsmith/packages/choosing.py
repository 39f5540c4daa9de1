"""The codec of every tensor of a lossy package: all are tried and measured, then bytes go where they remove most.

The error that is minimised is that of all tensors together, sum ||decoded - exact||^2, in which a tensor counts by the
size of its change. Vectors, tensors that the base lacks and integers are never lossy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.deltas import (
    LOSSY,
    CodecChoice,
    Delta,
    Encoded,
    choices,
    encode,
    encode_exactly,
    measured_error,
)
from weightsmith.packages.codec_allocation import Option, within_budget, within_error
from weightsmith.packages.package_entries import stored_bytes
from weightsmith.packages.tensor_pairs import Pair

SAME = "same"


@dataclass(frozen=True, slots=True)
class MeasuredChoice:
    """What storing one tensor in one way costs; `choice` None is exact."""

    choice: CodecChoice | None
    option: Option


@dataclass(frozen=True, slots=True)
class Candidates:
    """The ways of storing one tensor, and the sum of its squared changes."""

    ways: tuple[MeasuredChoice, ...]
    squares: float


def measure(pair: Pair, codecs: Sequence[str] | None) -> Candidates:
    """Try the codecs that fit a tensor, lossless and leaving the change out among them."""
    exact = encode_exactly(pair.known, pair.target)
    exactly = MeasuredChoice(None, Option(stored_bytes(pair, exact), 0.0))
    if not pair.can_lose or exact.codec == SAME:
        return Candidates((exactly,), 0.0)
    target, added = pair.target_rows()
    known = pair.known
    assert known is not None
    delta = Delta(known, target)
    worth_trying = choices(delta, LOSSY if codecs is None else codecs)
    if not worth_trying:
        return Candidates((exactly,), 0.0)
    beyond = None if added is None else encode_exactly(None, added)
    nothing = stored_bytes(pair, Encoded(SAME), beyond)
    dropped = MeasuredChoice(CodecChoice(SAME), Option(nothing, delta.squares))
    ways = [exactly, dropped]
    for choice in worth_trying:
        encoded = encode(delta, choice)
        if beyond is None and encoded.nbytes >= exact.nbytes:
            continue
        error = measured_error(encoded, known, target)
        option = Option(stored_bytes(pair, encoded, beyond), error * error * delta.squares)
        ways.append(MeasuredChoice(choice, option))
    return Candidates(tuple(ways), delta.squares)


def choose_within_budget(
    candidates: Sequence[Candidates], budget: int, fixed: int
) -> list[CodecChoice | None]:
    """The ways that together have the least error within a number of bytes, None being exact.

    `fixed` bytes are spent in any case. Raises UsageError if the budget is too small.
    """
    kept = [Option(fixed, 0.0)]
    options = [kept, *([way.option for way in found.ways] for found in candidates)]
    chosen = within_budget(options, budget)[1:]
    return [found.ways[i].choice for found, i in zip(candidates, chosen, strict=True)]


def choose_within_error(candidates: Sequence[Candidates], error: float) -> list[CodecChoice | None]:
    """For each tensor the way of fewest bytes whose relative error is at most `error`."""
    found = []
    for tensor in candidates:
        largest = error * error * tensor.squares
        at = within_error([way.option for way in tensor.ways], largest)
        found.append(tensor.ways[at].choice)
    return found
