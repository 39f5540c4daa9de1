"""Gates: the grammar, the figures, and what fails."""

from __future__ import annotations

import numpy as np
import pytest
from tests.comparison.conftest import bits, evaluation, right_and_wrong

from weightsmith.comparison.gates import check_gates, parse_gate
from weightsmith.comparison.versions import compare_evaluations
from weightsmith.errors import UsageError


def model(name, greek, cyrillic, text):
    return evaluation(
        name,
        right_and_wrong("greek", np.arange(100) < greek),
        right_and_wrong("cyrillic", np.arange(100) < cyrillic),
        bits("de", np.full(50, 10 * text), np.full(50, 10.0)),
    )


@pytest.fixture(scope="module")
def comparison():
    old, new = model("old", 80, 90, 2.0), model("new", 84, 80, 1.5)
    return compare_evaluations(
        old, new, parents=[model("greek", 90, 50, 3.0)], base=model("base", 40, 50, 4.0)
    )


def passes(comparison, text):
    return all(result.passed for result in check_gates(comparison, [parse_gate(text)]))


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("negative_flips<0.06", True),  # mean of 0 and 0.1
        ("negative_flips<0.04", False),
        ("negative_flips.cyrillic <= 10%", True),
        ("negative_flips.*<0.05", False),
        ("positive_flips.greek>=0.04", True),
        ("positive_flips.greek>0.04", False),
        ("accuracy.greek>=0.84", True),
        ("accuracy.greek>0.84", False),
        ("accuracy>.8", True),
        ("bits_per_byte<1.6", True),
        ("improvement.de>0.49", True),
        ("improvement.cyrillic>0", False),
        ("gain.de>=0.5", True),
        ("regression<1e-9", True),
        ("backward_trust.cyrillic>0.88", True),
        ("retained.greek>0.87", True),  # 44 / 50
        ("retained.greek>0.89", False),
        ("normalized_score.greek>0.93", True),  # 84 / 90
        ("normalized_score.greek>0.94", False),
    ],
)
def test_gates_hold_as_their_figures_say(comparison, text, holds):
    assert passes(comparison, text) is holds


@pytest.mark.parametrize("text", ["forgetting<1", "generalization>-1", "inconsistency<1"])
def test_a_figure_that_is_not_known_fails_its_gate_and_says_what_it_needs(comparison, text):
    (result,) = check_gates(comparison, [parse_gate(text)])
    assert not result.passed
    assert "is not known: it needs" in result.sentence


def test_a_star_gives_one_result_for_each_task_that_has_the_figure(comparison):
    results = check_gates(comparison, [parse_gate("accuracy.*>=0.82")])
    assert [(result.task, result.passed) for result in results] == [
        ("greek", True),
        ("cyrillic", False),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("negative_flips", "NAME"),
        ("negative_flips=0.1", "NAME"),
        ("negative_flips<", "NAME"),
        ("negative_flips<0.1 and x>1", "NAME"),
        ("negative_flips<nan", "NAME"),
        ("negative_flips<1e999", "finite"),
        ("<0.1", "NAME"),
        ("negative_flip<0.1", "did you mean 'negative_flips'"),
        ("acuracy.greek>0.1", "did you mean 'accuracy'"),
    ],
)
def test_a_malformed_gate_is_refused_with_what_is_wrong(text, said):
    with pytest.raises(UsageError, match=said):
        parse_gate(text)


def test_an_unknown_task_is_refused_with_the_nearest(comparison):
    with pytest.raises(UsageError, match="did you mean 'greek'"):
        check_gates(comparison, [parse_gate("accuracy.grek>0.1")])


def test_a_metric_that_no_task_has_is_refused(comparison):
    with pytest.raises(UsageError, match="scored by accuracy, bits_per_byte"):
        check_gates(comparison, [parse_gate("ndcg@10>0.1")])
