"""Recipes learned from data: the numbers are those that plain torch finds, and everything else is a recipe."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.func import functional_call

import weightsmith
from weightsmith.errors import NonFiniteError, OutputError, RecipeError, UsageError
from weightsmith.learning import learn
from weightsmith.learning.draws import drawn
from weightsmith.learning.learner import Learner
from weightsmith.live import residual_perceptron
from weightsmith.statistics import Sample, Samples

from .conftest import CONFIG, EXPERTS, items, logits, recipe


def learned_by_torch(
    family: Path, data: list[Samples], steps: int, rate: float, size: int
) -> dict[str, float]:
    """Layer-wise AdaMerging as an autograd graph through the merge of all models in memory."""
    states = {n: load_file(family / n / "model.safetensors") for n in ("base", *EXPERTS)}
    base = states.pop("base")
    names = sorted(base)
    numbers = torch.full((3, len(names)), 0.3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([numbers], lr=rate)
    network = residual_perceptron(CONFIG)
    for step in range(steps):
        merged = {
            name: base[name]
            + sum(
                numbers[k, i].float() * (states[expert][name] - base[name])
                for k, expert in enumerate(EXPERTS)
            )
            for i, name in enumerate(names)
        }
        loss: Any = 0
        for place, samples in enumerate(data):
            chosen = drawn(0, place, len(samples.items), step, size)
            x = torch.stack([samples.items[i].inputs["inputs"] for i in chosen])
            logs = functional_call(network, merged, (x,)).log_softmax(-1)
            loss = loss - (logs.exp() * logs).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            numbers.clamp_(0, 1)
    return {
        f"models[{k}].parameters.weight[{name}]": float(numbers.detach()[k, i])
        for k in range(3)
        for i, name in enumerate(names)
    }


def test_layer_wise_adamerging_finds_the_numbers_that_a_graph_through_the_merge_finds(family):
    data = [items("first", seed=1), items("second", seed=2)]
    found = learn(
        recipe(family),
        data=data,
        out=family / "learned.yaml",
        steps=6,
        batch_size=5,
        optimizer={"rate": 0.05},
    )
    wanted = learned_by_torch(family, data, 6, 0.05, 5)
    assert found.values.keys() == wanted.keys()
    # Adam's first steps divide by gradients, small ones too.
    assert found.values == pytest.approx(wanted, abs=2e-4)
    assert max(abs(value - 0.3) for value in wanted.values()) > 0.1


def test_what_is_learned_is_an_ordinary_recipe_that_is_merged_and_replayed(family):
    found = learn(recipe(family), data=items(), out=family / "learned.yaml", steps=3)
    manifest = weightsmith.merge(found.recipe, family / "out")
    assert weightsmith.plan(found.recipe).free is None
    again = weightsmith.replay(family / "out", family / "again")
    assert again.digest == manifest.digest
    given = weightsmith.merge(recipe(family), family / "given", values=found.values)
    assert given.digest == manifest.digest


def test_planted_coefficients_are_found_from_the_outputs_of_their_merge(family):
    planted = {"one": 0.7, "two": 0.1, "three": 0.45}
    given = recipe(family, "expert")
    values = {f"models[{k}].parameters.weight": v for k, v in enumerate(planted.values())}
    weightsmith.merge(given, family / "planted", values=values)
    found = learn(
        given,
        data=items(count=48),
        out=family / "learned.yaml",
        objective="kl",
        teachers={"toy": str(family / "planted")},
        steps=80,
        batch_size=48,
        parametrisation="sigmoid",
        optimizer={"rate": 0.2},
    )
    assert found.loss < 1e-5
    assert found.values == pytest.approx(values, abs=0.02)


def test_outputs_of_blocks_are_learned_too(family):
    given = recipe(family, "expert")
    values = {f"models[{k}].parameters.weight": v for k, v in enumerate((1.0, 0.0, 0.0))}
    found = learn(
        given,
        data=items("one", count=24),
        out=family / "learned.yaml",
        objective="hidden",
        steps=80,
        batch_size=24,
        optimizer={"rate": 0.1, "first_restart": 80},
    )
    # The expert of the task's name is its teacher.
    assert json.loads(Path(found.log).read_bytes())["teachers"] == {"one": str(family / "one")}
    assert found.values == pytest.approx(values, abs=0.03)


class Stopped(Exception):
    pass


def run(family: Path, out: str, **more: Any) -> bytes:
    found = learn(
        recipe(family),
        data=[items(), items("other", seed=4)],
        validation=[items("held", seed=3)],
        out=family / out,
        steps=7,
        batch_size=4,
        check_every=2,
        optimizer={"rate": 0.05, "first_restart": 3, "name": "adamw", "weight_decay": 0.01},
        **more,
    )
    # The first line names the log, and the last is the seal.
    return b"".join(Path(found.recipe).read_bytes().splitlines()[1:-1])


def test_a_run_that_was_stopped_anywhere_goes_on_to_the_same_bytes(family, monkeypatch):
    whole = run(family, "whole.yaml")
    whole_log = json.loads((family / "whole.learning.json").read_bytes())["log"]
    monkeypatch.setattr("weightsmith.learning.learner._KEPT_EVERY", 0.0)
    step = Learner._step
    stops = [1, 3, 6]

    def stopping(self: Learner, number: int) -> dict[str, Any]:
        if stops and number == stops[0]:
            del stops[0]
            raise Stopped
        return step(self, number)

    monkeypatch.setattr(Learner, "_step", stopping)
    for _ in range(3):
        with pytest.raises(Stopped):
            run(family, "stopped.yaml")
    assert run(family, "stopped.yaml") == whole
    assert json.loads((family / "stopped.learning.json").read_bytes())["log"] == whole_log
    assert not stops
    assert not list(family.glob("*.partial"))


def test_another_request_begins_anew(family, monkeypatch):
    monkeypatch.setattr("weightsmith.learning.learner._KEPT_EVERY", 0.0)
    step = Learner._step

    def stopping(self: Learner, number: int) -> dict[str, Any]:
        if number == 2:
            raise Stopped
        return step(self, number)

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "_step", stopping)
        with pytest.raises(Stopped):
            run(family, "learned.yaml")
    assert run(family, "learned.yaml", seed=5) == run(family, "fresh.yaml", seed=5)


def test_the_numbers_are_those_that_were_best_on_the_validation_data(family):
    # The rate is far too large for this to get better.
    found = learn(
        recipe(family, "expert"),
        data=items(),
        validation=[items("held", seed=3)],
        out=family / "learned.yaml",
        objective="cross_entropy",
        steps=12,
        check_every=1,
        patience=4,
        optimizer={"name": "sgd", "rate": 50.0},
    )
    log = json.loads(Path(found.log).read_bytes())["log"]
    measured = {e["step"]: e["validation"] for e in log if "validation" in e}
    assert found.validation == min(measured.values())
    assert measured[found.kept] == found.validation
    assert found.steps < 12
    assert "no better" in found.stopped


def test_a_penalty_pulls_numbers_to_their_start(family):
    def learned(penalty: float) -> float:
        found = learn(
            recipe(family, "expert"),
            data=items(),
            out=family / f"{penalty}.yaml",
            steps=40,
            penalty=penalty,
            optimizer={"name": "sgd", "rate": 0.01},
        )
        return sum(abs(value - 0.3) for value in found.values.values())

    assert learned(0.5) < 0.3 * learned(0.0)


def test_a_softmax_keeps_the_sum_of_the_experts_at_one(family):
    given = recipe(family, "expert", merge_method="linear")
    del given["base_model"]
    given["parameters"]["weight"]["start"] = 1
    found = learn(
        given,
        data=items(),
        out=family / "learned.yaml",
        objective="cross_entropy",
        parametrisation="softmax",
        steps=10,
        optimizer={"rate": 0.1},
    )
    assert sum(found.values.values()) == pytest.approx(1, abs=1e-12)
    assert max(found.values.values()) > 0.4


def test_a_preset_frees_the_numbers_of_an_ordinary_recipe(family):
    given = recipe(family)
    given["parameters"] = {"weight": 0.5}
    given["models"][1]["parameters"] = {"weight": 0.2}
    found = learn(given, data=items(), out=family / "o.yaml", preset="adamerging", steps=2)
    tensors = len(load_file(family / "base" / "model.safetensors"))
    assert len(found.values) == 3 * tensors
    assert all(abs(value - 0.3) < 0.01 for value in found.values.values())


def test_a_recipe_in_another_folder_names_the_same_models(family, tmp_path, monkeypatch):
    given = recipe(family)
    given["base_model"] = "base"
    given["models"] = [{"model": name} for name in EXPERTS]
    (family / "free.yaml").write_text(json.dumps(given))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    found = learn(family / "free.yaml", data=items(), out=tmp_path / "elsewhere/o.yaml", steps=1)
    beside = learn(family / "free.yaml", data=items(), out=family / "o.yaml", steps=1)
    digests = [
        weightsmith.merge(one.recipe, tmp_path / str(n)).digest
        for n, one in enumerate((found, beside))
    ]
    assert digests[0] == digests[1]
    assert "- model: one\n" in Path(beside.recipe).read_text()


def broken(name: str) -> Samples:
    def nothing(model: Any, inputs: Any) -> torch.Tensor:
        return logits(model, inputs) * float("nan")

    return Samples(name, items().items, "", nothing)


def unlabelled() -> Samples:
    drawn_items = [Sample(item.inputs, None, 3) for item in items().items]
    return Samples("unlabelled", drawn_items, "", logits)


def stacked() -> Samples:
    """Items whose labels are of other predictions than those that the network makes."""
    return Samples(
        "toy", [Sample(i.inputs, i.labels.expand(2), 3) for i in items().items], "", logits
    )


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"data": broken("toy")}, NonFiniteError, "The loss of 'toy' is nan in step 1"),
        ({"data": []}, UsageError, "learns from data; give some with --data"),
        ({"data": "suite.test.yaml"}, UsageError, "called 'test', so results are reported on it"),
        ({"data": "x-held-out.jsonl"}, UsageError, "learn from a validation split"),
        ({"data": [items(), items()]}, UsageError, "Two of the data are called 'toy'"),
        ({"data": unlabelled(), "objective": "cross_entropy"}, UsageError, "have no label"),
        ({"tasks": ["tay"]}, UsageError, "None of the data has the task 'tay'"),
        ({"objective": "entropi"}, UsageError, "did you mean 'entropy'"),
        ({"objective": "kl"}, UsageError, "Which model teaches the task 'toy' is not clear"),
        ({"objective": "kl:-1"}, UsageError, "The weight of kl is a positive number"),
        ({"preset": "adamergin"}, UsageError, "did you mean 'adamerging'"),
        ({"optimizer": {"name": "adamm"}}, UsageError, "There is no optimizer 'adamm'"),
        ({"optimizer": {"lr": 1}}, UsageError, "There is no setting 'lr'"),
        ({"steps": 0}, UsageError, "steps is a whole number from 1"),
        ({"penalty": math.nan}, UsageError, "penalty is a finite number, not nan"),
        ({"optimizer": {"rate": math.inf}}, UsageError, "rate is a finite number, not inf"),
        ({"batch_size": 10**9}, UsageError, "takes 1000000000 items of 'toy', which has 12 items"),
        ({"data": stacked()}, UsageError, "give data made for it"),
        ({"out": "learned.txt"}, OutputError, "give .*learned.txt.* the ending .yaml"),
        ({"optimizer": {"name": "frank_wolfe"}, "parametrisation": "sigmoid"}, UsageError, "hull"),
        ({"parametrisation": "softmax", "per": "tensor"}, UsageError, "write `per: expert`"),
        ({"parametrisation": "sigmoid", "start": 0}, UsageError, "starts at a bound"),
        (
            {
                "method": {
                    "merge_method": "ties",
                    "parameters": {"density": {"free": [0.1, 1], "start": 0.5}},
                }
            },
            UsageError,
            "counts or selects, so there is no gradient",
        ),
        ({"method": {"parameters": {}}}, RecipeError, "nothing to learn"),
    ],
)
def test_what_cannot_be_learned_is_refused_in_a_sentence(family, change, error, sentence):
    options: dict[str, Any] = {"data": items(), "out": "learned.yaml", "steps": 2, **change}
    given = recipe(family, options.pop("per", "expert"), **options.pop("method", {}))
    if "start" in options:
        given["parameters"]["weight"]["start"] = options.pop("start")
    with pytest.raises(error, match=sentence):
        learn(given, out=family / options.pop("out"), **options)
    assert not list(family.glob("learned*"))


def test_a_file_that_is_no_recipe_of_its_own_is_not_replaced(family):
    out = family / "learned.yaml"
    learn(recipe(family), data=items(), out=out, steps=1)
    learn(recipe(family), data=items(), out=out, steps=2)
    out.write_text(out.read_text().replace("weightsmith: 1", "weightsmith: 1 "))
    with pytest.raises(OutputError, match="was changed since it was written"):
        learn(recipe(family), data=items(), out=out, steps=1)


def test_methods_without_the_parameter_of_a_preset_are_refused_by_its_name(family):
    given = recipe(family, parameters={}, merge_method="model_stock")
    with pytest.raises(UsageError, match="The preset frees 'weight', which model_stock has not"):
        learn(given, data=items(), out=family / "l.yaml", preset="adamerging", steps=1)


def test_free_masks_are_refused_by_name(family):
    given = recipe(family, parameters={}, modify=["mask"])
    for model in given["models"]:
        model["statistics"] = {"free_mask": [0, 1], "start": 1}
    with pytest.raises(
        RecipeError, match=r"free mask 'models\[0\].mask' .* masks cannot be learned"
    ):
        learn(given, data=items(), out=family / "l.yaml", steps=1)


def test_a_damaged_state_is_begun_anew(family, monkeypatch):
    def stopping(self: Learner, number: int) -> dict[str, Any]:
        if number == 4:
            raise Stopped
        return step(self, number)

    step = Learner._step
    monkeypatch.setattr("weightsmith.learning.learner._KEPT_EVERY", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(Learner, "_step", stopping)
        with pytest.raises(Stopped):
            run(family, "stopped.yaml")
    state = family / "stopped.yaml.partial" / "state"
    state.write_bytes(state.read_bytes()[:-20])
    assert run(family, "stopped.yaml") == run(family, "whole.yaml")


def test_another_teacher_at_the_same_place_is_asked_again(family, monkeypatch):
    options = {
        "data": items(),
        "objective": "kl",
        "teachers": {"toy": str(family / "teacher")},
        "steps": 3,
    }

    def stopping(*_: object) -> dict[str, Any]:
        raise Stopped

    shutil.copytree(family / "two", family / "teacher")
    with monkeypatch.context() as patched:
        patched.setattr(Learner, "_step", stopping)
        with pytest.raises(Stopped):
            learn(recipe(family), out=family / "stopped.yaml", **options)
    shutil.copy(family / "three" / "model.safetensors", family / "teacher")
    found = learn(recipe(family), out=family / "stopped.yaml", **options)
    fresh = learn(recipe(family), out=family / "fresh.yaml", **options)
    assert found.values == fresh.values


def test_no_recipe_is_written_into_a_teacher(family):
    shutil.copytree(family / "two", family / "teacher")
    with pytest.raises(OutputError, match="lies inside the input"):
        learn(
            recipe(family),
            data=items(),
            objective="kl",
            teachers={"toy": str(family / "teacher")},
            out=family / "teacher" / "l.yaml",
            steps=1,
        )
