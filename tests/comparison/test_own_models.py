"""A league on models of somebody's own: named one by one, or described in a family file."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from weightsmith.comparison.family_opening import family_of_models, open_family
from weightsmith.comparison.halves import half_of
from weightsmith.comparison.ranking import FINISHED, run_league
from weightsmith.comparison.standings import TUNED, mean_normalized
from weightsmith.errors import UsageError
from weightsmith.evaluation.scoring import evaluate
from weightsmith.progress import Silence
from weightsmith.recipes import Recipe

from .conftest import evaluation, right_and_wrong


@pytest.fixture
def own(small_family, tmp_path, monkeypatch):
    """The folders of the trained family without a record, named like nobody's tasks."""
    for name, of in (("start", "base"), ("r", "experts/red"), ("g", "experts/green")):
        shutil.copytree(small_family.folder / of, tmp_path / name)
    shutil.copytree(small_family.folder / "data", tmp_path / "data")
    for split in ("validation", "test"):
        tasks = [
            {"name": task, "kind": "classification", "data": f"data/{task}.{split}.npz"}
            for task in ("green", "red")
        ]
        (tmp_path / f"{split}.yaml").write_text(yaml.safe_dump({"suite": split, "tasks": tasks}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Titles(Silence, list):
    """A progress that remembers what was measured anew."""

    def begin(self, name, total=None, unit="", *, done=0, share=1):
        self.name, self.is_one = name, total is None
        return self

    def end(self, result="", *, kept=False):
        if self.is_one and not kept:
            self.append(self.name)
        self.is_one = False


def run(family, out, methods=("task_arithmetic",)):
    titles = Titles()
    return run_league(family, methods, out, with_cost=False, progress=titles), titles


def test_halves_are_of_one_size_have_no_item_in_common_and_do_not_depend_on_the_order():
    whole = evaluation("a", right_and_wrong("t", [1, 0] * 50))
    turned = evaluation("a", whole.items["t"].chosen(range(99, -1, -1)))
    first, second = (half_of(whole, first=first).items["t"] for first in (True, False))
    assert len(first) == len(second) == 50
    assert set(first.ids) | set(second.ids) == set(whole.items["t"].ids)
    assert set(half_of(turned, first=True).items["t"].ids) == set(first.ids)
    # Data that alternate are in both halves, as every second item would not be.
    assert 0.3 < first.value < 0.7
    assert half_of(whole, first=True).score("t").items == 50


def test_a_single_item_cannot_be_halved():
    with pytest.raises(UsageError, match="--validation"):
        half_of(evaluation("a", right_and_wrong("t", [1])), first=True)


def test_models_with_two_suites_give_the_standings_of_the_same_family_built(
    small_family, own, tmp_path
):
    del own
    built = small_family.first(2)
    folder = small_family.folder
    models = [str(folder / "experts" / task) for task in ("red", "green")]
    suites = [folder / f"suite.{split}.yaml" for split in ("test", "validation")]
    for suite in suites:
        # The third task has no expert among the two, and says so.
        text = yaml.safe_load(suite.read_text())
        text["tasks"][2]["group"] = "unseen"
        for task in text["tasks"]:
            task["data"] = str(folder / task["data"])
        (tmp_path / suite.name).write_text(yaml.safe_dump(text))
    own_family = family_of_models(
        models, str(folder / "base"), *(tmp_path / suite.name for suite in suites)
    )
    assert own_family.owners == {"red": "red", "green": "green"}
    expected, _ = run(built, tmp_path / "built")
    found, _ = run(own_family, tmp_path / "own")
    assert [(r.name, r.setting, r.parameters, r.mean, r.rank) for r in found.rows] == [
        (r.name, r.setting, r.parameters, r.mean, r.rank) for r in expected.rows
    ]
    assert found.rows[0].unseen == expected.rows[0].unseen is not None


def test_the_expert_of_a_task_is_the_best_on_validation_where_no_model_has_its_name(own, tmp_path):
    family = family_of_models(["r", "g"], "start", "test.yaml", "validation.yaml")
    assert family.unassigned == ("green", "red")
    found, _ = run(family, tmp_path / "out")
    assert found.owners == {"green": "g", "red": "r"}
    scores = {
        (name, task): evaluate(own / name, own / "validation.yaml", cache=False).score(task).value
        for name in ("r", "g")
        for task in ("green", "red")
    }
    assert scores["g", "green"] > scores["r", "green"]
    assert scores["r", "red"] > scores["g", "red"]


def test_with_one_suite_scales_are_tuned_on_one_half_and_the_other_is_reported(own, tmp_path):
    family = family_of_models(["r", "g"], "start", "test.yaml")
    found, _ = run(family, tmp_path / "out")
    assert found.is_halved
    assert found.to_mapping()["halved"]

    def whole(subject):
        return evaluate(subject, own / "test.yaml", cache=False)

    experts = {"green": whole(own / "g"), "red": whole(own / "r")}
    tuned_on = {task: half_of(found, first=True) for task, found in experts.items()}
    merges = {
        value: whole(
            Recipe.load(
                {
                    "weightsmith": 1,
                    "merge_method": "task_arithmetic",
                    "base_model": "start",
                    "models": [{"model": "r"}, {"model": "g"}],
                    "parameters": {"lambda": value},
                }
            )
        )
        for value in (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0)
    }
    scores = {v: mean_normalized(half_of(m, first=True), tuned_on) for v, m in merges.items()}
    best = next(value for value in merges if scores[value] == max(scores.values()))
    (tuned,) = [row for row in found.rows if row.setting == TUNED]
    assert tuned.parameters == {"lambda": best}
    assert tuned.scores == half_of(merges[best], first=False).scores
    assert found.rows[0].scores == half_of(whole(own / "start"), first=False).scores
    assert {score.items for row in found.rows for score in row.scores} == {75}


def test_a_halved_suite_is_measured_whole_once_for_both_halves(own, tmp_path):
    del own
    family = family_of_models(["r", "g"], "start", "test.yaml")
    _, titles = run(family, tmp_path / "out")
    # Base, two experts, the average, the defaults, eight scales, and the tuned one on all tasks.
    assert len(titles) == 1 + 2 + 1 + 1 + 8 + 1
    _, titles = run(family, tmp_path / "out")
    assert titles == []


def test_without_a_base_methods_that_need_one_are_left_out_and_nothing_is_measured_from_it(
    own, tmp_path
):
    del own
    family = family_of_models(["r", "g"], None, "test.yaml")
    found, _ = run(family, tmp_path / "out", ("karcher", "ties"))
    assert found.ended == FINISHED
    assert [row.name for row in found.rows[:2]] == ["experts", "average"]
    assert {row.retained for row in found.rows} == {None}
    assert [(out.method, out.reason) for out in found.left_out] == [
        ("ties", "it needs the base that the models were made from")
    ]


def test_changed_weights_are_another_family_and_an_added_model_leaves_the_others_measured(
    own, tmp_path
):
    out = tmp_path / "out"
    run(family_of_models(["r", "g"], "start", "test.yaml", "validation.yaml"), out)
    shutil.copytree(own / "g", own / "again")
    larger = family_of_models(["r", "g", "again"], "start", "test.yaml", "validation.yaml")
    _, titles = run(larger, out)
    assert "again on validation" in titles
    assert not {"start on test", "r on validation", "g on validation"} & set(titles)
    before = family_of_models(["r", "g"], "start", "test.yaml").digest
    state = load_file(own / "g" / "model.safetensors")
    save_file({n: np.float32(1.5) * t for n, t in state.items()}, own / "g" / "model.safetensors")
    assert family_of_models(["r", "g"], "start", "test.yaml").digest != before


def test_a_family_file_says_what_the_command_line_says(own, monkeypatch):
    content = {
        "family": "colours",
        "base": "start",
        "models": ["r", "g"],
        "suites": {"validation": "validation.yaml", "test": "test.yaml"},
    }
    (own / "family.json").write_text(json.dumps(content))
    named = family_of_models(["r", "g"], "start", "test.yaml", "validation.yaml")
    (own / "elsewhere").mkdir()
    monkeypatch.chdir(own / "elsewhere")
    for given in ("..", "../family.json"):
        found = open_family(given)
        assert found.name == "colours"
        assert found.digest == named.digest
        assert [model.label for model in found.members] == ["start", "r", "g"]
    named_too = {**content, "models": {"R": "r", "G": "g"}, "experts": {"red": "R"}}
    (own / "family.json").write_text(json.dumps(named_too))
    found = open_family("..")
    assert found.owners == {"red": "R"}
    assert not found.unassigned


GOOD = {"base": "start", "models": ["r", "g"], "suite": "test.yaml"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"modles": []}, "no key 'modles'; did you mean 'models'"),
        ({"models": None}, "`models` has to be a list of models"),
        ({"models": ["r", 5]}, "`models` names 5, which is no path"),
        ({"models": ["r", "r"]}, "'r' is given twice"),
        ({"models": ["r"], "base": None}, "at least 2 models"),
        ({"family": 3}, "`family` has to be"),
        ({"experts": {"red": "x"}}, "gives task 'red' the model 'x', which is not among `models`"),
        ({"experts": ["red"]}, "`experts` has to name a model for each task"),
        ({"suite": None}, "`suite` has to name"),
        ({"suites": {"validation": "validation.yaml", "test": "test.yaml"}}, "one of the two keys"),
        ({"suite": None, "suites": {"test": "test.yaml"}}, "`suites` has to name two suites"),
    ],
)
def test_a_wrong_family_file_is_refused_with_its_key(own, change, said):
    content = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    (own / "family.json").write_text(json.dumps(content))
    with pytest.raises(UsageError) as refused:
        open_family(".")
    assert said in str(refused.value)


def test_a_suite_to_tune_on_that_lacks_a_task_is_refused(own):
    text = yaml.safe_load((own / "validation.yaml").read_text())
    (own / "validation.yaml").write_text(yaml.safe_dump({**text, "tasks": text["tasks"][:1]}))
    with pytest.raises(UsageError, match="has no task 'red'"):
        family_of_models(["r", "g"], "start", "test.yaml", "validation.yaml")


def test_the_first_models_cannot_be_taken_where_experts_are_not_known_yet(own):
    del own
    family = family_of_models(["r", "g"], "start", "test.yaml")
    assert family.first(2) is family
    with pytest.raises(UsageError, match="a family file with `experts`"):
        family.first(1)


def test_models_with_one_folder_name_are_called_by_their_paths(own):
    for run_of in ("one", "two"):
        shutil.copytree(own / "r", own / run_of / "final")
    family = family_of_models(["one/final", "two/final", "g"], None, "test.yaml")
    assert [model.label for model in family.models] == ["one/final", "two/final", "g"]
