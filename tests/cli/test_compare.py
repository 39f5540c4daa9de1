"""`weightsmith compare` as a user types it, on saved evaluations."""

from __future__ import annotations

import json

import numpy as np
import pytest

from weightsmith.cli.main import execute
from weightsmith.evaluation.scores import Evaluation, ItemScores, TaskScore


def save(path, subject, right, slices=None):
    items = ItemScores(
        "greek",
        "accuracy",
        tuple(map(str, range(len(right)))),
        np.asarray(right, np.float64),
        np.ones(len(right)),
        binary=True,
        answers=tuple("abcd"[int(r) + i % 3] for i, r in enumerate(right)),
        slices=slices,
    )
    found = Evaluation(subject, subject, "s", "s", (TaskScore.of(items),), {"greek": items})
    path.write_text(json.dumps(found.to_mapping()))
    return str(path)


@pytest.fixture
def saved(tmp_path):
    old = np.arange(100) < 80
    new = old.copy()
    new[[3, 17, 42]] = False
    new[[90, 95]] = True
    places = tuple("even" if i % 2 == 0 else "odd" for i in range(100))
    return {
        "old": save(tmp_path / "old.json", "old", old, places),
        "new": save(tmp_path / "new.json", "new", new, places),
        "parent": save(tmp_path / "greek.json", "greek", np.arange(100) < 95),
        "base": save(tmp_path / "base.json", "base", np.arange(100) < 40),
    }


def test_planted_flips_are_listed_with_their_items(saved, capsys):
    assert execute(["compare", saved["old"], saved["new"]]) == 0
    shown = capsys.readouterr().out
    assert "greek lost 3, 17, 42" in shown
    assert "0.8 [" in shown
    assert "0.79 [" in shown


def test_slices_have_their_own_flips(saved, capsys):
    assert execute(["compare", saved["old"], saved["new"], "--json"]) == 0
    (task,) = json.loads(capsys.readouterr().out)["tasks"]
    lost = {one["slice"]: one["flips"]["negative"] for one in task["slices"]}
    assert lost == {"even": ["42"], "odd": ["3", "17"]}


def test_a_failing_gate_ends_with_1_and_says_what_was_found(saved, capsys):
    arguments = ["compare", saved["old"], saved["new"], "--gate", "negative_flips<0.02"]
    assert execute(arguments) == 1
    assert "negative_flips<0.02  FAILS  negative_flips is 0.03" in capsys.readouterr().out


def test_gates_that_hold_end_with_0(saved):
    gates = ["--gate", "negative_flips<=3%", "accuracy.greek>0.78", "--gate", "improvement>-0.02"]
    assert execute(["compare", saved["old"], saved["new"], *gates]) == 0


def test_a_malformed_gate_is_refused_before_anything_is_evaluated(capsys):
    assert execute(["compare", "nothing", "nowhere", "--gate", "negatve_flips<1"]) == 2
    assert "did you mean 'negative_flips'" in capsys.readouterr().err


def test_parents_and_base_give_retained_skill(saved, tmp_path, capsys):
    out = tmp_path / "found.json"
    arguments = ["compare", saved["old"], saved["new"], "--parents", saved["parent"], saved["old"]]
    assert execute([*arguments, "--base", saved["base"], "--save", str(out)]) == 0
    skill = json.loads(out.read_text())["skill"]
    assert skill["experts"] == {"greek": "greek"}
    assert skill["retained"]["value"] == pytest.approx(0.39 / 0.55)
    assert skill["normalized_score"]["value"] == pytest.approx(0.79 / 0.95)
    assert "Skill of the parents in new" in capsys.readouterr().out


def test_a_checkpoint_without_a_suite_is_refused(saved, capsys):
    assert execute(["compare", saved["old"], "some-folder"]) == 2
    assert "name a suite" in capsys.readouterr().err


def test_a_json_file_that_is_no_evaluation_is_refused(saved, tmp_path, capsys):
    other = tmp_path / "other.json"
    other.write_text("{}")
    assert execute(["compare", saved["old"], str(other)]) == 2
    assert "holds no evaluation" in capsys.readouterr().err


def test_the_same_items_are_needed(saved, tmp_path, capsys):
    fewer = save(tmp_path / "fewer.json", "fewer", np.arange(50) < 20)
    assert execute(["compare", saved["old"], fewer]) == 2
    assert "different items" in capsys.readouterr().err
