"""What is to be collected, as words say it: `fisher,gram`, `gradients:8`, an estimator, and what is squared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.errors import UsageError
from weightsmith.naming import nearest

FORWARD = ("gram", "channels", "routing", "cross")
BACKWARD = ("fisher", "gradients")
WHAT = (*FORWARD, *BACKWARD, "adam", "repair")
PER = ("sequence", "token")
_MOST_DRAWS = 10_000
_WORD = re.compile(r"(?P<kind>[a-z]+)(:(?P<singles>\d{1,6}))?")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Kinds of statistics, and how those of gradients are estimated.

    `estimator` is exact, empirical or mc; `draws` the labels that mc draws for each item; `singles` how many items'
    own gradients are kept. `factors` tells that gradients are of an adapter's tensors.
    """

    kinds: tuple[str, ...]
    estimator: str = ""
    draws: int = 0
    per: str = "sequence"
    singles: int = 0
    seed: int = 0
    factors: bool = False

    @property
    def forward(self) -> tuple[str, ...]:
        """The kinds that see what passes modules."""
        return tuple(kind for kind in self.kinds if kind in FORWARD)

    @property
    def backward(self) -> tuple[str, ...]:
        """The kinds that are made of gradients."""
        return tuple(kind for kind in self.kinds if kind in BACKWARD)

    @property
    def estimator_text(self) -> str:
        """The estimator as it is written."""
        return f"mc:{self.draws}" if self.estimator == "mc" else self.estimator


def parse_wanted(
    what: str | Sequence[str],
    estimator: str | None = None,
    per: str = "sequence",
    seed: int = 0,
    *,
    factors: bool = False,
) -> Wanted:
    """Read WHAT, several of them parted by commas; raises UsageError for what there is none of."""
    words = [word.strip() for word in what.split(",")] if isinstance(what, str) else list(what)
    kinds: dict[str, int] = {}
    for word in words:
        kind, singles = _kind_of(word)
        if kind in kinds:
            raise UsageError(f"{kind} is asked for twice; ask once.")
        kinds[kind] = singles
    if per not in PER:
        raise UsageError(f"What is squared is a gradient per {' or '.join(PER)}, not {per!r}.")
    if factors and not all(kind in BACKWARD for kind in kinds):
        raise UsageError(
            f"Of an adapter's own tensors there are {' and '.join(BACKWARD)}; ask for these, or for "
            f"{', '.join(kinds)} of the weights."
        )
    name, draws = _estimator_of(estimator) if estimator else ("", 0)
    return Wanted(tuple(kinds), name, draws, per, kinds.get("gradients", 0), seed, factors)


def _kind_of(word: str) -> tuple[str, int]:
    found = _WORD.fullmatch(word)
    kind = found["kind"] if found else word
    if kind not in WHAT:
        near = nearest(kind, WHAT)
        hint = f"did you mean {near!r}?" if near else f"there are {', '.join(WHAT)}."
        raise UsageError(f"There are no statistics {word!r}; {hint}")
    if found and found["singles"] and kind != "gradients":
        raise UsageError(f"{kind} takes no number; only gradients do, as in gradients:8.")
    return kind, int(found["singles"] or 0) if found else 0


def _estimator_of(text: str) -> tuple[str, int]:
    if text in ("exact", "empirical"):
        return text, 0
    name, _, draws = text.partition(":")
    if name != "mc" or not (draws or "1").isdecimal() or not 0 < int(draws or 1) <= _MOST_DRAWS:
        raise UsageError(
            f"There is no estimator {text!r}; there are exact, empirical, and mc:S with S labels drawn for each item."
        )
    return name, int(draws or 1)
