"""The league table's figures and ranks from evaluations written by hand."""

from __future__ import annotations

import numpy as np
import pytest
from tests.comparison.conftest import evaluation, right_and_wrong

from weightsmith.comparison.resampling import Estimate
from weightsmith.comparison.standings import (
    DEFAULT,
    TUNED,
    Contestant,
    league_rows,
    mean_normalized,
)


def model(name, **shares):
    return evaluation(
        name,
        *(right_and_wrong(task, np.arange(500) < round(500 * s)) for task, s in shares.items()),
        groups={"general": "general"},
    )


BASE = model("base", fr=0.4, de=0.4, it=0.5, general=0.9)
EXPERTS = {
    "fr": model("experts/fr", fr=0.8),
    "de": model("experts/de", de=0.9),
}
GOOD = model("good", fr=0.76, de=0.81, it=0.6, general=0.8)
POOR = model("poor", fr=0.5, de=0.5, it=0.3, general=0.7)


@pytest.fixture(scope="module")
def rows():
    contestants = [
        Contestant("poor", TUNED, {}, POOR),
        Contestant("good", TUNED, {}, GOOD),
        Contestant("twin", TUNED, {}, GOOD),
        Contestant("poor", DEFAULT, {}, POOR),
    ]
    return {(row.name, row.setting): row for row in league_rows(BASE, EXPERTS, contestants)}


def test_figures_are_those_of_their_formulas(rows):
    good = rows["good", TUNED]
    assert good.mean.value == pytest.approx((0.76 + 0.81) / 2)
    assert good.normalized.value == pytest.approx((0.95 + 0.9) / 2)
    assert good.retained.value == pytest.approx((0.36 / 0.4 + 0.41 / 0.5) / 2)
    assert good.unseen.value == pytest.approx(0.1)
    assert good.general.value == pytest.approx(-0.1)


def test_the_experts_are_the_measure_and_the_base_has_no_skill(rows):
    assert rows["experts", "experts"].normalized == Estimate(1, 1, 1)
    assert rows["base", "base"].retained == Estimate(0, 0, 0)
    assert rows["base", "base"].rank is None


def test_ranks_are_within_a_setting_and_equals_share_their_places(rows):
    assert rows["good", TUNED].rank == rows["twin", TUNED].rank == Estimate(1.5, 1.5, 1.5)
    assert rows["poor", TUNED].rank == Estimate(3, 3, 3)
    assert rows["poor", DEFAULT].rank == Estimate(1, 1, 1)


def test_rows_come_by_rank_tuned_ones_first(rows):
    assert [name for name, _ in rows] == ["base", "experts", "good", "twin", "poor", "poor"]


def test_ranks_that_the_items_do_not_settle_have_wide_intervals(generator):
    contestants = [
        Contestant(
            name,
            TUNED,
            {},
            evaluation(
                name,
                *(right_and_wrong(task, generator.random(500) < 0.7) for task in ("fr", "de")),
            ),
        )
        for name in "abc"
    ]
    base = evaluation("base", *(BASE.items[task] for task in ("fr", "de")))
    ranked = [row.rank for row in league_rows(base, EXPERTS, contestants) if row.rank]
    assert all((rank.low, rank.high) == (1, 3) for rank in ranked)


def test_the_normalised_score_for_tuning_is_that_of_the_table(rows):
    found = mean_normalized(GOOD, EXPERTS)
    assert found == pytest.approx(rows["good", TUNED].normalized.value)
