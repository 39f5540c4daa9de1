"""What a report shows of a comparison: differences with intervals, flips, and the skill that is kept."""

from __future__ import annotations

from collections.abc import Sequence

from weightsmith.comparison import Comparison, Estimate, ScoreChange, SkillReport, TaskComparison
from weightsmith.reports.evaluation_sections import names_of
from weightsmith.reports.figures import IntervalBar, estimates
from weightsmith.reports.page import Block, DataTable, Facts, PageSection, Paragraph, Picture
from weightsmith.reports.report_text import ABSENT, interval, number, score, share

_MOST_IDS = 12


def comparison_sections(found: Comparison) -> list[PageSection]:
    """Old against new, the same against every parent, and retained skill."""
    old, new = names_of([found.old, found.new])
    sections = [
        PageSection("Differences", _differences(found.tasks, old, new, "differences")),
        PageSection("Flips", _flips(found.tasks)),
        PageSection("Slices", _slices(found.tasks)),
    ]
    for position, parent in enumerate(found.parents):
        name = names_of([parent.subject, found.new])[0]
        blocks = _differences(parent.tasks, name, new, f"parent-{position}")
        sections.append(PageSection(f"Against parent {name}", blocks))
    if found.skill is not None:
        sections.append(PageSection("Skill", _skill(found.skill)))
    return sections


def _differences(
    tasks: Sequence[TaskComparison], old: str, new: str, key: str
) -> tuple[Block, ...]:
    pictures = []
    for position, metric in enumerate(dict.fromkeys(task.metric for task in tasks)):
        own = [task for task in tasks if task.metric == metric]
        higher = own[0].new.higher_is_better
        bars = [
            IntervalBar(
                t.task, t.change.difference.estimate.value, *_ends(t.change.difference.estimate)
            )
            for t in own
        ]
        sides = [
            IntervalBar(task.task, s.value, s.low, s.high, name)
            for task in own
            for name, s in ((f"old: {old}", task.old), (f"new: {new}", task.new))
        ]
        better = "higher is better" if higher else "lower is better"
        pictures += [
            Picture(
                f"{key}-{position}",
                f"Change of {metric}",
                f"New minus old on the same items with 95 % paired bootstrap intervals; {better}. "
                "An interval that crosses the dashed line at 0 does not tell the models apart.",
                estimates(bars, f"new - old, {metric}", reference=0.0),
            ),
            Picture(
                f"{key}-scores-{position}",
                f"Scores: {metric}",
                f"Both models on every task with their 95 % intervals; {better}.",
                estimates(sides, metric),
            ),
        ]
    table = DataTable(
        f"{new} against {old}; p is McNemar's (mid-p), or that of the paired bootstrap",
        ("task", "metric", "items", "old", "new", "difference", "interval", "p", "verdict"),
        tuple(_difference_row(task) for task in tasks),
        frozenset({2, 3, 4, 5, 6, 7}),
    )
    words = Paragraph(
        "p is McNemar's (mid-p) for metrics of right and wrong, that of the paired bootstrap for others."
    )
    return (*pictures, words, table)


def _ends(estimate: Estimate) -> tuple[float, float]:
    return estimate.low, estimate.high


def _difference_row(task: TaskComparison) -> tuple[str, ...]:
    difference = task.change.difference
    return (
        task.task,
        task.metric,
        f"{task.change.items:,}",
        score(task.old.value),
        score(task.new.value),
        score(difference.estimate.value),
        interval(*_ends(difference.estimate)),
        number(task.change.p_value, 2),
        difference.verdict,
    )


