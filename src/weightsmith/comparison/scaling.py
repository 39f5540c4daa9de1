"""The questions of "What matters for model merging at scale?": number of experts x size of the model x method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.adapters import open_model
from weightsmith.comparison.family import Family
from weightsmith.comparison.ranking import FINISHED, League, run_league
from weightsmith.comparison.resampling import Estimate, estimate_mapping
from weightsmith.comparison.standings import TUNED
from weightsmith.progress import Progress

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class ScalingRow:
    """A method with its tuned scale on the first `experts` experts of a family of models of `parameters` numbers."""

    method: str
    family: str
    parameters: int
    experts: int
    normalized: Estimate | None
    retained: Estimate | None
    unseen: Estimate | None

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "method": self.method,
            "family": self.family,
            "parameters": self.parameters,
            "experts": self.experts,
            "normalized": estimate_mapping(self.normalized),
            "retained": estimate_mapping(self.retained),
            "unseen": estimate_mapping(self.unseen),
        }


@dataclass(frozen=True, slots=True)
class Scaling:
    """A scaling study: its rows by method, family and number of experts, and the leagues that they come from."""

    rows: tuple[ScalingRow, ...]
    leagues: tuple[League, ...]
    ended: str

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "schema": SCHEMA,
            "ended": self.ended,
            "rows": [row.to_mapping() for row in self.rows],
            "leagues": [league.to_mapping() for league in self.leagues],
        }


def run_scaling(
    families: Sequence[Family],
    methods: Sequence[str],
    counts: Sequence[int],
    out: Path,
    *,
    split: str = "test",
    device: str = "cpu",
    progress: Progress | None = None,
) -> Scaling:
    """A league for every family and number of experts (the first ones in the family's order), as one table.

    A family with fewer experts than a count is left out there. Measurements are kept in `out`; costs are not measured.
    After Ctrl-C the table has the leagues that were reached.
    """
    leagues: list[League] = []
    rows: list[ScalingRow] = []
    for family in families:
        tensors = open_model(family.members[0].reference).tensors.values()
        parameters = sum(tensor.numel for tensor in tensors)
        for count in sorted(set(counts) or {len(family.models)}):
            if count > len(family.models):
                continue
            league = run_league(
                family.first(count),
                methods,
                out,
                split=split,
                device=device,
                with_cost=False,
                progress=progress,
            )
            leagues.append(league)
            rows += _rows(league, parameters)
            if league.ended != FINISHED:
                return Scaling(_ordered(rows), tuple(leagues), league.ended)
    return Scaling(_ordered(rows), tuple(leagues), FINISHED)


def _rows(league: League, parameters: int) -> list[ScalingRow]:
    return [
        ScalingRow(
            row.name,
            league.family,
            parameters,
            len(league.models),
            row.normalized,
            row.retained,
            row.unseen,
        )
        for row in league.rows
        if row.setting == TUNED
    ]


def _ordered(rows: Sequence[ScalingRow]) -> tuple[ScalingRow, ...]:
    return tuple(
        sorted(rows, key=lambda row: (row.method, row.parameters, row.family, row.experts))
    )
