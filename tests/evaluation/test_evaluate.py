"""Whole evaluations: recipes that are never written, the cache, interruptions, results as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import weightsmith
from weightsmith import evaluate, merge
from weightsmith.errors import AssertionFailed, RecipeError, ResourceError, UsageError
from weightsmith.evaluation.scores import Evaluation
from weightsmith.evaluation.subjects import open_subject
from weightsmith.live import LiveMerge, load_model
from weightsmith.progress import Silence
from weightsmith.recipes import Recipe, fill


def recipe(models: Path, first: str, second: str, **more) -> Recipe:
    return Recipe.load(
        {
            "weightsmith": 1,
            "merge_method": "task_arithmetic",
            "base_model": str(models / first),
            "models": [{"model": str(models / second), "parameters": {"weight": 0.4}}],
            **more,
        }
    )


@pytest.fixture
def mixed(jsonl, images, head):
    """A task for the ViT and one for the Llama."""
    texts = jsonl("t.jsonl", {"text": "one two"}, {"text": "drei vier"}, {"text": "cinq"})
    language = {"name": "text", "kind": "language_modeling", "data": texts}
    vision = {"name": "shapes", "kind": "classification", "data": images, "head": head}
    return {"llama": language, "vit": vision}


@pytest.mark.parametrize("family", ["llama", "vit"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_recipe_scores_as_the_checkpoint_that_it_writes(
    models, tmp_path, suite, mixed, family, dtype
):
    made = recipe(models, family, f"{family}-2", **({"dtype": dtype} if dtype else {}))
    path = suite(mixed[family])
    before = sorted(os.listdir(tmp_path))
    in_memory = evaluate(made, path, cache=False)
    assert sorted(os.listdir(tmp_path)) == before
    merge(made, tmp_path / "out")
    written = evaluate(tmp_path / "out", path, cache=False)
    (task,) = written.items
    assert np.array_equal(in_memory.items[task].values, written.items[task].values)
    assert in_memory.scores == written.scores
    assert in_memory.digest == written.digest
    base = evaluate(models / family, path, cache=False)
    assert (
        not np.array_equal(base.items[task].values, written.items[task].values) or family == "vit"
    )
    live, stored = load_model(open_subject(made)), load_model(tmp_path / "out")
    for own, other in zip(
        live.module.state_dict().values(), stored.module.state_dict().values(), strict=True
    ):
        assert torch.equal(own, other)


def test_a_merge_that_runs_scores_as_the_recipe_with_its_values(models, tmp_path, suite, mixed):
    path = suite(mixed["llama"])
    parameters = {"lambda": {"free": [0, 1.5], "start": 0.5}}
    opened = recipe(models, "llama", "llama-2", dtype="bfloat16", parameters=parameters)
    live = LiveMerge(weightsmith.plan(opened))
    for value in (0.5, 1.5):
        live.set({"lambda": value})
        found = evaluate(live, path, cache=tmp_path / "cache")
        written = evaluate(fill(opened, {"lambda": value}), path, cache=False)
        assert found.digest == written.digest
        assert found.scores == written.scores
        assert not found.cached
    live.set({"lambda": 0.5})
    assert evaluate(live, path, cache=tmp_path / "cache").cached == ("text",)
    rough = LiveMerge(weightsmith.plan(opened), dtype="bfloat16")
    with pytest.raises(UsageError, match="float32 on cpu"):
        evaluate(rough, path)


def test_a_recipe_file_is_told_from_a_checkpoint(models, tmp_path, suite, mixed):
    (tmp_path / "r.yaml").write_text(recipe(models, "vit", "vit-2").dump())
    found = evaluate(str(tmp_path / "r.yaml"), suite(mixed["vit"]))
    assert found.subject == str(tmp_path / "r.yaml")
    assert found.digest == open_subject(recipe(models, "vit", "vit-2")).digest


def test_assertions_of_a_recipe_hold_in_memory_too(models):
    failing = recipe(
        models, "vit", "vit-2", **{"assert": [{"norm_ratio": {"low": 0, "high": 1e-6}}]}
    )
    with pytest.raises(AssertionFailed):
        open_subject(failing)


def test_a_recipe_that_cannot_run_is_refused(models):
    with pytest.raises(RecipeError):
        open_subject(recipe(models, "vit", "llama"))


@pytest.mark.parametrize("kind", ["number", "mask"])
def test_a_recipe_with_free_numbers_or_masks_is_refused_with_the_way_to_its_scores(models, kind):
    given = recipe(models, "llama", "llama-2").to_mapping()
    if kind == "number":
        given["parameters"] = {"lambda": {"free": [0, 1.5], "start": 0.5}}
    else:
        given["modify"] = ["mask"]
        given["models"][0]["statistics"] = {"free_mask": [0, 1], "start": 1}
    sentence = f"has 1 free {kind} without a value, .*; merge it into a folder with --values FILE"
    with pytest.raises(RecipeError, match=sentence):
        open_subject(Recipe.load(given))


class Recorder(Silence):
    """A progress that keeps what it is told, and may interrupt."""

    def __init__(self, interrupt_at: str | None = None) -> None:
        self.interrupt_at = interrupt_at
        self.told: list[tuple[object, ...]] = []

    def begin(self, name, total=None, unit="", *, done=0, share=1):
        self.told.append(("begin", name, total, unit))
        if name == self.interrupt_at:
            raise KeyboardInterrupt
        return self

    def advance(self, amount, what=""):
        self.told.append(("advance", amount))

    def say(self, text):
        self.told.append(("say", text.split()[0]))

    def end(self, result="", *, kept=False):
        self.told.append(("end", result, kept))


def test_progress_tells_of_reading_loading_tasks_and_rows(models, suite, mixed):
    heard = Recorder()
    found = evaluate(models / "vit", suite({**mixed["vit"], "batch_size": 40}), progress=heard)
    (score,) = found.scores
    assert heard.told == [
        ("say", "reading"),
        ("begin", "scoring", 1, "task"),
        ("begin", "shapes", None, ""),
        ("say", "loading"),
        ("begin", "", 60, "row"),
        ("advance", 40),
        ("advance", 20),
        ("end", "", False),
        ("end", f"accuracy {score.value:.4f}  60 items", False),
        ("end", "", False),
    ]


def test_scores_are_found_in_the_cache_without_loading_the_model(models, suite, mixed):
    path = suite(mixed["llama"])
    first = evaluate(models / "llama", path)
    heard = Recorder()
    again = evaluate(models / "llama", path, progress=heard)
    assert [end[2] for end in heard.told if end[0] == "end"] == [True, False]
    assert ("say", "loading") not in heard.told
    assert first.cached == ()
    assert again.cached == ("text",)
    assert again.scores == first.scores
    assert again.items["text"].to_mapping() == first.items["text"].to_mapping()


def test_the_cache_is_by_weights_task_and_version_not_by_path(
    models, tmp_path, suite, mixed, monkeypatch
):
    path = suite(mixed["llama"])
    evaluate(models / "llama", path)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in (models / "llama").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert evaluate(copy, path).cached == ("text",)
    assert evaluate(models / "llama-2", path).cached == ()
    assert evaluate(copy, path, limit=2).cached == ()
    assert evaluate(copy, path, cache=False).cached == ()
    assert evaluate(copy, path, cache=tmp_path / "other").cached == ()
    assert evaluate(copy, path, cache=tmp_path / "other").cached == ("text",)
    monkeypatch.setattr("weightsmith.evaluation.cache.version", lambda _: "0")
    assert evaluate(copy, path).cached == ()


def test_a_recipe_finds_the_scores_of_its_checkpoint(models, tmp_path, suite, mixed):
    made = recipe(models, "vit", "vit-2")
    merge(made, tmp_path / "out")
    evaluate(tmp_path / "out", suite(mixed["vit"]))
    assert evaluate(made, suite(mixed["vit"])).cached == ("shapes",)


@pytest.mark.parametrize("damage", [b"", b"{", b'{"items": {}, "check": ""}', None])
def test_a_damaged_entry_of_the_cache_is_computed_anew(models, tmp_path, suite, mixed, damage):
    path, folder = suite(mixed["llama"]), tmp_path / "kept"
    first = evaluate(models / "llama", path, cache=folder)
    (entry,) = folder.rglob("*.json")
    if damage is None:
        damage = entry.read_bytes().replace(b'"weights": [7.0', b'"weights": [8.0')
        assert damage != entry.read_bytes()
    entry.write_bytes(damage)
    again = evaluate(models / "llama", path, cache=folder)
    assert again.cached == ()
    assert again.scores == first.scores
    assert evaluate(models / "llama", path, cache=folder).cached == ("text",)


def test_finished_tasks_survive_an_interruption(models, suite, mixed):
    path = suite(mixed["llama"], {**mixed["llama"], "name": "second"})
    with pytest.raises(KeyboardInterrupt):
        evaluate(models / "llama", path, progress=Recorder("second"))
    assert evaluate(models / "llama", path).cached == ("text",)


def test_chosen_tasks_and_limits(models, suite, mixed):
    path = suite(mixed["llama"], {**mixed["llama"], "name": "second", "group": "general"})
    found = evaluate(models / "llama", path, tasks=["second"], limit=2)
    assert [(s.task, s.items, s.group) for s in found.scores] == [("second", 2, "general")]


def test_results_go_to_json_and_back(models, suite, mixed):
    found = evaluate(models / "vit", suite(mixed["vit"]))
    again = Evaluation.from_mapping(json.loads(json.dumps(found.to_mapping())))
    assert again.scores == found.scores
    assert again.to_mapping() == found.to_mapping()
    with pytest.raises(UsageError, match="not the results of an evaluation"):
        Evaluation.from_mapping({"schema": 1})
    with pytest.raises(UsageError, match="have schema 9"):
        Evaluation.from_mapping({**found.to_mapping(), "schema": 9})


def test_a_device_that_is_not_there_is_told(models, suite, mixed):
    with pytest.raises(ResourceError, match="no device 'nonsense'"):
        evaluate(models / "vit", suite(mixed["vit"]), device="nonsense")


def test_a_missing_library_is_told(models, suite, mixed, monkeypatch):
    monkeypatch.setattr("weightsmith.live.devices.find_spec", lambda _: None)
    with pytest.raises(ResourceError, match=r"pip install \"\.\[eval\]\""):
        evaluate(models / "vit", suite(mixed["vit"]))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"architectures": []}, "names no architecture"),
        ({"architectures": ["OwnModel"]}, "'OwnModel' .* is none of transformers"),
        ({"model_type": "own"}, "does not understand the config.json"),
        ({"quantization_config": {"bits": 4}}, "is quantised"),
    ],
)
def test_a_config_that_names_no_network_is_told(models, tmp_path, suite, mixed, change, sentence):
    made = tmp_path / "own"
    made.mkdir()
    (made / "model.safetensors").write_bytes((models / "vit/model.safetensors").read_bytes())
    config = json.loads((models / "vit/config.json").read_text())
    (made / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UsageError, match=sentence):
        evaluate(made, suite(mixed["vit"]))
    (made / "config.json").unlink()
    with pytest.raises(UsageError, match=r"has no config\.json"):
        evaluate(made, suite(mixed["vit"]))


def test_the_public_name_is_the_function():
    assert weightsmith.evaluate is evaluate
    assert callable(sys.modules["weightsmith.evaluation.scoring"].evaluate)
