"""`weightsmith evaluate` as a user types it: table, JSON, exit codes, progress."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from weightsmith.cli.main import execute
from weightsmith.cli.progress_stages import Stage
from weightsmith.evaluation.scores import Evaluation
from weightsmith.live import residual_perceptron

from .conftest import WIDTHS
from .json_table import check

CONFIG = {"model_type": "digits-mlp", "hidden_size": 8, "num_hidden_layers": 1, "num_labels": 10}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two networks of the digits' form, a recipe that averages them, and a suite."""
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        (tmp_path / name).mkdir()
        state = residual_perceptron(CONFIG).state_dict()
        save_file(state, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "average.yaml").write_text(
        "weightsmith: 1\nmerge_method: linear\nmodels:\n"
        "  - {model: one, parameters: {weight: 1}}\n  - {model: two, parameters: {weight: 1}}\n"
    )
    generator = np.random.default_rng(0)
    np.savez("digits.npz", inputs=generator.random((50, 64)), labels=np.arange(50) % 10)
    (tmp_path / "suite.yaml").write_text(
        "suite: digits\ntasks:\n"
        "  - {name: all, kind: classification, data: digits.npz}\n"
        "  - {name: few, kind: classification, data: digits.npz, limit: 10}\n"
    )
    return tmp_path


def run(capfd, *arguments):
    capfd.readouterr()
    code = execute(["evaluate", *map(str, arguments)])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def test_scores_are_shown_with_interval_and_number_of_items(folder, capfd):  # noqa: ARG001
    code, out, err = run(capfd, "one", "--suite", "suite.yaml")
    assert code == 0
    title, head, all_, few, *_ = out.splitlines()
    assert title == "one on digits"
    assert head.split()[:3] == ["task", "metric", "score"]
    name, metric, score, low, to, high, items, better = all_.split()
    assert (name, metric, to, items, better) == ("all", "accuracy", "to", "50", "higher")
    assert float(low) <= float(score) <= float(high)
    assert few.split()[0] == "few"
    assert "task 1 of 2  all  accuracy" in err
    _, out, err = run(capfd, "one", "--suite", "suite.yaml")
    assert "2 tasks of 2 found in the cache." in out
    assert "found in the cache" in err


@pytest.mark.usefixtures("folder")
def test_scores_fit_every_terminal(shown_at):
    for columns in WIDTHS:
        names = ["all", "few", "accuracy", "50", "95 % interval"]
        shown_at(columns, ["evaluate", "one", "--suite", "suite.yaml", "--quiet"], names)


def test_a_recipe_is_scored_and_nothing_is_written(folder, capfd):
    before = sorted(path.name for path in folder.iterdir())
    code, out, _ = run(capfd, "average.yaml", "--suite", "suite.yaml", "--no-cache", "--quiet")
    assert code == 0
    assert out.startswith("average.yaml on digits")
    assert sorted(path.name for path in folder.iterdir()) == before


def test_json_has_every_item(folder, capfd):
    code, out, err = run(
        capfd, "one", "--suite", "suite.yaml", "--json", "--quiet", "--task", "few"
    )
    assert code == 0
    assert err == ""
    document = json.loads(out)
    found = Evaluation.from_mapping(document)
    check("evaluate", [document])
    assert [score.task for score in found.scores] == ["few"]
    assert len(found.items["few"]) == 10
    code, out, _ = run(capfd, "one", "--suite", "suite.yaml", "--save", "scores.json", "--quiet")
    assert code == 0
    assert "one on digits" in out
    written = Evaluation.from_mapping(json.loads((folder / "scores.json").read_text()))
    assert written.score("few") == found.score("few")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("one", "--suite", "none.yaml"), 2, "no suite file 'none.yaml'"),
        (("one", "--suite", "bad.yaml"), 4, "bad.yaml, line 2"),
        (("one", "--suite", "suite.yaml", "--task", "fow"), 2, "did you mean 'few'?"),
        (("none", "--suite", "suite.yaml"), 4, "none"),
        (("one", "--suite", "suite.yaml", "--device", "nonsense"), 5, "no device 'nonsense'"),
        (("one",), 2, "--suite"),
    ],
)
def test_refusals_are_one_sentence_and_a_code(folder, capfd, arguments, code, sentence):
    (folder / "bad.yaml").write_text("tasks:\n  - {name: a, kind: wrong}\n")
    found, out, err = run(capfd, *arguments, "--quiet")
    assert found == code
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert out == ""


def test_an_interruption_says_what_is_kept(folder, capfd, monkeypatch):  # noqa: ARG001
    begin = Stage.begin

    def interrupted(stage, name, *of, **more):
        if stage.unit == "task" and stage.done == 1:
            raise KeyboardInterrupt
        return begin(stage, name, *of, **more)

    monkeypatch.setattr(Stage, "begin", interrupted)
    code, out, err = run(capfd, "one", "--suite", "suite.yaml")
    assert code == 130
    assert "1 finished task kept, and the same command goes on from there" in err
    assert out == ""
    code, _, err = run(capfd, "one", "--suite", "suite.yaml", "--no-cache", "--quiet")
    assert "nothing was kept" in err
