"""What is known about tokens that a checkpoint has no rows for, and the form of a rule that makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.vocabularies.aligned_rows import Filling
from weightsmith.vocabularies.token_tables import (
    Identity,
    Index,
    TokenTable,
    array_digest,
    as_index,
)


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Lists of row numbers, one list per token: list i is rows[starts[i] : starts[i + 1]]."""

    starts: Index
    rows: Index

    def __post_init__(self) -> None:
        for name in ("starts", "rows"):
            object.__setattr__(self, name, as_index(getattr(self, name)))
        fits = len(self.starts) and self.starts[0] == 0 and self.starts[-1] == len(self.rows)
        if not fits or (np.diff(self.starts) < 0).any():
            raise UsageError("the starts and rows of token pieces do not fit together.")

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> Pieces:
        """From one list of row numbers per token, which may be empty."""
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        rows = np.fromiter((row for pieces in lists for row in pieces), np.int64, lengths.sum())
        return cls(np.append(0, np.cumsum(lengths)), rows)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Index:
        """Number of pieces of each token."""
        return np.diff(self.starts)

    def take(self, which: Index) -> Pieces:
        """The lists of `which` tokens, in that order."""
        lengths = self.lengths[which]
        ordinals = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows = self.rows[np.repeat(self.starts[which], lengths) + ordinals]
        return Pieces(np.append(0, np.cumsum(lengths)), rows)


@dataclass(frozen=True, eq=False)
class Missing:
    """`count` tokens that table `own` has no rows for, and what their rows can be made from.

    used: own rows that stand for tokens in use, (U,); all of the table where None. What is left out is padding.
    donor, shared_own, shared_donor: a table of another checkpoint, and the pairs of rows (own, donor) of the tokens
    that both have, (S,) each.
    wanted: the donor's rows of the missing tokens, (count,).
    pieces: the own rows of the tokens that each missing one is cut into by the own tokenizer; shared_pieces: the same
    for the shared tokens, without the token itself, only to measure `subtokens` (see `held_out_error`).
    is_head: the rows are an output head's, not an embedding's.
    own_label, donor_label: the checkpoints in messages.

    Every table is a space of its own: a rule for the head of an untied model is given the tables of the heads (of a
    tied donor: its embedding), and is fitted there; the coefficients of embeddings say nothing about heads. Where
    embedding and head are tied there is one table, and one `Missing`.
    """

    own: TokenTable
    count: int
    used: Index | None = None
    donor: TokenTable | None = None
    shared_own: Index | None = None
    shared_donor: Index | None = None
    wanted: Index | None = None
    pieces: Pieces | None = None
    shared_pieces: Pieces | None = None
    is_head: bool = False
    own_label: str = "the model"
    donor_label: str = "the donor"

    def __post_init__(self) -> None:
        for name, table in (
            ("used", self.own),
            ("shared_own", self.own),
            ("shared_donor", self.donor),
            ("wanted", self.donor),
        ):
            rows = getattr(self, name)
            if rows is None:
                continue
            if table is None:
                raise UsageError(f"`{name}` is given without a donor.")
            object.__setattr__(self, name, as_index(rows))
            table.require_rows(getattr(self, name))
        for pieces in (self.pieces, self.shared_pieces):
            if pieces is not None:
                self.own.require_rows(pieces.rows)
        self._require_lengths()

    def _require_lengths(self) -> None:
        shared = None if self.shared_own is None else len(self.shared_own)
        expected = {"wanted": self.count, "pieces": self.count}
        if shared is not None:
            expected |= {"shared_donor": shared, "shared_pieces": shared}
        for name, length in expected.items():
            given = getattr(self, name)
            if given is not None and len(given) != length:
                raise UsageError(f"`{name}` has {len(given)} entries, and {length} are needed.")

    @property
    def in_use(self) -> Index:
        """The own rows that are in use."""
        return np.arange(self.own.count) if self.used is None else self.used

    def shared(self) -> tuple[TokenTable, Index, Index, Index]:
        """Donor table, own and donor rows of the shared tokens, and donor rows of the missing ones.

        Raises CompatibilityError where the checkpoints share no token, and UsageError where no donor was given.
        """
        if self.donor is None or self.shared_own is None or self.shared_donor is None:
            raise UsageError(f"no rows of a donor are given for {self.own.tensor.location}.")
        if not len(self.shared_own):
            raise CompatibilityError(
                f"{self.own_label} and {self.donor_label} share no token, so the rows of one say nothing about the "
                "other's: choose the rule zero, mean or subtokens, or another donor."
            )
        wanted = as_index([]) if self.wanted is None else self.wanted
        if len(wanted) != self.count:
            raise UsageError(f"{len(wanted)} of {self.count} missing tokens have a donor's row.")
        return self.donor, self.shared_own, self.shared_donor, wanted

    @property
    def identity(self) -> Identity:
        """All of it, without what the tables hold."""
        tables = tuple(None if t is None else t.identity for t in (self.own, self.donor))
        pieces = () if self.pieces is None else (self.pieces.starts, self.pieces.rows)
        arrays = (self.used, self.shared_own, self.shared_donor, self.wanted, *pieces)
        digests = tuple(None if array is None else array_digest(array) for array in arrays)
        return (self.count, self.is_head, tables, digests)


class MissingRule(Protocol):
    """How rows of missing tokens are made: a frozen dataclass whose fields are the parameters."""

    name: ClassVar[str]
    needs_donor: ClassVar[bool]

    def check(self, missing: Missing) -> None:
        """Raise UsageError, RecipeError or CompatibilityError where the rule cannot work; reads nothing."""
        ...

    def fit(self, missing: Missing) -> RowFit:
        """Read what must be read and return the rows."""
        ...


@dataclass(frozen=True, slots=True)
class RowFit:
    """The rows that a rule made, and numbers worth reporting: what was fitted on, how far it got."""

    rows: Filling
    facts: Mapping[str, float]
