"""Subjects of one configuration are scored in one network, which is built once."""

from __future__ import annotations

import pytest

import weightsmith
from weightsmith.comparison.ranking import run_league
from weightsmith.live import KeptNetwork, live_model


@pytest.fixture
def built(monkeypatch):
    made = []
    describe = live_model.describe_network

    def counted(source, dtype):
        made.append(source.name)
        return describe(source, dtype)

    monkeypatch.setattr(live_model, "describe_network", counted)
    return made


def test_a_league_builds_its_network_once(small_family, tmp_path, built):
    run_league(small_family, ["task_arithmetic"], tmp_path, with_cost=False)
    assert len(built) == 1


def test_a_comparison_builds_its_network_once(small_family, built):
    folder = small_family.folder
    weightsmith.compare(
        folder / "experts/red",
        folder / "experts/green",
        folder / "suite.test.yaml",
        base=folder / "base",
        cache=False,
    )
    assert len(built) == 1


def test_scores_in_a_shared_network_are_those_of_one_of_its_own(small_family, built):
    folder, kept = small_family.folder, KeptNetwork()
    for name in ("red", "green", "red"):
        suite = folder / "suite.test.yaml"
        shared = weightsmith.evaluate(folder / "experts" / name, suite, cache=False, network=kept)
        alone = weightsmith.evaluate(folder / "experts" / name, suite, cache=False)
        assert shared.scores == alone.scores
        assert shared.digest == alone.digest
    assert len(built) == 4
