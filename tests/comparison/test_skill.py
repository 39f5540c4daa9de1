"""Retained skill, normalised score, forgetting and generalisation against the numbers they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from tests.comparison.conftest import bits, evaluation, right_and_wrong

from weightsmith.comparison.resampling import Draws, Estimate
from weightsmith.comparison.skill import measure_skill
from weightsmith.errors import UsageError

GROUPS = {"general": "general", "unseen": "unseen"}


def subject(name, **accuracies):
    """A model right on the first items of every task, so that models are nested."""
    return evaluation(
        name,
        *(
            right_and_wrong(task, np.arange(1000) < round(1000 * share))
            for task, share in accuracies.items()
        ),
        groups=GROUPS,
    )


@pytest.fixture
def family():
    return {
        name: subject(f"family/{name}", **shares)
        for name, shares in {
            "base": {"fr": 0.4, "de": 0.5, "general": 0.8, "unseen": 0.30},
            "fr": {"fr": 0.8, "de": 0.45, "general": 0.6, "unseen": 0.31},
            "de": {"fr": 0.3, "de": 0.9, "general": 0.7, "unseen": 0.28},
            "new": {"fr": 0.7, "de": 0.8, "general": 0.75, "unseen": 0.36},
        }.items()
    }


def test_the_figures_are_those_of_their_formulas(family):
    report = measure_skill(family["new"], [family["de"], family["fr"]], family["base"])
    assert report.experts == {"fr": "family/fr", "de": "family/de"}
    assert report.of_expert("fr").retained.value == pytest.approx(0.3 / 0.4)
    assert report.of_expert("de").retained.value == pytest.approx(0.3 / 0.4)
    assert report.retained.value == pytest.approx(0.75)
    assert report.normalized_score.value == pytest.approx((0.7 / 0.8 + 0.8 / 0.9) / 2)
    assert report.forgetting.value == pytest.approx(0.05)
    assert report.generalization.value == pytest.approx(0.06)


def test_intervals_hold_their_values_and_are_no_points(family):
    report = measure_skill(family["new"], [family["fr"], family["de"]], family["base"])
    for estimate in (
        report.retained,
        report.normalized_score,
        report.forgetting,
        report.generalization,
    ):
        assert estimate.low < estimate.value < estimate.high


def test_a_parent_keeps_all_its_own_skill_and_the_base_none(family):
    parents = [family["fr"], family["de"]]
    own = measure_skill(family["fr"], parents, family["base"]).of_expert("fr")
    assert (own.retained.value, own.retained.high) == (1, 1)
    assert own.retained.low > 0.999
    assert own.normalized == Estimate(1, 1, 1)
    none = measure_skill(family["base"], parents, family["base"]).of_expert("fr")
    assert none.retained == Estimate(0, 0, 0)


def test_a_parent_that_is_no_better_than_the_base_has_no_skill_to_retain(family):
    report = measure_skill(family["new"], [family["fr"]], family["base"])
    foreign = next(s for s in report.skills if s.task == "de")
    assert foreign.gained.high < 0
    assert foreign.retained is None
    assert report.retained.value == pytest.approx(0.75)


def test_without_a_base_only_the_normalised_score_is_known(family):
    report = measure_skill(family["new"], [family["fr"], family["de"]], None)
    assert report.normalized_score is not None
    assert (report.retained, report.forgetting, report.generalization) == (None, None, None)


def test_an_expert_that_scores_zero_has_no_normalised_score():
    nothing, some = (subject(n, fr=share) for n, share in (("fr", 0.0), ("new", 0.5)))
    report = measure_skill(some, [nothing], None)
    assert report.normalized_score is None


def test_where_lower_is_better_ratios_are_turned_and_skill_is_not():
    lengths = np.full(300, 10.0)

    def text(name, level):
        noise = np.random.default_rng(1).normal(0, 0.05, 300)
        return evaluation(name, bits("de", (level + noise) * lengths, lengths))

    report = measure_skill(text("new", 2.5), [text("de", 2.0)], text("base", 4.0))
    skill = report.of_expert("de")
    assert skill.retained.value == pytest.approx(0.75)
    assert skill.normalized.value == pytest.approx(0.8, abs=0.001)


def test_the_expert_of_a_task_without_a_namesake_is_the_best_parent():
    one, two = (subject(n, it=share) for n, share in (("one", 0.5), ("two", 0.6)))
    report = measure_skill(one, [one, two], None)
    assert report.experts == {"it": "two"}


def test_items_in_another_order_are_paired_by_their_ids(generator):
    column = (generator.random(50) < 0.5).astype(float)
    items = right_and_wrong("t", column)
    order = generator.permutation(50)
    first, second = evaluation("a", items), evaluation("b", items.chosen(order))
    gain = Draws([first, second]).gain(first, second, "t")
    assert not gain.any()


def test_evaluations_of_other_items_are_refused():
    first = evaluation("a", right_and_wrong("t", [1, 0, 1]))
    second = evaluation("b", right_and_wrong("t", [1, 0]))
    with pytest.raises(UsageError, match="2 are the same"):
        Draws([first, second])


def test_evaluations_of_other_tasks_are_refused():
    first = evaluation("a", right_and_wrong("t", [1, 0, 1]))
    second = evaluation("b", right_and_wrong("u", [1, 0, 1]))
    with pytest.raises(UsageError, match="same tasks"):
        Draws([first, second])
