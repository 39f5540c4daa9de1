"""A league on a family that is trained in the test: tuning, cache, interruption, budget."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import weightsmith
from weightsmith.checkpoints import open_checkpoint
from weightsmith.checkpoints.formats.statistics_writer import write_statistics
from weightsmith.comparison.family_opening import open_family
from weightsmith.comparison.league_entries import Candidate, measure_cost, recipe_of
from weightsmith.comparison.ranking import BUDGET, FINISHED, INTERRUPTED, run_league
from weightsmith.comparison.scaling import run_scaling
from weightsmith.comparison.standings import DEFAULT, TUNED
from weightsmith.comparison.tuning import STRENGTHS, Entrant, LeftOut, enter
from weightsmith.errors import ResourceError, UsageError
from weightsmith.methods.parts import registry
from weightsmith.progress import Silence


class Heard(Silence):
    """A progress that remembers, and can stop a league."""

    def __init__(self, stop_at=None):
        self.titles, self.cached, self.total, self.stop_at = [], 0, None, stop_at

    def begin(self, name, total=None, unit="", *, done=0, share=1):
        if total is None:
            return Measured(self, name)
        self.total = total
        return self


class Measured(Silence):
    def __init__(self, league, title):
        self.league, self.title = league, title

    def end(self, result="", *, kept=False):
        self.league.titles.append(self.title)
        self.league.cached += kept
        if len(self.league.titles) == self.league.stop_at:
            raise KeyboardInterrupt


def run(family, methods, out, **options):
    heard = options.pop("progress", None) or Heard()
    return run_league(family, methods, out, with_cost=False, progress=heard, **options), heard


@pytest.fixture(scope="module")
def found(small_family, tmp_path_factory):
    return run(small_family, ["linear", "task_arithmetic"], tmp_path_factory.mktemp("league"))


def test_every_method_has_a_row_with_defaults_and_one_tuned(found):
    league, heard = found
    named = [(row.name, row.setting) for row in league.rows]
    assert named[:3] == [("base", "base"), ("experts", "experts"), ("average", "average")]
    assert set(named[3:]) == {
        (name, setting) for name in ("linear", "task_arithmetic") for setting in (DEFAULT, TUNED)
    }
    assert league.ended == FINISHED
    assert len(heard.titles) == heard.total


def test_the_tuned_scale_is_the_best_of_the_grid_on_validation_only(found, small_family):
    from weightsmith.comparison.standings import mean_normalized
    from weightsmith.evaluation.scoring import evaluate
    from weightsmith.recipes import Recipe

    league, _ = found
    suite = small_family.suite("validation")
    experts = {
        task: evaluate(small_family.expert(task), suite, tasks=[task], cache=False)
        for task in small_family.experts
    }
    scored = {}
    for value in STRENGTHS:
        candidate = Candidate("validation", "task_arithmetic", parameters={"lambda": value})
        recipe = Recipe.load(recipe_of(candidate, small_family))
        scored[value] = mean_normalized(evaluate(recipe, suite, cache=False), experts)
    best = next(value for value in STRENGTHS if scored[value] == max(scored.values()))
    (tuned,) = [r for r in league.rows if (r.name, r.setting) == ("task_arithmetic", TUNED)]
    assert tuned.parameters == {"lambda": best}


def test_experts_beat_the_base_on_their_own_tasks(found):
    league, _ = found
    base, experts = league.rows[:2]
    assert experts.mean.low > base.mean.high


def test_the_average_is_what_linear_gives(found):
    league, _ = found
    average = next(row for row in league.rows if row.name == "average")
    linear = next(row for row in league.rows if row.name == "linear")
    assert average.scores == linear.scores


def test_a_second_run_measures_nothing_again(small_family, tmp_path):
    first, heard = run(small_family, ["linear"], tmp_path)
    again, second = run(small_family, ["linear"], tmp_path)
    assert second.cached == len(second.titles)
    assert heard.cached < len(heard.titles)
    assert again == first


def test_an_added_method_leaves_what_was_measured(small_family, tmp_path):
    run(small_family, ["linear"], tmp_path)
    _, heard = run(small_family, ["linear", "iso_c"], tmp_path)
    assert heard.cached >= 5
    assert "iso_c on test" in heard.titles


def test_a_damaged_entry_is_measured_again(small_family, tmp_path):
    first, _ = run(small_family, ["linear"], tmp_path)
    damaged = min((tmp_path / "entries").iterdir())
    damaged.write_text(damaged.read_text()[:100])
    again, heard = run(small_family, ["linear"], tmp_path)
    assert again == first
    assert heard.cached < len(heard.titles)


def test_ctrl_c_gives_the_table_of_what_was_finished_and_the_next_run_goes_on(
    small_family, tmp_path
):
    methods = ["linear", "task_arithmetic"]
    league, _ = run(small_family, methods, tmp_path, progress=Heard(stop_at=9))
    assert league.ended == INTERRUPTED
    settings = [row.setting for row in league.rows if row.name == "task_arithmetic"]
    assert settings == [DEFAULT]
    assert [row.name for row in league.rows].count("linear") == 2
    whole, heard = run(small_family, methods, tmp_path)
    assert whole.ended == FINISHED
    assert heard.cached >= 8


def test_ctrl_c_before_base_and_experts_are_there_has_no_table(small_family, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(small_family, ["linear"], tmp_path, progress=Heard(stop_at=2))


def test_a_spent_budget_begins_nothing_more(small_family, tmp_path):
    with pytest.raises(ResourceError, match="budget"):
        run(small_family, ["linear"], tmp_path, budget_seconds=1e-9)
    run(small_family, ["linear"], tmp_path)
    league, _ = run(small_family, ["linear", "iso_c"], tmp_path, budget_seconds=1e-9)
    assert league.ended == BUDGET
    assert "iso_c" not in [row.name for row in league.rows]


def test_the_validation_split_is_not_for_reporting(small_family, tmp_path):
    with pytest.raises(UsageError, match="tuned on the validation"):
        run(small_family, ["linear"], tmp_path, split="validation")


def test_a_split_that_the_family_lacks_is_refused(small_family, tmp_path):
    with pytest.raises(UsageError, match="no split 'tset'"):
        run(small_family, ["linear"], tmp_path, split="tset")


def test_methods_that_cannot_take_part_say_why():
    reasons = {out.method: out.reason for out in map(lambda m: enter(m, 3), ["slerp", "fisher"])}  # noqa: C417
    assert reasons == {
        "slerp": "it merges 1 expert, not 3",
        "fisher": "it needs statistics of the experts (fisher, adam, gradients)",
    }


def test_every_method_either_takes_part_or_says_why_not():
    from weightsmith.methods.parts import registry

    for name in registry.names():
        entrant = enter(name, 4)
        assert isinstance(entrant, Entrant) or entrant.reason
        if isinstance(entrant, Entrant) and entrant.scale is not None:
            registry.get(name).build({**entrant.defaults, entrant.scale: 0.5}, [{}] * 4)
    assert isinstance(enter("emr", 4), LeftOut)


def test_the_cost_is_that_of_a_process_that_did_the_merge(small_family):
    candidate = Candidate("test", "linear", has_base=False)
    cost = measure_cost(recipe_of(candidate, small_family))
    assert 0.01 < cost.cpu_seconds < 60
    assert 10e6 < cost.peak_bytes < 300e6


def test_a_merge_that_cannot_be_planned_is_refused_with_the_last_of_its_errors(small_family):
    models = recipe_of(Candidate("test", "linear", has_base=False), small_family)["models"]
    base, expert = (model["model"] for model in models[:2])
    recipe = {"weightsmith": 1, "merge_method": "slerp", "base_model": base}
    with pytest.raises(ResourceError, match="slerp could not be measured: models: method slerp"):
        measure_cost({**recipe, "models": [{"model": expert}]})


def test_a_merge_that_fails_leaves_its_method_out_with_the_reason(small_family, tmp_path):
    broken = shutil.copytree(small_family.folder, tmp_path / "broken")
    shutil.rmtree(broken / "experts" / "green")
    (broken / "experts" / "green").mkdir()
    (broken / "experts" / "green" / "config.json").write_text("{}")
    with pytest.raises(Exception, match="green"):
        run(open_family(broken), ["linear"], tmp_path / "out")


def test_scaling_merges_the_first_experts_and_counts_other_tasks_as_unseen(small_family, tmp_path):
    study = run_scaling([small_family], ["linear"], [2, 3, 9], tmp_path)
    assert [(row.method, row.experts) for row in study.rows] == [("linear", 2), ("linear", 3)]
    assert study.rows[0].unseen is not None
    assert study.rows[1].unseen is None
    assert study.leagues[0].experts == ("red", "green")
    assert study.rows[0].parameters == 16 * 24 + 24 + 2 * (24 * 24 + 24) + 24 * 9 + 9


def test_results_are_json(found):
    league, _ = found
    assert json.loads(json.dumps(league.to_mapping(), allow_nan=False))["family"] == "small"


def test_an_unknown_family_says_how_to_build_it(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="testbed build visoin"):
        open_family("visoin")


def test_methods_that_need_statistics_take_part_where_they_are_given(small_family, tmp_path):
    folder, family = tmp_path / "statistics", small_family
    folder.mkdir()
    for seed, task in enumerate(family.experts):
        tensors = open_checkpoint(family.expert(task)).tensors
        generator = np.random.default_rng(seed)
        fisher = {n: generator.random(t.shape, np.float32) for n, t in tensors.items()}
        about = {"of": family.expert(task), "data": "drawn at random", "samples": 1}
        write_statistics(folder / f"{task}.fisher.safetensors", fisher, kind="fisher", **about)
    with pytest.raises(UsageError, match="no statistics of the expert"):
        family.measured(tmp_path)
    found = run_league(family.measured(folder), ["fisher", "regmean"], tmp_path, with_cost=False)
    assert "fisher" in {row.name for row in found.rows}
    (refused,) = found.left_out
    assert refused.method == "regmean"
    assert "gram" in refused.reason
    without = run_league(family, ["fisher"], tmp_path, with_cost=False)
    assert [out.method for out in without.left_out] == ["fisher"]


def test_methods_that_go_by_the_base_take_part_beside_those_that_go_by_experts(
    small_family, tmp_path
):
    folder, family = tmp_path / "statistics", small_family
    folder.mkdir()
    base = open_checkpoint(family.base.reference)
    about = {"of": base, "data": "drawn at random", "samples": 1}
    generator = np.random.default_rng(0)
    for task in family.experts:
        drawn = {n: generator.random(t.shape, np.float32) for n, t in base.tensors.items()}
        absolute = {f"{n}::absolute": x for n, x in drawn.items()}
        write_statistics(folder / f"{task}.base.safetensors", absolute, kind="gradients", **about)
        own = {**about, "of": family.expert(task)}
        write_statistics(folder / f"{task}.fisher.safetensors", drawn, kind="fisher", **own)
    channels = {
        f"{n}::input_magnitude": generator.random(t.shape[1], np.float32)
        for n, t in base.tensors.items()
        if len(t.shape) == 2
    }
    write_statistics(folder / "base.channels.safetensors", channels, kind="channels", **about)
    of_experts = len(family.models)
    for method, files in (("fisher", of_experts), ("tatr", of_experts), ("aim", 1)):
        candidate = Candidate("test", method, has_base=method != "fisher", measured=True)
        planned = weightsmith.plan(recipe_of(candidate, family.measured(folder)))
        merges = [tensor.output.formula for tensor in planned.tensors]
        assert {len(merge.experts) for merge in merges} == {of_experts}
        assert {len(merge.statistics) for merge in merges} <= {0, files}
        assert any(merge.statistics for merge in merges)


def test_a_measurement_is_named_by_its_parameters_of_any_kind():
    candidate = Candidate("test", "metrics_weighted", parameters={"by": "score", "penalty": 0.5})
    assert candidate.title == "metrics_weighted (by=score, penalty=0.5) on test"


def test_a_measurement_is_made_again_when_a_method_has_other_defaults(small_family, monkeypatch):
    candidate = Candidate("test", "ties")
    before = candidate.digest(small_family)
    assert before == candidate.digest(small_family)
    spec = registry.get("ties")
    changed = {**spec.defaults(), "density": 0.123}
    monkeypatch.setattr(type(spec), "defaults", lambda *_: changed)
    assert candidate.digest(small_family) != before
