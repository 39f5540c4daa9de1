"""Scores of checkpoints and recipes on the tasks of a suite, item by item, with intervals, kept by digest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.evaluation.intervals import COVERAGE as COVERAGE
    from weightsmith.evaluation.intervals import RESAMPLES as RESAMPLES
    from weightsmith.evaluation.intervals import resampled as resampled
    from weightsmith.evaluation.metrics import METRICS_OF as METRICS_OF
    from weightsmith.evaluation.metrics import Floats as Floats
    from weightsmith.evaluation.saved import read_saved as read_saved
    from weightsmith.evaluation.scores import Evaluation as Evaluation
    from weightsmith.evaluation.scores import ItemScores as ItemScores
    from weightsmith.evaluation.scores import TaskScore as TaskScore
    from weightsmith.evaluation.scoring import evaluate as evaluate
    from weightsmith.evaluation.subjects import open_subject as open_subject
    from weightsmith.evaluation.suite import Suite as Suite
    from weightsmith.evaluation.suite import load_suite as load_suite
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "COVERAGE": "weightsmith.evaluation.intervals",
            "Evaluation": "weightsmith.evaluation.scores",
            "Floats": "weightsmith.evaluation.metrics",
            "ItemScores": "weightsmith.evaluation.scores",
            "METRICS_OF": "weightsmith.evaluation.metrics",
            "RESAMPLES": "weightsmith.evaluation.intervals",
            "Suite": "weightsmith.evaluation.suite",
            "TaskScore": "weightsmith.evaluation.scores",
            "evaluate": "weightsmith.evaluation.scoring",
            "load_suite": "weightsmith.evaluation.suite",
            "open_subject": "weightsmith.evaluation.subjects",
            "read_saved": "weightsmith.evaluation.saved",
            "resampled": "weightsmith.evaluation.intervals",
        },
    )
