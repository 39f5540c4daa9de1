"""How well a rule makes rows: its error on tokens that the checkpoint does have, held out of the fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from weightsmith.vocabularies.missing import Missing, MissingRule
from weightsmith.vocabularies.rules import FittedRows, Mean, Subtokens, Zero
from weightsmith.vocabularies.token_tables import Index, as_index

LARGEST_SAMPLE = 1000
SHARE = 0.1
_AT_A_TIME = 128


@dataclass(frozen=True, slots=True)
class Errors:
    """Of held-out rows x and the rows x' that were made for them: mean and median of |x' - x| / |x|, and mean cosine.

    The cosine of a row of zeros is 0.
    """

    mean: float
    median: float
    cosine: float


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The errors of a rule on `count` held-out tokens, fitted on `fitted_on` others, beside those of zero and mean.

    `facts` are those of the fit. Where no token is missing nothing is made: count 0 and errors of 0.
    """

    rule: str
    count: int
    fitted_on: int
    errors: Errors
    references: Mapping[str, Errors] = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)


def held_out_error(
    rule: MissingRule,
    missing: Missing,
    *,
    largest: int = LARGEST_SAMPLE,
    share: float = SHARE,
    seed: int = 0,
) -> HeldOut | None:
    """Fit `rule` without a sample of the tokens whose own rows are known, make their rows, and compare.

    The sample is `share` of those tokens, at most `largest` of them, chosen by a hash of `seed` and own row: the same
    for all rules. All other tokens are fitted on. Known tokens are the shared ones, or the rows in use where there is
    no donor. Own rows of zeros are left out, having no relative error. For `subtokens` the pieces of shared tokens must
    be given. None where nothing can be measured: fewer than two known tokens, or no pieces.

    Costs a fit and the rows of the sample. Raises NonFiniteError and what `rule.check` raises.
    """
    if not missing.count:
        return HeldOut(rule.name, 0, 0, Errors(0.0, 0.0, 1.0))
    known = missing.in_use if missing.shared_own is None else missing.shared_own
    sample = _sample(rule, missing, known, largest, share, seed)
    if sample is None or not len(sample):
        return None
    trial = _without(missing, known, sample)
    if not len(trial.in_use) or (rule.needs_donor and not len(trial.shared()[1])):
        return None
    made = FittedRows(rule, trial)
    references = {
        other.name: _compare(FittedRows(other, trial), known[sample]) for other in (Zero(), Mean())
    }
    errors = _compare(made, known[sample])
    fitted_on = len(trial.in_use if trial.shared_own is None else trial.shared_own)
    return HeldOut(rule.name, len(sample), fitted_on, errors, references, made.fitted().facts)


def _sample(
    rule: MissingRule, missing: Missing, known: Index, largest: int, share: float, seed: int
) -> Index | None:
    """Positions in `known`, ascending; None for a rule that cannot be measured."""
    usable = np.ones(len(known), bool)
    if isinstance(rule, Subtokens):
        if missing.shared_pieces is None:
            return None
        usable &= missing.shared_pieces.lengths > 0
    ranked = np.lexsort((known, _hashes(known, seed)))
    ranked = ranked[usable[ranked]]
    # One place for each own row, so that the sample means what its size says.
    _, first = np.unique(known[ranked], return_index=True)
    ranked = ranked[np.sort(first)]
    if len(ranked) < 2:
        return None
    sample = np.sort(ranked[: min(largest, max(1, int(share * len(ranked))))])
    lengths = [
        np.square(block, dtype=np.float64).sum(axis=1)
        for _, block in missing.own.blocks(known[sample])
    ]
    return as_index(sample[np.concatenate(lengths) > 0])


def _hashes(rows: Index, seed: int) -> NDArray[np.uint64]:
    """A well-mixed 64-bit number for each row (the finaliser of splitmix64)."""
    mixed: NDArray[np.uint64] = rows.astype(np.uint64) + np.uint64(
        (seed * 0x9E3779B97F4A7C15 + 1) % 2**64
    )
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _without(missing: Missing, known: Index, sample: Index) -> Missing:
    """The same with the sample as the missing tokens, and nothing of it left among the known."""
    used = missing.in_use[~np.isin(missing.in_use, known[sample])]
    trial = replace(missing, count=len(sample), used=used, wanted=None, pieces=None)
    if missing.shared_pieces is not None:
        pieces = missing.shared_pieces.take(sample)
        trial = replace(trial, pieces=pieces, shared_pieces=None)
    if missing.shared_own is None:
        return trial
    rest = ~np.isin(missing.shared_own, known[sample])
    if missing.shared_donor is None:
        return replace(trial, shared_own=missing.shared_own[rest])
    wanted = missing.shared_donor[sample]
    rest &= ~np.isin(missing.shared_donor, wanted)
    return replace(
        trial,
        wanted=wanted,
        shared_own=missing.shared_own[rest],
        shared_donor=missing.shared_donor[rest],
    )


def _compare(made: FittedRows, own_rows: Index) -> Errors:
    errors, cosines = np.empty(len(own_rows)), np.empty(len(own_rows))
    table = made.missing.own
    for start in range(0, len(own_rows), _AT_A_TIME):
        part = slice(start, start + _AT_A_TIME)
        truth = table.numbers(own_rows[part]).astype(np.float64)
        guess = _numbers(made, np.arange(start, start + len(truth)))
        lengths = np.linalg.norm(truth, axis=1)
        errors[part] = np.linalg.norm(guess - truth, axis=1) / lengths
        products = np.linalg.norm(guess, axis=1) * lengths
        cosines[part] = np.einsum("nd,nd->n", guess, truth) / np.where(products > 0, products, 1)
    return Errors(float(errors.mean()), float(np.median(errors)), float(cosines.mean()))


def _numbers(made: FittedRows, which: Index) -> NDArray[np.float64]:
    if isinstance(made.rule, Zero):
        return np.zeros((len(which), made.width))
    return made.read(which).view(f"<f{made.dtype.itemsize}").astype(np.float64)
