"""Reports by what they are about: a recipe or checkpoints, a finished merge, evaluations, a comparison, a league."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsmith.adapters import open_model
from weightsmith.checkpoints import Checkpoint, open_checkpoint
from weightsmith.engine import Manifest, Plan, make_plan
from weightsmith.engine import manifest as manifests
from weightsmith.errors import UsageError
from weightsmith.inspection import CheckpointDifference
from weightsmith.recipes import Recipe, is_recipe_file
from weightsmith.reports.change_sections import change_sections
from weightsmith.reports.difference_sections import difference_sections
from weightsmith.reports.evaluation_sections import (
    Named,
    evaluation_sections,
    named,
    names_of,
)
from weightsmith.reports.learning_sections import learning_sections
from weightsmith.reports.merge_sections import manifest_sections, plan_sections
from weightsmith.reports.page import PageSection, Report

if TYPE_CHECKING:
    from weightsmith.comparison import Comparison
    from weightsmith.evaluation import Evaluation


def report_of_subjects(
    subjects: Sequence[str],
    *,
    base: str | None = None,
    evaluations: Sequence[Named] = (),
    league: Mapping[str, Any] | None = None,
    learning: Mapping[str, Any] | None = None,
    threads: int | None = None,
) -> Report:
    """A report of one recipe, or of checkpoints, with evaluations, a league and how it was learned beside them.

    `base` is what changes are measured from (default: the recipe's, else the first checkpoint). Raises UsageError where
    there is nothing to report, or a recipe among checkpoints.
    """
    recipes = [subject for subject in subjects if is_recipe_file(subject)]
    if recipes and len(subjects) > 1:
        raise UsageError(
            f"A report is of one recipe or of checkpoints, but {recipes[0]!r} is given with others; give it alone."
        )
    if not (subjects or evaluations or league or learning):
        raise UsageError(
            "There is nothing to report: give a recipe, checkpoints, --evaluation, --learning or --league."
        )
    sections: list[PageSection] = []
    if recipes:
        sections += _of_recipe(Path(recipes[0]), base, threads)
    elif subjects:
        sections += _of_checkpoints(subjects, base, threads)
    if learning is not None:
        sections += learning_sections(learning)
    sections += evaluation_sections(evaluations)
    if league is not None:
        from weightsmith.reports.league_sections import league_sections

        sections += league_sections(league)
    title = ", ".join(names_of(subjects)) or (
        ", ".join(dict.fromkeys(row.evaluation.suite for row in evaluations))
        or ("Learning" if learning else "League")
    )
    return _report(title, sections)


def report_of_merge(plan: Plan, manifest: Manifest, out: Path) -> Report:
    """A report of a finished merge: its plan, what is on record, and what it changed. Reads inputs and output."""
    if not plan.output.merges_models:
        record = manifest_sections(manifest, out, with_recipe=False)
        return _report(out.name, [*plan_sections(plan), *record])
    base, experts, has_base = _parts(plan, None)
    is_there = manifests.digest_of(out) is not None and not plan.output.no_model
    merged = open_checkpoint(out) if is_there else None
    changes = (
        change_sections(base, experts, merged=merged, has_base=has_base, threads=plan.threads)
        if experts
        else []
    )
    record = manifest_sections(manifest, out, with_recipe=False)
    return _report(out.name, [*plan_sections(plan), *record, *changes])


def report_of_difference(found: CheckpointDifference) -> Report:
    """A report of two checkpoints' difference."""
    a, b = names_of([found.a, found.b])
    return _report(f"{a} and {b}", difference_sections(found))


def report_of_evaluation(evaluation: Evaluation) -> Report:
    """A report of one evaluation."""
    rows = named([("", evaluation)])
    return _report(rows[0].name, evaluation_sections(rows))


def report_of_comparison(comparison: Comparison) -> Report:
    """A report of a comparison of two versions."""
    from weightsmith.reports.comparison_sections import comparison_sections

    old, new = names_of([comparison.old, comparison.new])
    return _report(f"{new} against {old}", comparison_sections(comparison))


def report_of_league(league: Mapping[str, Any]) -> Report:
    """A report of a league or a scaling study, given as its JSON has it."""
    from weightsmith.reports.league_sections import league_sections
    from weightsmith.reports.scaling_sections import is_scaling

    sections = league_sections(league)
    if is_scaling(league):
        return _report("Scaling study", sections)
    return _report(f"League on {league['family']}", sections)


def _report(title: str, sections: Sequence[PageSection]) -> Report:
    from weightsmith.version import __version__

    return Report(title, f"Report by weightsmith {__version__}", tuple(sections))


def _of_recipe(recipe: Path, base: str | None, threads: int | None) -> list[PageSection]:
    plan = make_plan(Recipe.load(recipe), threads=threads)
    sections = plan_sections(plan)
    if plan.errors or not plan.output.merges_models:
        return sections
    origin, experts, has_base = _parts(plan, base)
    if not experts:
        return sections
    return [*sections, *change_sections(origin, experts, has_base=has_base, threads=threads)]


def _parts(plan: Plan, base: str | None) -> tuple[Checkpoint, list[Checkpoint], bool]:
    """What changes are measured from, what changed it, and whether the first is a base or only stands for one."""
    resolved = plan.resolved
    others = [
        checkpoint
        for label, checkpoint in resolved.checkpoints.items()
        if label != resolved.base and label not in resolved.statistics
    ]
    if base is not None:
        return open_model(base), others, True
    if resolved.base is not None:
        return resolved.checkpoints[resolved.base], others, True
    return others[0], others[1:], False


def _of_checkpoints(
    subjects: Sequence[str], base: str | None, threads: int | None
) -> list[PageSection]:
    opened = [open_model(subject) for subject in subjects]
    sections: list[PageSection] = []
    for checkpoint in opened:
        if checkpoint.is_folder and manifests.digest_of(checkpoint.path) is not None:
            manifest = manifests.read(checkpoint.path)
            sections += manifest_sections(manifest, checkpoint.path, with_recipe=True)
    origin = opened[0] if base is None else open_model(base)
    experts = opened[1:] if base is None else opened
    if experts:
        has_base = base is not None
        sections += change_sections(origin, experts, has_base=has_base, threads=threads)
    if not sections:
        raise UsageError(
            f"There is nothing to compare {subjects[0]!r} with; give another checkpoint or --base."
        )
    return sections
