"""Looking at checkpoints, plans and methods, and measuring how checkpoints differ, as a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.doors import door

if TYPE_CHECKING:
    from weightsmith.inspection.checkpoint_difference import (
        CheckpointDifference as CheckpointDifference,
    )
    from weightsmith.inspection.checkpoint_difference import Mismatch as Mismatch
    from weightsmith.inspection.checkpoint_difference import (
        compare_checkpoints as compare_checkpoints,
    )
    from weightsmith.inspection.checkpoint_summary import CheckpointSummary as CheckpointSummary
    from weightsmith.inspection.checkpoint_summary import (
        summarize_checkpoint as summarize_checkpoint,
    )
    from weightsmith.inspection.explanation import Explanation as Explanation
    from weightsmith.inspection.explanation import explain_tensor as explain_tensor
    from weightsmith.inspection.interference import Changes as Changes
    from weightsmith.inspection.interference import Interference as Interference
    from weightsmith.inspection.interference import Place as Place
    from weightsmith.inspection.interference import measure_interference as measure_interference
    from weightsmith.inspection.interference import place_order as place_order
    from weightsmith.inspection.layer_boundaries import BoundaryMeasures as BoundaryMeasures
    from weightsmith.inspection.layer_boundaries import BoundaryReport as BoundaryReport
    from weightsmith.inspection.layer_boundaries import LayerChange as LayerChange
    from weightsmith.inspection.layer_boundaries import (
        boundaries_of_checkpoint as boundaries_of_checkpoint,
    )
    from weightsmith.inspection.layer_boundaries import boundaries_of_plan as boundaries_of_plan
    from weightsmith.inspection.measures import Measures as Measures
    from weightsmith.inspection.method_facts import facts_of as facts_of
    from weightsmith.inspection.method_facts import facts_of_modifier as facts_of_modifier
    from weightsmith.inspection.method_guide import Question as Question
    from weightsmith.inspection.method_guide import question_of as question_of
    from weightsmith.inspection.method_guide import questions as questions
    from weightsmith.inspection.plan_summary import PlanSummary as PlanSummary
    from weightsmith.inspection.plan_summary import summarize_plan as summarize_plan
    from weightsmith.inspection.subspaces import RANK as RANK
    from weightsmith.inspection.subspaces import MatrixOverlap as MatrixOverlap
    from weightsmith.inspection.subspaces import measure_overlaps as measure_overlaps
    from weightsmith.inspection.vocabulary_summary import MeasuredRule as MeasuredRule
    from weightsmith.inspection.vocabulary_summary import VocabularySummary as VocabularySummary
else:
    __getattr__, __dir__, __all__ = door(
        __name__,
        {
            "Changes": "weightsmith.inspection.interference",
            "CheckpointDifference": "weightsmith.inspection.checkpoint_difference",
            "CheckpointSummary": "weightsmith.inspection.checkpoint_summary",
            "Explanation": "weightsmith.inspection.explanation",
            "Interference": "weightsmith.inspection.interference",
            "LayerChange": "weightsmith.inspection.layer_boundaries",
            "MatrixOverlap": "weightsmith.inspection.subspaces",
            "MeasuredRule": "weightsmith.inspection.vocabulary_summary",
            "Measures": "weightsmith.inspection.measures",
            "Mismatch": "weightsmith.inspection.checkpoint_difference",
            "Place": "weightsmith.inspection.interference",
            "PlanSummary": "weightsmith.inspection.plan_summary",
            "Question": "weightsmith.inspection.method_guide",
            "RANK": "weightsmith.inspection.subspaces",
            "BoundaryMeasures": "weightsmith.inspection.layer_boundaries",
            "BoundaryReport": "weightsmith.inspection.layer_boundaries",
            "VocabularySummary": "weightsmith.inspection.vocabulary_summary",
            "compare_checkpoints": "weightsmith.inspection.checkpoint_difference",
            "explain_tensor": "weightsmith.inspection.explanation",
            "facts_of": "weightsmith.inspection.method_facts",
            "facts_of_modifier": "weightsmith.inspection.method_facts",
            "measure_interference": "weightsmith.inspection.interference",
            "measure_overlaps": "weightsmith.inspection.subspaces",
            "place_order": "weightsmith.inspection.interference",
            "question_of": "weightsmith.inspection.method_guide",
            "questions": "weightsmith.inspection.method_guide",
            "boundaries_of_checkpoint": "weightsmith.inspection.layer_boundaries",
            "boundaries_of_plan": "weightsmith.inspection.layer_boundaries",
            "summarize_checkpoint": "weightsmith.inspection.checkpoint_summary",
            "summarize_plan": "weightsmith.inspection.plan_summary",
        },
    )
