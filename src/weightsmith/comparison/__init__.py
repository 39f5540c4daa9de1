"""Versions of a model compared the way users feel them, methods on families, diagnostics with what happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.comparison.diagnostics import diagnostics_of as diagnostics_of
    from weightsmith.comparison.family import Family as Family
    from weightsmith.comparison.family_opening import family_of_models as family_of_models
    from weightsmith.comparison.family_opening import open_family as open_family
    from weightsmith.comparison.gates import GateResult as GateResult
    from weightsmith.comparison.gates import check_gates as check_gates
    from weightsmith.comparison.gates import parse_gate as parse_gate
    from weightsmith.comparison.league_entries import written as written
    from weightsmith.comparison.ranking import INTERRUPTED as INTERRUPTED
    from weightsmith.comparison.ranking import League as League
    from weightsmith.comparison.ranking import default_folder as default_folder
    from weightsmith.comparison.ranking import league as league
    from weightsmith.comparison.ranking import run_league as run_league
    from weightsmith.comparison.resampling import Estimate as Estimate
    from weightsmith.comparison.scaling import Scaling as Scaling
    from weightsmith.comparison.scaling import run_scaling as run_scaling
    from weightsmith.comparison.skill import SkillReport as SkillReport
    from weightsmith.comparison.standings import LeagueRow as LeagueRow
    from weightsmith.comparison.validated import VALIDITY as VALIDITY
    from weightsmith.comparison.versions import Comparison as Comparison
    from weightsmith.comparison.versions import ScoreChange as ScoreChange
    from weightsmith.comparison.versions import TaskComparison as TaskComparison
    from weightsmith.comparison.versions import compare as compare
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "Comparison": "weightsmith.comparison.versions",
            "Estimate": "weightsmith.comparison.resampling",
            "Family": "weightsmith.comparison.family",
            "GateResult": "weightsmith.comparison.gates",
            "INTERRUPTED": "weightsmith.comparison.ranking",
            "League": "weightsmith.comparison.ranking",
            "LeagueRow": "weightsmith.comparison.standings",
            "Scaling": "weightsmith.comparison.scaling",
            "ScoreChange": "weightsmith.comparison.versions",
            "SkillReport": "weightsmith.comparison.skill",
            "TaskComparison": "weightsmith.comparison.versions",
            "VALIDITY": "weightsmith.comparison.validated",
            "check_gates": "weightsmith.comparison.gates",
            "compare": "weightsmith.comparison.versions",
            "default_folder": "weightsmith.comparison.ranking",
            "diagnostics_of": "weightsmith.comparison.diagnostics",
            "family_of_models": "weightsmith.comparison.family_opening",
            "league": "weightsmith.comparison.ranking",
            "open_family": "weightsmith.comparison.family_opening",
            "parse_gate": "weightsmith.comparison.gates",
            "run_league": "weightsmith.comparison.ranking",
            "run_scaling": "weightsmith.comparison.scaling",
            "written": "weightsmith.comparison.league_entries",
        },
    )
