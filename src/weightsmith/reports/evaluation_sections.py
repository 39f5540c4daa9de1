"""What a report shows of evaluations: scores with intervals, and what one task costs another."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from weightsmith.evaluation import Evaluation, read_saved
from weightsmith.reports.figures import IntervalBar, Point, estimates, plane
from weightsmith.reports.page import DataTable, PageSection, Picture
from weightsmith.reports.report_text import interval, score

_MOST_SERIES = 6
_TRADED_TASKS = 4
_LEAGUE_TITLE = re.compile(r"(?P<path>\S+) \((?:.*, )?[\w.]+=(?P<at>[-+.\de]+)\)")
_ON_SPLIT = re.compile(r" on \S+$")
_NUMBERED = re.compile(r"(?P<path>.*?)[-_=]?(?P<at>\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Named:
    """An evaluation by the name that a report gives it; `at` is its place on a `path`, if it is on one."""

    name: str
    evaluation: Evaluation
    path: str = ""
    at: float = 0.0


def read_evaluations(files: Sequence[Path]) -> tuple[Named, ...]:
    """Evaluations from what `evaluate --json` wrote, or from the entries of a league, which have titles.

    Subjects that differ only in a number at the end (`ties-0.3`, `ties-0.5`) are a path, in the order of the numbers.
    Raises UsageError for other files.
    """
    found = []
    for file in files:
        content = read_saved(file, "evaluate")
        title = ""
        if "evaluation" in content:
            # The suite tells the split.
            title = _ON_SPLIT.sub("", str(content.get("title", "")))
            content = content["evaluation"]
        found.append((title, Evaluation.from_mapping(content)))
    return named(found)


def named(found: Sequence[tuple[str, Evaluation]]) -> tuple[Named, ...]:
    """Evaluations with names: their titles, or else the last part of their subjects where that tells them apart."""
    short = names_of([evaluation.subject for _, evaluation in found])
    rows = [
        _placed(title or name, evaluation)
        for (title, evaluation), name in zip(found, short, strict=True)
    ]
    sizes = Counter((row.path, row.evaluation.suite) for row in rows)
    return tuple(
        row if sizes[row.path, row.evaluation.suite] > 1 else Named(row.name, row.evaluation)
        for row in rows
    )


def names_of(subjects: Sequence[str]) -> list[str]:
    """The last part of every path; whole paths where two are the same."""
    last = [PurePath(subject).name or subject for subject in subjects]
    return last if len(set(last)) == len(set(subjects)) else list(subjects)


def _placed(name: str, evaluation: Evaluation) -> Named:
    stem = PurePath(name).stem if name.endswith((".yaml", ".yml", ".json")) else name
    match = _LEAGUE_TITLE.fullmatch(name) or _NUMBERED.fullmatch(stem)
    if match is None or not match["path"]:
        return Named(name, evaluation)
    return Named(name, evaluation, match["path"], float(match["at"]))


def evaluation_sections(rows: Sequence[Named]) -> list[PageSection]:
    """For every suite the scores of its tasks, and with several evaluations the trade-off between tasks."""
    sections = []
    suites = list(dict.fromkeys(row.evaluation.suite for row in rows))
    for number, suite in enumerate(suites):
        own = [row for row in rows if row.evaluation.suite == suite]
        sections.append(_scores(own, suite, f"scores-{number}"))
        pictures = _trade_off(own, f"trade-{number}")
        if pictures:
            sections.append(PageSection(f"What one task costs another on {suite}", tuple(pictures)))
    return sections


def _scores(rows: Sequence[Named], suite: str, key: str) -> PageSection:
    if len(rows) > _MOST_SERIES:
        pictures = [
            _picture_of_task(rows, task, f"{key}-{i}") for i, task in enumerate(_tasks(rows))
        ]
    else:
        pictures = [_picture_of_metric(rows, m, f"{key}-{i}") for i, m in enumerate(_metrics(rows))]
    table = DataTable(
        "Scores with 95 % bootstrap intervals",
        ("task", "metric", "model", "score", "interval", "items"),
        tuple(
            (s.task, s.metric, row.name, score(s.value), interval(s.low, s.high), f"{s.items:,}")
            for task in _tasks(rows)
            for row in rows
            for s in row.evaluation.scores
            if s.task == task
        ),
        frozenset({3, 4, 5}),
    )
    return PageSection(f"Scores on {suite}", (*pictures, table))


def _tasks(rows: Sequence[Named]) -> list[str]:
    return list(dict.fromkeys(s.task for row in rows for s in row.evaluation.scores))


def _metrics(rows: Sequence[Named]) -> list[str]:
    return list(dict.fromkeys(s.metric for row in rows for s in row.evaluation.scores))


def _better(rows: Sequence[Named], metric: str) -> str:
    higher = next(
        s.higher_is_better for row in rows for s in row.evaluation.scores if s.metric == metric
    )
    return "higher is better" if higher else "lower is better"


def _picture_of_metric(rows: Sequence[Named], metric: str, key: str) -> Picture:
    bars = [
        IntervalBar(s.task, s.value, s.low, s.high, row.name if len(rows) > 1 else "")
        for task in _tasks(rows)
        for row in rows
        for s in row.evaluation.scores
        if s.task == task and s.metric == metric
    ]
    return Picture(
        key,
        f"Scores: {metric}",
        f"Every task with its 95 % interval; {_better(rows, metric)}. The numbers are in the table below.",
        estimates(bars, metric),
    )


def _picture_of_task(rows: Sequence[Named], task: str, key: str) -> Picture:
    scores = [(row.name, s) for row in rows for s in row.evaluation.scores if s.task == task]
    metric = scores[0][1].metric
    best_first = sorted(
        scores, key=lambda pair: pair[1].value, reverse=scores[0][1].higher_is_better
    )
    return Picture(
        key,
        f"Scores on {task}",
        f"Every model with its 95 % interval, the best first; {_better(rows, metric)}. "
        "The numbers are in the table below.",
        estimates([IntervalBar(name, s.value, s.low, s.high) for name, s in best_first], metric),
    )


def _trade_off(rows: Sequence[Named], key: str) -> list[Picture]:
    """The pairs of the first tasks, of those evaluations that have both."""
    pictures: list[Picture] = []
    for pair in itertools.combinations(_tasks(rows)[:_TRADED_TASKS], 2):
        own = [row for row in rows if set(pair) <= {s.task for s in row.evaluation.scores}]
        if len(own) > 1:
            pictures.append(_traded(own, *pair, f"{key}-{len(pictures)}"))
    return pictures


def _traded(rows: Sequence[Named], first: str, second: str, key: str) -> Picture:
    ordered = sorted(rows, key=lambda row: (row.path, row.at))
    points = []
    for row in ordered:
        a, b = row.evaluation.score(first), row.evaluation.score(second)
        points.append(
            Point(
                a.value,
                b.value,
                f"{row.at:g}" if row.path else row.name,
                row.path,
                row.path,
                (a.low, a.high),
                (b.low, b.high),
            )
        )
    of_first, of_second = rows[0].evaluation.score(first), rows[0].evaluation.score(second)
    joined = (
        " Lines join the models of one path; the numbers are their places on it, left out where they would overlap."
        if any(row.path for row in rows)
        else ""
    )
    return Picture(
        key,
        f"{first} against {second}",
        f"Every model by its scores on both tasks, with 95 % intervals.{joined}",
        plane(points, f"{first}: {of_first.metric}", f"{second}: {of_second.metric}"),
        DataTable(
            f"{first} and {second}",
            ("model", first, second),
            tuple(
                (
                    row.name,
                    score(row.evaluation.score(first).value),
                    score(row.evaluation.score(second).value),
                )
                for row in ordered
            ),
            frozenset({1, 2}),
        ),
    )
