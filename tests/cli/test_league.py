"""`weightsmith league` as a user types it, on a family that is trained in the test."""

from __future__ import annotations

import json

import pytest

from weightsmith.cli.main import execute

from .conftest import WIDTHS
from .json_table import check


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    from tests.comparison.small_family import build

    return str(build(tmp_path_factory.mktemp("family") / "small"))


def test_a_league_shows_ranks_costs_and_what_was_left_out(family, tmp_path, capsys):
    arguments = ["league", "--family", family, "--methods", "linear,ties,slerp", "--quiet"]
    assert execute([*arguments, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for words in ("3 experts, scores on test", "ties, tuned", "linear, default", "average"):
        assert words in shown
    assert "slerp   it merges 1 expert, not 3" in shown
    assert execute([*arguments, "--out", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    check("league", [dict(document)])
    rows = document["rows"]
    ties = next(row for row in rows if (row["name"], row["setting"]) == ("ties", "tuned"))
    assert ties["cost"]["peak_bytes"] > 1e7
    assert ties["rank"]["low"] <= ties["rank"]["value"] <= ties["rank"]["high"]


def test_a_league_fits_every_terminal_with_the_names_of_its_methods(family, tmp_path, shown_at):
    arguments = ["league", "--family", family, "--methods", "linear,breadcrumbs_ties", "--quiet"]
    names = ["breadcrumbs_ties", "linear, tuned", "normalised", "experts", "average"]
    for columns in (*WIDTHS, 170):
        screen = shown_at(columns, [*arguments, "--out", tmp_path], names)
        assert ("[" in screen.text) is (columns == 170)
        # All tasks are those of an expert, so there is nothing unseen to tell of.
        assert "unseen" not in screen.text
    for columns in WIDTHS:
        shown_at(columns, [*arguments, "--out", tmp_path, "--experts", "2,3"], ["breadcrumbs_ties"])


def test_several_numbers_of_experts_are_a_scaling_study(family, tmp_path, capsys):
    arguments = ["league", "--family", family, "--methods", "linear", "--experts", "2,3"]
    assert execute([*arguments, "--out", str(tmp_path), "--json"]) == 0
    taken = capsys.readouterr()
    rows = json.loads(taken.out)["rows"]
    assert [row["experts"] for row in rows] == [2, 3]
    assert "left" in taken.err
    page = tmp_path / "scaling.html"
    assert execute([*arguments, "--out", str(tmp_path), "--quiet", "--report", str(page)]) == 0
    assert "Scaling" in capsys.readouterr().out
    assert "Normalised score by number of experts" in page.read_text()


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--methods", "tise"], "did you mean ties"),
        (["--methods", "linear", "--budget", "soon"], "length of time"),
        (["--methods", "linear", "--experts", "0"], "numbers of experts"),
        (["--methods", "linear", "--experts", "9"], "has 3 experts"),
        (["--methods", "linear", "--split", "validation"], "tuned on the validation"),
        (["--methods", "linear", "--experts", "2,3", "--budget", "9m"], "no --budget"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_sentence(family, tmp_path, capsys, extra, said):
    assert execute(["league", "--family", family, "--out", str(tmp_path), *extra]) in (2, 4)
    assert said in capsys.readouterr().err


@pytest.fixture
def llamas(tmp_path, monkeypatch):
    """Three byte-level Llamas in folders of one's own, with a suite of texts; lower is better."""
    from tests.evaluation.conftest import llama, write

    base = llama(0)
    write(base, tmp_path / "base")
    for seed, name in enumerate(("first", "second"), start=1):
        model = llama(0)
        changed = dict(llama(seed).state_dict())
        state = {n: t + 0.2 * (changed[n] - t) for n, t in model.state_dict().items()}
        model.load_state_dict(state)
        write(model, tmp_path / name)
    for name in ("first", "other"):
        lines = [json.dumps({"text": f"{name} text {i}"}) for i in range(6)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "suite.yaml").write_text(
        "suite: texts\n"
        "tasks:\n"
        "  - {name: first, kind: language_modeling, data: first.jsonl}\n"
        "  - {name: other, kind: language_modeling, data: other.jsonl}\n"
    )
    monkeypatch.setenv("WEIGHTSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_models_of_ones_own_are_ranked_without_a_family_file(llamas, capsys):
    line = "league --models first second --base base --suite suite.yaml --methods linear,ties"
    assert execute([*line.split(), "--quiet", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["models"] == ["first", "second"]
    scores = {}
    for name in ("first", "second"):
        assert execute(["evaluate", name, "--suite", "suite.yaml", "--json", "--quiet"]) == 0
        scores[name] = json.loads(capsys.readouterr().out)["items"]["other"]
    from weightsmith.comparison.halves import half_of
    from weightsmith.evaluation.scores import Evaluation, ItemScores

    # The expert of the task that no model is named like is the better one on the half to tune on.
    halves = {
        name: half_of(
            Evaluation(name, "", "", "", (), {"other": ItemScores.from_mapping(items)}), first=True
        )
        for name, items in scores.items()
    }
    best = min(halves, key=lambda name: halves[name].items["other"].value)
    assert document["expert_of"] == {"first": "first", "other": best}
    assert execute([*line.split(), "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "2 experts, scores on the half of the items that no scale was tuned on" in shown
    assert f"other  {best}" in shown
    assert "retained: how much of what the experts gained" in shown
    assert not (llamas / "family.json").exists()


@pytest.mark.usefixtures("llamas")
def test_only_columns_that_are_shown_are_explained(capsys):
    line = "league --models first second --suite suite.yaml --methods linear --quiet"
    assert execute(line.split()) == 0
    shown = capsys.readouterr().out
    assert "normalised: merged over expert; rank 1 is best." in shown
    assert "retained" not in shown


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("league", "give --models and --suite"),
        ("league --models a b", "--suite"),
        ("league --models --suite s", "'--models' needs at least one value"),
        ("league --family x --models a --suite s", "give --models or --family, not both"),
        ("league --family x --base a", "--base is for models of your own"),
    ],
)
def test_a_league_without_models_or_with_two_families_is_refused(capsys, line, said):
    assert execute(line.split()) == 2
    assert said in capsys.readouterr().err


def test_the_command_and_the_function_try_the_same_methods():
    from weightsmith.cli.judging.league import _METHODS
    from weightsmith.comparison.ranking import METHODS

    assert tuple(_METHODS.split(",")) == METHODS


def test_a_report_may_not_take_the_place_of_what_a_league_reads(llamas, capsys):
    before = (llamas / "suite.yaml").read_text()
    line = "league --models first second --suite suite.yaml --methods linear --quiet --save"
    for taken in ("suite.yaml", "first.jsonl", "first/config.json"):
        assert execute([*line.split(), taken]) == 4
        assert taken.rpartition("/")[2] in capsys.readouterr().err
    assert (llamas / "suite.yaml").read_text() == before
