"""Tasks of lm-evaluation-harness: the same numbers as the library gives on its own."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from weightsmith import evaluate
from weightsmith.errors import ResourceError, UsageError
from weightsmith.progress import Silence

# The library and what it uses warn of things that are theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

CHOICE = """\
task: toy_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1}}
"""
ROLLING = """\
task: toy_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: bits_per_byte}}
  - {{metric: word_perplexity}}
metadata: {{version: 1}}
"""
GENERATION = """\
task: toy_generation
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1}}
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch) -> Path:
    """A folder with local task files and their data."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    folder = tmp_path / "tasks"
    folder.mkdir()
    lines = [
        {
            "prompt": f"question {i}:",
            "choices": ["yes", "nothing at all", str(i)],
            "answer": i % 3,
            # No text may repeat itself: the library takes windows of the same tokens for one.
            "text": " ".join(str((i + 3) * k * k) for k in range(2 + 16 * i)) + " ä.",
        }
        for i in range(9)
    ]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": line["text"]}) + "\n" for line in lines))
    answers = folder / "answers.jsonl"
    pairs = [{"prompt": line["prompt"], "answer": "x"} for line in lines]
    answers.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "choice.yaml").write_text(CHOICE.format(data=data))
    (folder / "text.yaml").write_text(ROLLING.format(data=texts))
    (folder / "generation.yaml").write_text(GENERATION.format(data=answers))
    return folder


def own_number(models, tasks, task, metric, **options):
    """What the library says when it loads the model and runs the task by itself."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder = str(models / "llama-tokenizer")
    model = HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=4, **options)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    result = simple_evaluate(model=model, tasks=[task], task_manager=manager, bootstrap_iters=0)
    return result["results"][task][f"{metric},none"]


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("toy_choice", "acc"),
        pytest.param("toy_choice", "acc_norm", marks=pytest.mark.slow),
        ("toy_text", "bits_per_byte"),
        pytest.param("toy_text", "word_perplexity", marks=pytest.mark.slow),
        ("toy_generation", "exact_match"),
    ],
)
def test_a_task_gives_the_library_s_own_number(models, suite, tasks, task, metric):
    entry = {"name": "t", "kind": "harness", "task": task, "include": "tasks", "metric": metric}
    found = evaluate(models / "llama-tokenizer", suite(entry), batch_size=4)
    score = found.score("t")
    assert score.value == pytest.approx(own_number(models, tasks, task, metric), rel=1e-6)
    assert score.items == 9
    assert score.low <= score.value <= score.high
    items = found.items["t"]
    assert items.ids == tuple(map(str, range(9)))
    assert items.higher_is_better == (task != "toy_text")
    assert items.binary == (task != "toy_text")
    assert (items.answers is None) == (metric in ("acc_norm", "bits_per_byte", "word_perplexity"))
    if metric == "acc":
        right = [a == e for a, e in zip(items.answers, items.expected, strict=True)]
        assert items.values.tolist() == right


def test_windows_of_a_long_text_are_the_library_s(models, suite, tasks):
    """The task of this package and the library's rolling likelihood agree, also beyond one window."""
    data = {"name": "own", "kind": "language_modeling", "data": "tasks/texts.jsonl", "context": 128}
    found = evaluate(models / "llama-tokenizer", suite(data))
    assert max(found.items["own"].weights) > 3 * 128
    # The library's default lets the tokenizer begin a text that it begins itself.
    theirs = own_number(models, tasks, "toy_text", "bits_per_byte", add_bos_token=False)
    assert found.score("own").value == pytest.approx(theirs, rel=1e-5)


def test_the_cache_knows_the_documents_of_a_task(models, suite, tasks):
    entry = {"name": "t", "kind": "harness", "task": "toy_choice", "include": "tasks", "limit": 4}
    path = suite(entry)
    first = evaluate(models / "llama-tokenizer", path)
    assert first.score("t").items == 4
    assert first.score("t").metric == "acc"
    assert evaluate(models / "llama-tokenizer", path).cached == ("t",)
    data = tasks / "data.jsonl"
    data.write_text(data.read_text().replace("question 1", "riddle 1"))
    assert evaluate(models / "llama-tokenizer", path).cached == ()


def test_progress_tells_of_requests(models, suite, tasks):  # noqa: ARG001
    told = []

    class Heard(Silence):
        def begin(self, name, total=None, unit="", *, done=0, share=1):
            told.extend([(total, unit), done])
            return self

        def advance(self, amount, what=""):
            told.append(amount)

    entry = {"name": "t", "kind": "harness", "task": "toy_choice", "include": "tasks"}
    evaluate(models / "llama-tokenizer", suite(entry), progress=Heard(), cache=False)
    requests = told.index((27, "request"))
    assert sum(told[requests + 1 :]) == 27


def test_a_recipe_runs_a_task_too(models, suite, tasks):  # noqa: ARG001
    from weightsmith.recipes import Recipe

    recipe = Recipe.load(
        {
            "weightsmith": 1,
            "merge_method": "linear",
            "donor": str(models / "llama-tokenizer"),
            "models": [
                {"model": str(models / "llama-tokenizer"), "parameters": {"weight": 1}},
                {"model": str(models / "llama-2"), "parameters": {"weight": 1}},
            ],
        }
    )
    entry = {"name": "t", "kind": "harness", "task": "toy_text", "include": "tasks"}
    value = evaluate(recipe, suite(entry)).score("t").value
    assert math.isfinite(value)
    assert value != evaluate(models / "llama-tokenizer", suite(entry)).score("t").value


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"task": "toy_choices"}, r"no task 'toy_choices' here; did you mean 'toy_choice'\?"),
        ({"metric": "accuracy"}, "no metric 'accuracy'"),
        ({"metric": "acc,strict"}, "no filter 'strict' of answers; it has none"),
    ],
)
def test_what_the_library_does_not_have_is_told(models, suite, tasks, change, sentence):  # noqa: ARG001
    entry = {"name": "t", "kind": "harness", "task": "toy_choice", "include": "tasks", **change}
    with pytest.raises(UsageError, match=sentence):
        evaluate(models / "llama-tokenizer", suite(entry))


def test_a_model_without_a_tokenizer_is_told(models, suite, tasks):  # noqa: ARG001
    entry = {"name": "t", "kind": "harness", "task": "toy_choice", "include": "tasks"}
    with pytest.raises(UsageError, match="has no tokenizer"):
        evaluate(models / "llama", suite(entry))


def test_without_the_library_the_extra_is_named(models, suite, tasks, monkeypatch):  # noqa: ARG001
    monkeypatch.setattr("weightsmith.evaluation.harness.find_spec", lambda _: None)
    entry = {"name": "t", "kind": "harness", "task": "toy_choice", "include": "tasks"}
    with pytest.raises(ResourceError, match=r"pip install \"\.\[eval\]\""):
        evaluate(models / "llama-tokenizer", suite(entry))
