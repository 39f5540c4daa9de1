"""Suites: what is read, and one clear sentence for everything that is none."""

from __future__ import annotations

import json

import pytest

from weightsmith.errors import RecipeError, UsageError
from weightsmith.evaluation.suite import load_suite

TEXT = {"name": "de", "kind": "language_modeling", "data": "de.jsonl"}


@pytest.fixture
def data(jsonl):
    return jsonl("de.jsonl", {"text": "eins"})


def test_a_suite_has_its_tasks_with_paths_from_its_own_folder(tmp_path, suite, data):
    path = suite({**TEXT, "context": 64, "group": "own", "limit": 3})
    found = load_suite(path)
    assert found.name == "test"
    (task,) = found.tasks
    assert (task.name, task.kind, task.metric) == ("de", "language_modeling", "bits_per_byte")
    assert task.data == tmp_path / data
    assert (task.context, task.group, task.limit, task.field) == (64, "own", 3, "text")


def test_yaml_with_flow_mappings_is_read(tmp_path, data):
    path = tmp_path / "s.yaml"
    path.write_text(f"tasks:\n  - {{name: a, kind: language_modeling, data: {data}}}\n")
    assert load_suite(path).name == "s"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"kind": "classificaton"},
            r"no kind of task 'classificaton'; did you mean 'classification'\?",
        ),
        (
            {"metric": "bits_per_bytes"},
            r"no metric 'bits_per_bytes'; did you mean 'bits_per_byte'\?",
        ),
        ({"metric": "accuracy"}, "has no metric 'accuracy'; use bits_per_byte or perplexity"),
        ({"contxt": 3}, r"no key 'contxt'; did you mean 'context'\?"),
        ({"head": "de.jsonl"}, "language_modeling task has no key 'head'"),
        ({"context": 0}, "context is a whole number from 1, not 0"),
        ({"limit": True}, "limit is a whole number from 1, not true"),
        ({"context": 8, "stride": 9}, "the stride 9 is larger than the context 8"),
        ({"data": "none.jsonl"}, "there is no file .*none.jsonl"),
        ({"group": "owned"}, r"no group 'owned'; did you mean 'own'\?"),
        ({"name": 3}, "name is a text, not 3"),
    ],
)
def test_what_is_wrong_with_a_task_is_told_with_its_place(suite, data, change, sentence):  # noqa: ARG001
    with pytest.raises(
        RecipeError, match=rf"suite.yaml', line 1.*{sentence}|suite.yaml, line 1.*{sentence}"
    ):
        load_suite(suite({**TEXT, **change}))


def test_two_tasks_of_one_name_are_refused(suite, data):  # noqa: ARG001
    with pytest.raises(RecipeError, match="two tasks have the name 'de'"):
        load_suite(suite(TEXT, TEXT))


def test_a_key_that_is_given_twice_is_refused(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("suite: a\nsuite: b\ntasks: []\n")
    with pytest.raises(RecipeError, match=r"line 2.*'suite' is given twice"):
        load_suite(path)


@pytest.mark.parametrize("text", ["", "tasks: []\n", "suite: a\n", "- a\n", "tasks: {a: 1}\n"])
def test_a_suite_without_tasks_is_refused(tmp_path, text):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as refused:
        load_suite(path)
    assert "recipe" not in str(refused.value)


def test_a_missing_suite_is_told(tmp_path):
    with pytest.raises(UsageError, match="no suite file"):
        load_suite(tmp_path / "none.yaml")


def test_an_unknown_task_is_told_with_the_nearest(suite, data):  # noqa: ARG001
    with pytest.raises(UsageError, match=r"no task 'dee'; did you mean 'de'\?"):
        load_suite(suite(TEXT)).only(["dee"])


def test_the_digest_follows_what_decides_scores_and_nothing_else(tmp_path, suite, data):
    def digest(**changes):
        return load_suite(suite({**TEXT, **changes})).tasks[0].digest()

    first = digest()
    assert digest(batch_size=3) == first
    assert digest(limit=1) != first
    assert digest(metric="perplexity") != first
    (tmp_path / data).write_text(json.dumps({"text": "zwei"}))
    assert digest() != first


def test_the_smaller_limit_counts(suite, data):  # noqa: ARG001
    found = load_suite(suite({**TEXT, "limit": 5}, {**TEXT, "name": "b"})).limited(7)
    assert [task.limit for task in found.tasks] == [5, 7]
