"""`weightsmith plan`."""

from __future__ import annotations

import json

import numpy as np
import pytest

BYTES = 4 * (32 * 8 * 2 + 2 * (12 * 8 + 8 * 8) + 8)


def test_a_plan_says_what_is_read_computed_and_written(weightsmith):
    result = weightsmith("plan", "ties.yaml")
    assert result.code == 0
    assert result.err == ""
    for name in ("base", "one", "two"):
        assert any(
            line.split()[:1] == [name] and "7 of 7" in line for line in result.out.splitlines()
        )
    assert "ties" in result.out
    assert result.out.endswith("This plan can be run.\n")


def test_the_json_of_a_plan_adds_up(weightsmith):
    plan = json.loads(weightsmith("plan", "linear.yaml", "--json").out)
    assert plan["schema"] == 1
    assert plan["runnable"] is True
    assert [i["bytes_read"] for i in plan["inputs"]] == [BYTES, BYTES]
    assert plan["computed"] == [
        {
            "what": "linear",
            "tensors": 7,
            "elements": BYTES // 4,
            "passes": 1,
            "read_bytes": 2 * BYTES,
        }
    ]
    assert plan["read_bytes"] == 2 * BYTES
    assert plan["write_bytes"] > BYTES
    assert 0 < plan["seconds"]["warm"] <= plan["seconds"]["cold"]


def test_set_changes_the_recipe(weightsmith):
    plain = json.loads(weightsmith("plan", "ties.yaml", "--json").out)
    same = json.loads(weightsmith("plan", "ties.yaml", "--json").out)
    other = json.loads(
        weightsmith("plan", "ties.yaml", "--json", "--set", "parameters.density=0.3").out
    )
    assert plain["digest"] == same["digest"] != other["digest"]


def test_memory_and_threads_reach_the_plan(weightsmith):
    plan = json.loads(
        weightsmith("plan", "ties.yaml", "--json", "--memory", "1GiB", "--threads", 3).out
    )
    assert plan["memory_bytes"] == 2**30
    assert plan["threads"] == 3


def test_a_plan_with_an_error_exits_with_one_and_names_the_fix(weightsmith, save, family):
    save(family / "other", {"model.norm.weight": np.zeros(9, np.float32)})
    (family / "bad.yaml").write_text((family / "linear.yaml").read_text().replace("two", "other"))
    result = weightsmith("plan", "bad.yaml")
    assert result.code == 1
    assert "error[" in result.out
    assert "fix: " in result.out
    assert "cannot be run" in result.out
    plan = json.loads(weightsmith("plan", "bad.yaml", "--json").out)
    assert plan["runnable"] is False
    assert {"severity", "code", "subject", "message", "fix"} == set(plan["findings"][0])


def test_merging_a_plan_with_an_error_writes_nothing(weightsmith, save, family):
    save(family / "other", {"model.norm.weight": np.zeros(9, np.float32)})
    (family / "bad.yaml").write_text((family / "linear.yaml").read_text().replace("two", "other"))
    before = sorted(family.iterdir())
    result = weightsmith("merge", "bad.yaml", "merged")
    assert result.code == 4
    assert sorted(family.iterdir()) == before


def test_explain_shows_every_number_and_source(weightsmith, family):
    result = weightsmith("plan", "ties.yaml", "--explain", "model.layers.1.mlp.up_proj.weight")
    assert result.code == 0
    text = result.out
    assert text.startswith(
        "model.layers.1.mlp.up_proj.weight  [12, 8] float32, role mlp.up, layer 1 of 2"
    )
    assert "theta = theta_0 + lambda tau" in text
    assert "weight = 0.5, density = 0.5\n" in text
    assert "weight = 0.25, density = 0.75\n" in text
    assert "lambda = 1 (default)" in text
    for name in ("base", "one", "two"):
        assert str(family / name / "model.safetensors") in text


def test_explain_tells_errors_and_warnings_of_the_plan(weightsmith, save, family):
    name = "model.norm.weight"
    save(family / "other", {name: np.zeros(8, np.float32)})
    (family / "bad.yaml").write_text((family / "linear.yaml").read_text().replace("two", "other"))
    known = json.loads(weightsmith("plan", "bad.yaml", "--json").out)["findings"]
    assert any(finding["severity"] == "error" for finding in known)
    result = weightsmith("plan", "linear.yaml", "--explain", name)
    assert (result.code, "error[" in result.out) == (0, False)
    result = weightsmith("plan", "bad.yaml", "--explain", name)
    assert result.code == 1
    assert result.out.index(name) < result.out.index("\n\nerror[")
    explained = json.loads(weightsmith("plan", "bad.yaml", "--explain", name, "--json").out)
    assert explained["findings"] == [f for f in known if f["severity"] != "note"]


def test_explain_as_json_tells_given_values_from_defaults(weightsmith):
    explained = json.loads(
        weightsmith("plan", "ties.yaml", "--explain", "model.norm.weight", "--json").out
    )
    formula = explained["formula"]
    assert formula["method"] == "ties"
    assert formula["parameters"]["lambda"] == {"value": 1.0, "from": "default"}
    assert [e["parameters"]["density"] for e in formula["experts"]] == [
        {"value": 0.5, "from": "given"},
        {"value": 0.75, "from": "given"},
    ]
    assert formula["base"]["tensor"] == "model.norm.weight"


@pytest.mark.parametrize("option", ["--json", "--explain"])
def test_a_plan_reads_no_weights(weightsmith, family, option):
    """The data section is cut off the files: only their sizes are made to fit again."""
    for name in ("one", "two"):
        file = family / name / "model.safetensors"
        size = file.stat().st_size
        header = int.from_bytes(file.read_bytes()[:8], "little") + 8
        with file.open("r+b") as stream:
            stream.truncate(header)
            stream.truncate(size)
    extra = ["model.norm.weight"] if option == "--explain" else []
    assert weightsmith("plan", "linear.yaml", option, *extra).code == 0
