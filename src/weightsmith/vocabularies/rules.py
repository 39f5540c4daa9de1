"""The named rules for missing rows, and rows that are fitted when they are first read."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from weightsmith.errors import CompatibilityError, RecipeError, UsageError
from weightsmith.tensors import DType
from weightsmith.vocabularies.combinations import CombinedRows, ConstantRow, Zeros
from weightsmith.vocabularies.maps import (
    Mapped,
    fit_least_squares,
    fit_procrustes,
    fitting_bytes,
    mean_row,
)
from weightsmith.vocabularies.missing import Missing, MissingRule, Pieces, RowFit
from weightsmith.vocabularies.pursuit import pursue, pursuit_bytes
from weightsmith.vocabularies.token_tables import Identity, Index, TokenTable, Words
from weightsmith.wording import literal

SUBTOKEN_VARIANTS = ("mean", "sum", "first_last", "weighted_mean")


@dataclass(frozen=True, slots=True)
class Zero:
    """Rows of zeros, in the table's own dtype."""

    name: ClassVar[str] = "zero"
    needs_donor: ClassVar[bool] = False

    def check(self, missing: Missing) -> None:
        """Nothing can be wrong."""

    def fit(self, missing: Missing) -> RowFit:
        """Zeros."""
        return RowFit(Zeros(missing.own, missing.count), {})


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of the own rows that are in use, summed in float64 and rounded once."""

    name: ClassVar[str] = "mean"
    needs_donor: ClassVar[bool] = False

    def check(self, missing: Missing) -> None:
        """Raise CompatibilityError where no row is in use."""
        if not len(missing.in_use):
            raise CompatibilityError(
                f"{missing.own_label} has no rows in use in {missing.own.tensor.location} to take a mean of: choose "
                "the rule zero."
            )

    def fit(self, missing: Missing) -> RowFit:
        """The mean row, once for all."""
        self.check(missing)
        row = _rounded(mean_row(missing.own, missing.in_use), missing.own)
        rows = ConstantRow(row, missing.count, (missing.own,))
        return RowFit(rows, {"rows": float(len(missing.in_use))})


@dataclass(frozen=True, slots=True)
class Subtokens:
    """The own rows of the pieces that the own tokenizer cuts a token into, put together.

    variant: `mean`; `sum`; `weighted_mean`, with weights 1, 2, ..., n / (n (n + 1) / 2) that are largest at the end
    for embeddings, whose last piece is what the next layer sees, and at the beginning for heads, which have to
    start the token (mergekit's code weighs them the other way round, against its comment and its `first_last`);
    `first_last`, the extreme of that: the last piece's row for embeddings, the first's for heads. A token without
    pieces gets the mean of the rows in use.
    """

    variant: str = "mean"
    name: ClassVar[str] = "subtokens"
    needs_donor: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.variant not in SUBTOKEN_VARIANTS:
            raise RecipeError(
                f"subtokens has no variant {self.variant!r}: use one of {', '.join(SUBTOKEN_VARIANTS)}."
            )

    def check(self, missing: Missing) -> None:
        """Raise UsageError without pieces, and what `mean` raises where it is needed."""
        if missing.pieces is None:
            raise UsageError(f"the pieces of tokens missing in {missing.own_label} are not given.")
        if not missing.pieces.lengths.all():
            Mean().check(missing)

    def fit(self, missing: Missing) -> RowFit:
        """Combinations of the table's rows."""
        self.check(missing)
        pieces = missing.pieces
        assert pieces is not None
        empty = pieces.lengths == 0
        starts, rows, coefficients = self._terms(pieces, missing.is_head)
        default = None
        if empty.any():
            default = _rounded(mean_row(missing.own, missing.in_use), missing.own)
        combined = CombinedRows((missing.own,), starts, rows, coefficients, default=default)
        return RowFit(combined, {"without pieces": float(empty.sum())})

    def _terms(self, pieces: Pieces, is_head: bool) -> tuple[Index, Index, np.ndarray[Any, Any]]:
        lengths = pieces.lengths
        owners = np.repeat(np.arange(len(pieces)), lengths)
        ordinals = np.arange(len(pieces.rows)) - pieces.starts[owners]
        n = lengths[owners].astype(np.float64)
        if self.variant == "first_last":
            chosen = ordinals == (0 if is_head else lengths[owners] - 1)
            starts = np.append(0, np.cumsum(lengths > 0))
            return starts, pieces.rows[chosen], np.ones(int(chosen.sum()))
        if self.variant == "weighted_mean":
            rank = n - ordinals if is_head else ordinals + 1.0
            return pieces.starts, pieces.rows, rank / (n * (n + 1) / 2)
        weights = np.ones(len(n)) if self.variant == "sum" else 1 / n
        return pieces.starts, pieces.rows, weights


@dataclass(frozen=True, slots=True)
class Omp:
    """Orthogonal matching pursuit: the donor's row as a combination of at most `k` of its rows of shared tokens, the
    coefficients applied to the own rows of the same tokens.

    tolerance: a token is done when the residual is that small beside the row.
    """

    k: int = 64
    tolerance: float = 1e-6
    name: ClassVar[str] = "omp"
    needs_donor: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.k < 1:
            raise RecipeError(f"omp: k = {self.k} atoms make no combination: use at least 1.")

    def check(self, missing: Missing) -> None:
        """Raise CompatibilityError where no token is shared."""
        missing.shared()

    def fit(self, missing: Missing) -> RowFit:
        """Pursue every missing token; see `pursuit.pursue` for memory and time."""
        donor, shared_own, shared_donor, wanted = missing.shared()
        found = pursue(donor, shared_donor, wanted, self.k, self.tolerance)
        rows = CombinedRows(
            (missing.own,), found.starts, shared_own[found.atoms], found.coefficients
        )
        count = max(missing.count, 1)
        facts = {
            "shared tokens": float(len(shared_own)),
            "atoms per token": len(found.atoms) / count,
            "residual": float(found.residuals.mean()) if len(wanted) else 0.0,
        }
        return RowFit(rows, facts)


@dataclass(frozen=True, slots=True)
class LeastSquares:
    """The linear map from donor rows to own rows that fits the shared tokens best, in the sense of least squares.

    ridge: added to the spectrum of the donor's rows, as a share of its mean, so that directions in which they hardly
    vary are not amplified; 0 gives the pseudo-inverse. intercept: rows are taken relative to the means of both sides.
    """

    ridge: float = 1e-3
    intercept: bool = True
    name: ClassVar[str] = "least_squares"
    needs_donor: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.ridge < float("inf"):
            raise RecipeError(
                f"least_squares: a ridge of {self.ridge} has no meaning: use 0 or more."
            )

    def check(self, missing: Missing) -> None:
        """Raise CompatibilityError where no token is shared."""
        missing.shared()

    def fit(self, missing: Missing) -> RowFit:
        """Fit the map; see `maps` for memory and time."""
        donor, shared_own, shared_donor, wanted = missing.shared()
        fitted = fit_least_squares(
            donor, shared_donor, missing.own, shared_own, self.ridge, self.intercept
        )
        facts = {"shared tokens": float(len(shared_own)), "rank": float(fitted.rank)}
        return RowFit(Mapped(donor, wanted, fitted, missing.own), facts)


@dataclass(frozen=True, slots=True)
class Procrustes:
    """The rotation that brings donor rows closest to own rows of shared tokens; a partial isometry where widths differ.

    centre: rows are taken relative to the means of both sides. scale: times the factor that fits best.
    """

    centre: bool = True
    scale: bool = True
    name: ClassVar[str] = "procrustes"
    needs_donor: ClassVar[bool] = True

    def check(self, missing: Missing) -> None:
        """Raise CompatibilityError where no token is shared."""
        missing.shared()

    def fit(self, missing: Missing) -> RowFit:
        """Fit the rotation; see `maps` for memory and time."""
        donor, shared_own, shared_donor, wanted = missing.shared()
        fitted = fit_procrustes(
            donor, shared_donor, missing.own, shared_own, self.centre, self.scale
        )
        facts = {"shared tokens": float(len(shared_own)), "rank": float(fitted.rank)}
        return RowFit(Mapped(donor, wanted, fitted, missing.own), facts)


RULES: Mapping[str, type[MissingRule]] = {
    rule.name: rule for rule in (Zero, Mean, Subtokens, Omp, LeastSquares, Procrustes)
}


def rule_named(name: str, parameters: Mapping[str, Any] | None = None) -> MissingRule:
    """The rule of that name with those parameters; RecipeError for a name, parameter or value that it does not know."""
    found = RULES.get(name)
    if found is None:
        raise RecipeError(
            f"there is no rule {name!r} for missing rows: use one of {', '.join(RULES)}."
        )
    given = dict(parameters or {})
    known = {field.name: field for field in dataclasses.fields(found)}  # type: ignore[arg-type]
    for key, value in given.items():
        if key not in known:
            listed = ", ".join(known) or "none"
            raise RecipeError(f"the rule {name} has no parameter {key!r} (it has: {listed}).")
        given[key] = _typed(name, key, value, str(known[key].type))
    return found(**given)


def _typed(rule: str, key: str, value: Any, wanted: str) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if wanted == "float" and is_number:
        return float(value)
    fits = {"int": is_number and isinstance(value, int), "bool": isinstance(value, bool)}
    if not fits.get(wanted, isinstance(value, str) if wanted == "str" else False):
        raise RecipeError(f"{rule}: {key} = {literal(value)} is no {wanted}.")
    return value


def _rounded(row: np.ndarray[Any, Any], table: TokenTable) -> np.ndarray[Any, Any]:
    return row if table.dtype is DType.FLOAT64 else row.astype(np.float32)


class FittedRows:
    """The rows of missing tokens by a rule: a `Filling` that is fitted when it is first read, once, or by `prepare`.

    The identity is that of the rule and its inputs, so a plan knows it without reading weights. Raises what
    `rule.check` raises.
    """

    def __init__(self, rule: MissingRule, missing: Missing) -> None:
        rule.check(missing)
        self.rule = rule
        self.missing = missing
        self._lock = threading.Lock()
        self._fit: RowFit | None = None

    def __reduce__(self) -> tuple[type[FittedRows], tuple[MissingRule, Missing]]:
        """Another process fits for itself, to the same bits."""
        return FittedRows, (self.rule, self.missing)

    @property
    def count(self) -> int:
        """Number of missing tokens."""
        return self.missing.count

    @property
    def width(self) -> int:
        """Elements of a row."""
        return self.missing.own.width

    @property
    def dtype(self) -> DType:
        """The table's own for zeros; else float32, or float64 for tables of float64."""
        own = self.missing.own
        return own.dtype if isinstance(self.rule, Zero) else own.wide_dtype

    @property
    def tables(self) -> tuple[TokenTable, ...]:
        """The tables that a fit and the rows read."""
        if isinstance(self.rule, Zero):
            return ()
        donor = self.missing.donor
        return (self.missing.own, donor) if self.rule.needs_donor and donor else (self.missing.own,)

    @property
    def identity(self) -> Identity:
        """Rule, parameters and inputs."""
        parameters = tuple(
            (field.name, getattr(self.rule, field.name))
            for field in dataclasses.fields(self.rule)  # type: ignore[arg-type]
        )
        return ("rule 1", self.rule.name, parameters, self.missing.identity)

    @property
    def fit_bytes(self) -> int:
        """Memory that the fit takes while it is made, about."""
        donor, shared = self.missing.donor, self.missing.shared_own
        if donor is None or shared is None:
            return 0
        if isinstance(self.rule, Omp):
            return pursuit_bytes(len(shared), donor.width, self.rule.k)
        return fitting_bytes(donor.width, self.width)

    @property
    def kept_bytes(self) -> int:
        """Memory that the fit takes from then on: coefficients of combinations, or a matrix."""
        donor = self.missing.donor
        if donor is None:
            return 0
        if isinstance(self.rule, Omp):
            return 16 * min(self.rule.k, donor.width) * self.count
        return 8 * donor.width * self.width

    def prepare(self) -> None:
        """Fit, if it is not done yet; other threads wait for it."""
        self.fitted()

    def fitted(self) -> RowFit:
        """The rows and facts of the fit."""
        with self._lock:
            if self._fit is None:
                self._fit = self.rule.fit(self.missing)
            return self._fit

    def read(self, which: Index) -> Words:
        """The rows; raises NonFiniteError where a row that they depend on is not finite."""
        return self.fitted().rows.read(which)
