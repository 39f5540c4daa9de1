"""Reports of recipes, checkpoints, evaluations, comparisons and leagues, as the command line writes them."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from weightsmith.cli.main import execute
from weightsmith.comparison.versions import compare_evaluations
from weightsmith.errors import UsageError
from weightsmith.reports.evaluation_sections import named, read_evaluations
from weightsmith.reports.league_sections import league_sections
from weightsmith.reports.page import DataTable, PageSection, Picture, Report, render
from weightsmith.reports.report_subjects import (
    report_of_comparison,
    report_of_evaluation,
    report_of_league,
    report_of_subjects,
)


def run(*arguments):
    return execute([str(argument) for argument in arguments])


def keys(report):
    return [picture.key for picture in report.pictures]


def tables(report, title):
    found = []
    for section in report.sections:
        for block in section.blocks:
            table = block.table if isinstance(block, Picture) else block
            if isinstance(table, DataTable) and title in table.title:
                found.append(table)
    return found


@pytest.mark.usefixtures("family")
def test_a_recipe_is_shown_with_plan_findings_and_maps():
    report = report_of_subjects(["ties.yaml"])
    titles = [section.title for section in report.sections]
    assert titles == ["Recipe", "Plan", "Findings", "What was changed", "How the changes meet"]
    assert keys(report) == [
        "change-0",
        "change-1",
        "cosine-pairs",
        "cosine",
        "sign-conflict",
        "subspace-overlap",
    ]
    assert "merge_method: ties" in render(report)


def test_the_numbers_of_a_map_are_those_of_float64_arithmetic(family):
    base, fr, de = (load_file(family / n / "model.safetensors") for n in ("base", "fr", "de"))
    report = report_of_subjects(["fr", "de"], base="base")
    (change,) = tables(report, "Relative change of fr")
    name = "model.layers.1.mlp.up_proj.weight"
    u, v = (e[name].astype(np.float64) - base[name] for e in (fr, de))
    row = next(row for row in change.rows if row[0] == "1")
    expected = np.linalg.norm(u) / np.linalg.norm(base[name].astype(np.float64))
    assert row[change.columns.index("mlp.up")] == f"{expected:.3g}"
    (conflict,) = tables(report, "Sign conflict")
    row = next(row for row in conflict.rows if row[0] == "1")
    assert row[conflict.columns.index("mlp.up")] == f"{np.mean(u * v < 0):.3g}"


@pytest.mark.usefixtures("family")
def test_without_a_base_the_report_says_what_stands_for_it():
    page = render(report_of_subjects(["base", "fr"]))
    assert "No base was given" in page
    assert "No base was given" not in render(report_of_subjects(["fr"], base="base"))


@pytest.mark.usefixtures("family")
def test_diagnostics_that_no_study_supports_are_marked(monkeypatch):
    from weightsmith.comparison.validated import Validity
    from weightsmith.reports import validation

    studied = {
        "sign_conflict": Validity(0.7, 0.5, 0.8),
        "subspace_overlap": Validity(0.1, -0.2, 0.4),
    }
    monkeypatch.setattr(validation, "VALIDITY", studied)
    cautions = {p.key: p.caution for p in report_of_subjects(["fr", "de"], base="base").pictures}
    assert cautions["sign-conflict"] == ""
    assert "0.1, with the 95 % interval -0.2 to 0.4" in cautions["subspace-overlap"]
    assert "No study" in cautions["cosine"]


def test_a_hostile_tensor_and_recipe_cannot_become_markup(family):
    hostile = "</td><script>alert(1)</script>"
    for name in ("base", "fr", "de"):
        path = family / name / "model.safetensors"
        tensors = load_file(path)
        extra = {"base": 3, "fr": 4, "de": 4}[name]
        save_file({**tensors, hostile: np.ones((extra, 2), np.float32)}, path)
    recipe = family / "<b onclick=x>&.yaml"
    recipe.write_text((family / "ties.yaml").read_text() + f"# {hostile}\n")
    page = render(report_of_subjects([str(recipe)]))
    assert "&lt;b onclick=x&gt;" in page
    assert "<script" not in page
    assert "<b " not in page
    checkpoints = render(report_of_subjects(["fr", "de"], base="base"))
    assert "&lt;script&gt;alert(1)" in checkpoints
    assert "<script" not in checkpoints


def test_merge_writes_a_report_beside_its_result(family):
    assert run("merge", "ties.yaml", "out", "--quiet", "--report", "r.html") == 0
    page = (family / "r.html").read_text()
    for words in ("On record", "What the merge changed", "weightsmith verify out"):
        assert words in page


def test_a_merged_folder_is_shown_with_its_record(family):
    assert run("merge", "ties.yaml", "out", "--quiet") == 0
    assert run("report", "out", "--base", "base", "-o", "r.html", "--pictures", "p") == 0
    page = (family / "r.html").read_text()
    assert "On record" in page
    assert sorted(p.name for p in (family / "p").iterdir()) == ["change-0.png", "change-0.svg"]


def test_diff_writes_a_report_and_keeps_its_exit_code(family):
    assert run("diff", "base", "fr", "--report", "r.html") == 1
    assert "Relative difference" in (family / "r.html").read_text()
    assert run("diff", "base", "base", "--base", "base", "--report", "same.html") == 0
    assert "Identical: 12 tensors" in (family / "same.html").read_text()


@pytest.mark.parametrize("subjects", [("ties.yaml",), ("fr", "de", "--base", "base")])
def test_the_same_input_gives_the_same_bytes(family, subjects):
    for name in ("a", "b"):
        assert run("report", *subjects, "-o", f"{name}.html", "--threads", 2) == 0
    assert (family / "a.html").read_bytes() == (family / "b.html").read_bytes()


def test_what_is_measured_does_not_depend_on_threads(family):
    for threads in (1, 3):
        assert (
            run(
                "report",
                "fr",
                "de",
                "--base",
                "base",
                "-o",
                f"{threads}.html",
                "--threads",
                threads,
            )
            == 0
        )
    assert (family / "1.html").read_bytes() == (family / "3.html").read_bytes()


@pytest.mark.usefixtures("family")
def test_a_place_that_cannot_be_written_is_refused_before_the_work(capsys):
    assert run("merge", "ties.yaml", "out", "--report", "nowhere/r.html") == 4
    assert "does not exist" in capsys.readouterr().err
    assert run("verify", "out") != 0


@pytest.mark.usefixtures("family")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "nothing to report"),
        (("ties.yaml", "fr"), "one recipe"),
        (("fr",), "nothing to compare"),
        (("--evaluation", "ties.yaml"), "it is not JSON"),
        (("--league", "fr/config.json"), "no league"),
        (("--evaluation", "fr/config.json"), "evaluation"),
    ],
)
def test_what_cannot_be_reported_is_said_in_one_sentence(arguments, words, capsys):
    assert run("report", *arguments, "-o", "r.html") == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_scores_of_one_evaluation_are_shown_with_their_intervals(evaluation):
    found = evaluation("models/fr", french=0.7, german=0.4)
    report = report_of_evaluation(found)
    (table,) = tables(report, "Scores")
    score = found.scores[0]
    assert table.rows[0][:4] == ("french", "accuracy", "fr", f"{score.value:.4f}")
    assert table.rows[0][4] == f"{score.low:.4f} to {score.high:.4f}"
    assert keys(report) == ["scores-0-0"]


def test_subjects_with_numbers_are_a_path_in_the_order_of_the_numbers(evaluation):
    subjects = ("ties-0.5.yaml", "ties-0.25.yaml", "base", "ties-1.yaml")
    rows = named([("", evaluation(s, i, a=0.5, b=0.5)) for i, s in enumerate(subjects)])
    assert [(row.path, row.at) for row in rows] == [
        ("ties", 0.5),
        ("ties", 0.25),
        ("", 0.0),
        ("ties", 1.0),
    ]
    report = report_of_subjects([], evaluations=rows)
    (table,) = tables(report, "a and b")
    assert [row[0] for row in table.rows] == [
        "base",
        "ties-0.25.yaml",
        "ties-0.5.yaml",
        "ties-1.yaml",
    ]


def test_the_entries_of_a_league_are_paths_by_method(evaluation, tmp_path):
    files = []
    for scale in (1.0, 0.3):
        file = tmp_path / f"{scale}.json"
        title = f"ties (density=0.2, lambda={scale:g}) on validation"
        content = {"title": title, "evaluation": evaluation("x", a=0.5, b=0.5).to_mapping()}
        file.write_text(json.dumps(content))
        files.append(file)
    assert [(r.path, r.at) for r in read_evaluations(files)] == [("ties", 1.0), ("ties", 0.3)]


def test_suites_are_shown_apart(evaluation):
    first, second = evaluation("x", 1, a=0.5), evaluation("y", 2, a=0.6)
    rows = named([("", first), ("", replace(second, suite="other"))])
    titles = [section.title for section in report_of_subjects([], evaluations=rows).sections]
    assert titles == ["Scores on suite", "Scores on other"]


def test_a_comparison_shows_differences_flips_slices_and_skill(evaluation):
    old, new = evaluation("old", 1, a=0.6, b=0.6), evaluation("new", 2, a=0.7, b=0.7)
    parent, base = evaluation("p/fr", 3, a=0.95, b=0.6), evaluation("base", 4, a=0.2, b=0.2)
    found = compare_evaluations(old, new, parents=[parent], base=base)
    report = report_of_comparison(found)
    titles = [s.title for s in report.sections if s.blocks]
    assert titles == ["Differences", "Flips", "Slices", "Against parent fr", "Skill"]
    (differences,) = tables(report, "new against old")
    # The same p as in the terminal's table, and no other beside it.
    place = differences.columns.index("p")
    assert float(differences.rows[0][place]) == pytest.approx(
        found.tasks[0].change.mcnemar.mid_p, rel=0.06
    )
    (flips,) = tables(report, "Flips between")
    assert "p" not in flips.columns
    lost = found.tasks[0].change.flips
    assert flips.rows[0][2] == str(len(lost.negative))
    (became,) = tables(report, "became wrong")
    assert became.rows[0][1].startswith(lost.negative[0])
    assert keys(report)[:2] == ["differences-0", "differences-scores-0"]
    assert len(set(keys(report))) == len(keys(report))


def test_a_league_is_sorted_and_says_what_is_missing(league):
    report = report_of_league(league)
    page = render(report)
    assert keys(report) == ["league-quality", "league-cost"]
    assert page.index(">ties</text>") < page.index(">average</text>") < page.index(">base</text>")
    assert "The budget was spent" in page
    assert "it needs statistics" in page


def test_a_league_table_has_no_column_without_a_figure(league):
    (table,) = tables(report_of_league(league), "League table")
    assert table.columns == (
        *("method", "setting", "parameters", "normalised", "mean", "unseen", "CPU s", "memory"),
    )
    assert table.right == frozenset(range(3, 8))
    settings = {row[0]: row[1] for row in table.rows}
    assert (settings["base"], settings["experts"], settings["average"]) == ("", "", "")


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_a_merge_that_took_no_time_has_no_place_on_an_axis_of_powers(league, seconds):
    for row in league["rows"]:
        if row["cost"] is not None:
            row["cost"]["cpu_seconds"] = seconds
    assert keys(report_of_league(league)) == ["league-quality"]


@pytest.mark.parametrize("damage", ["rows", "family", "experts"])
def test_a_damaged_league_is_refused(league, damage):
    del league[damage]
    with pytest.raises(UsageError, match="not a league"):
        league_sections(league)


def test_a_scaling_study_draws_a_line_for_each_method_of_a_family(league):
    row = {**league["rows"][3], "method": "ties", "family": "tiny", "parameters": 1000}
    rows = [{**row, "experts": count} for count in (2, 4)]
    report = report_of_league({"ended": "finished", "rows": rows, "leagues": [league]})
    assert keys(report) == ["scaling-tiny"]
    (table,) = tables(report, "Scaling study")
    assert [cells[3] for cells in table.rows] == ["2", "4"]
    assert ">ties</text>" in render(report)


def test_empty_sections_are_left_out():
    page = render(
        Report(
            "r", "s", (PageSection("empty", ()), PageSection("full", (DataTable("t", ("a",), ()),)))
        )
    )
    assert re.findall(r"<h2[^>]*>([^<]*)", page) == ["full"]
