"""Scores of checkpoints and recipes on the tasks of a suite, item by item, with intervals, kept by digest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.evaluation.classification import Classifier as Classifier
    from weightsmith.evaluation.classification import classifier_of as classifier_of
    from weightsmith.evaluation.intervals import COVERAGE as COVERAGE
    from weightsmith.evaluation.intervals import RESAMPLES as RESAMPLES
    from weightsmith.evaluation.intervals import resampled as resampled
    from weightsmith.evaluation.items import LabelledInputs as LabelledInputs
    from weightsmith.evaluation.items import read_labelled as read_labelled
    from weightsmith.evaluation.items import read_lines as read_lines
    from weightsmith.evaluation.metrics import METRICS_OF as METRICS_OF
    from weightsmith.evaluation.metrics import Floats as Floats
    from weightsmith.evaluation.retrieval import Embedder as Embedder
    from weightsmith.evaluation.retrieval import embedder_of as embedder_of
    from weightsmith.evaluation.saved import read_saved as read_saved
    from weightsmith.evaluation.scores import Evaluation as Evaluation
    from weightsmith.evaluation.scores import ItemScores as ItemScores
    from weightsmith.evaluation.scores import TaskScore as TaskScore
    from weightsmith.evaluation.scoring import evaluate as evaluate
    from weightsmith.evaluation.subjects import open_subject as open_subject
    from weightsmith.evaluation.suite import Suite as Suite
    from weightsmith.evaluation.suite import Task as Task
    from weightsmith.evaluation.suite import load_suite as load_suite
    from weightsmith.evaluation.tokens import context_of as context_of
    from weightsmith.evaluation.tokens import tokens_of as tokens_of
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "Classifier": "weightsmith.evaluation.classification",
            "Embedder": "weightsmith.evaluation.retrieval",
            "LabelledInputs": "weightsmith.evaluation.items",
            "Task": "weightsmith.evaluation.suite",
            "classifier_of": "weightsmith.evaluation.classification",
            "context_of": "weightsmith.evaluation.tokens",
            "embedder_of": "weightsmith.evaluation.retrieval",
            "read_labelled": "weightsmith.evaluation.items",
            "read_lines": "weightsmith.evaluation.items",
            "tokens_of": "weightsmith.evaluation.tokens",
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