def _flips(tasks: Sequence[TaskComparison]) -> tuple[Block, ...]:
    blocks: list[Block] = []
    flipping = [(task.task, task.change) for task in tasks if task.change.flips is not None]
    if flipping:
        blocks += [
            Paragraph(
                "A negative flip is an item that the old model has right and the new one wrong. Trust is the share of "
                "what was right that still is."
            ),
            DataTable(
                "Flips between right and wrong",
                ("task", "items", "negative", "rate", "positive", "rate", "still right"),
                tuple(_flip_row(name, change) for name, change in flipping),
                frozenset(range(1, 7)),
            ),
        ]
        wrong = [(n, c.flips.negative) for n, c in flipping if c.flips and c.flips.negative]
        if wrong:
            blocks.append(
                DataTable(
                    "Items that became wrong",
                    ("task", "items"),
                    tuple((name, _listed(ids)) for name, ids in wrong),
                )
            )
    graded = [(task.task, task.change) for task in tasks if task.change.graded is not None]
    if graded:
        blocks.append(
            DataTable(
                "Items that became better and worse, of graded metrics",
                ("task", "items", "better", "worse", "gain", "regression"),
                tuple(_graded_row(name, change) for name, change in graded),
                frozenset(range(1, 6)),
            )
        )
    return tuple(blocks)


def _flip_row(name: str, change: ScoreChange) -> tuple[str, ...]:
    flips = change.flips
    assert flips is not None
    return (
        name,
        f"{flips.items:,}",
        f"{len(flips.negative):,}",
        share(flips.negative_rate),
        f"{len(flips.positive):,}",
        share(flips.positive_rate),
        share(flips.backward_trust),
    )


def _graded_row(name: str, change: ScoreChange) -> tuple[str, ...]:
    graded = change.graded
    assert graded is not None
    return (
        name,
        f"{graded.items:,}",
        share(graded.improved_rate),
        share(graded.regressed_rate),
        number(graded.gain),
        number(graded.regression),
    )


def _listed(ids: Sequence[str]) -> str:
    more = len(ids) - _MOST_IDS
    return ", ".join(ids[:_MOST_IDS]) + (f" and {more:,} more" if more > 0 else "")


def _slices(tasks: Sequence[TaskComparison]) -> tuple[Block, ...]:
    rows = tuple(
        (
            name,
            task.task,
            f"{change.items:,}",
            score(change.old),
            score(change.new),
            score(change.difference.estimate.value),
            interval(*_ends(change.difference.estimate)),
            ABSENT if change.flips is None else f"{len(change.flips.negative):,}",
        )
        for task in tasks
        for name, change in task.slices
    )
    if not rows:
        return ()
    columns = ("slice", "task", "items", "old", "new", "difference", "interval", "negative flips")
    return (DataTable("Change by slice", columns, rows, frozenset({2, 3, 4, 5, 6, 7})),)


def _skill(found: SkillReport) -> tuple[Block, ...]:
    pairs = (
        ("Retained skill, mean over own tasks", found.retained),
        ("Normalised score, mean over own tasks", found.normalized_score),
        ("Forgetting on general tasks", found.forgetting),
        ("Gain on unseen tasks", found.generalization),
    )
    parents = list(dict.fromkeys(s.parent for s in found.skills))
    names = dict(zip(parents, names_of(parents), strict=True))
    bars = [
        IntervalBar(s.task, s.retained.value, *_ends(s.retained), names[s.parent])
        for task in dict.fromkeys(s.task for s in found.skills)
        for s in found.skills
        if s.task == task and s.retained is not None
    ]
    blocks: list[Block] = [
        Paragraph(
            "Retained skill is (new - base) / (parent - base): 1 as good as the parent, 0 as the base. It is left out "
            "where the parent is not surely better than the base."
        ),
        Facts(tuple((name, _written(estimate)) for name, estimate in pairs if estimate)),
    ]
    if bars:
        blocks.append(
            Picture(
                "retained",
                "Retained skill",
                "What the new model keeps of each parent, by task, with 95 % intervals; the dashed line is the parent.",
                estimates(bars, "retained skill", reference=1.0),
            )
        )
    blocks.append(
        DataTable(
            "Skill by parent and task",
            ("task", "parent", "gained over the base", "retained", "normalised score"),
            tuple(
                (
                    s.task,
                    names[s.parent],
                    _written(s.gained),
                    _written(s.retained),
                    _written(s.normalized),
                )
                for s in found.skills
            ),
        )
    )
    return tuple(blocks)


def _written(estimate: Estimate | None) -> str:
    return ABSENT if estimate is None else f"{score(estimate.value)} ({interval(*_ends(estimate))})"
