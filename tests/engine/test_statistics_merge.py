"""Merges with stored statistics from disk to disk: values, memory, the record, replay, resume; and in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import weightsmith
from weightsmith.checkpoints.formats.statistics_writer import write_statistics
from weightsmith.engine.api import merge, merge_state_dicts, replay, verify
from weightsmith.engine.planning import plan_making as planning
from weightsmith.errors import CheckpointError, CompatibilityError, UsageError
from weightsmith.recipes import Recipe
from weightsmith.recipes.language.expressions import methods

UP = "model.layers.1.mlp.up_proj.weight"
GRAMS = [
    f"model.layers.{i}.{part}.weight"
    for i in (0, 1)
    for part in ("self_attn.q_proj", "mlp.up_proj")
]


def statistics_of(family, expert, kind, **how):
    """Made-up statistics of an expert: (path, tensors)."""
    rng = np.random.default_rng(expert)
    tensors = {}
    for name, weight in family.tensors(f"e{expert}").items():
        if kind == "gram" and name in GRAMS:
            x = rng.normal(size=(200, weight.shape[-1])).astype(np.float32)
            tensors[name] = x.T @ x
        elif kind == "gradients":
            tensors[name] = list(rng.normal(size=(3, *weight.shape)).astype(np.float32))
        elif kind != "gram":
            tensors[name] = (rng.exponential(size=weight.shape) * 1e-8).astype(np.float32)
    path = family.root / f"e{expert}.{kind}.{how.get('form', '')}.safetensors"
    write_statistics(
        path,
        tensors,
        **{"kind": kind, "of": family.root / f"e{expert}", "data": "c4", "samples": 16} | how,
    )
    return str(path), tensors


def recipe_for(family, method, kind, experts=2, **more):
    how = more.pop("how", {})
    recipe = family.recipe(method, experts=experts, **more)
    given = [statistics_of(family, i + 1, kind, **how) for i in range(experts)]
    for model, (path, _) in zip(recipe["models"], given, strict=True):
        model["statistics"] = path
    return recipe, [tensors for _, tensors in given]


def in_memory(family, method, recipe, statistics, **how):
    uses_base = "base_model" in recipe
    found = merge_state_dicts(
        method,
        [{n: t.float() for n, t in family.tensors(f"e{i + 1}").items()} for i in range(2)],
        base={n: t.float() for n, t in family.tensors("base").items()} if uses_base else None,
        statistics=[{n: _torch(t) for n, t in s.items()} for s in statistics],
        labels=("e1", "e2"),
        **how,
    )
    return {n: t.to(torch.bfloat16) for n, t in found.items()}


def _torch(given):
    if isinstance(given, list):
        return [torch.from_numpy(t) for t in given]
    return torch.from_numpy(given)


@pytest.mark.parametrize(
    ("method", "kind"),
    [("fisher", "fisher"), ("ota", "adam"), ("rcp", "gradients"), ("regmean", "gram")],
)
def test_an_expression_gives_the_bytes_of_the_recipe_with_the_same_statistics(
    family, weights_of, method, kind
):
    """The labels of operands are those of models, so even shares of random numbers would be the same."""
    recipe, _ = recipe_for(family, method, kind)
    merge(recipe, family.root / "listed")
    operands = [weightsmith.open(m["model"], m["statistics"]) for m in recipe["models"]]
    based = {"base": weightsmith.open(recipe["base_model"])} if "base_model" in recipe else {}
    made = Recipe.from_expression(getattr(methods, method)(*operands, **based), dtype="bfloat16")
    merge(made, family.root / "written")
    assert weights_of(family.root / "written") == weights_of(family.root / "listed")
    assert verify(family.root / "written", recompute=100).ok


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize(
    ("method", "kind"),
    [("fisher", "fisher"), ("ota", "adam"), ("rcp", "gradients"), ("regmean", "gram")],
)
def test_a_merge_with_statistics_from_disk_is_that_in_memory(
    family, tmp_path, method, kind, backend
):
    recipe, statistics = recipe_for(family, method, kind)
    merge(recipe, tmp_path / "out", backend=backend)
    found = family.tensors("out")
    expected = in_memory(family, method, recipe, statistics)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-2, atol=1e-6)
    different = [n for n in found if not torch.equal(found[n], family.tensors("e1")[n])]
    assert UP in different


def test_sums_over_samples_are_divided_by_their_number(family, tmp_path):
    recipe, statistics = recipe_for(family, "ota", "adam", how={"normalization": "sum"})
    recipe["parameters"] = {"epsilon": 1e-4, "density": 1.0}
    merge(recipe, tmp_path / "out")
    means = [{n: t / np.float32(16) for n, t in s.items()} for s in statistics]
    expected = in_memory(family, "ota", recipe, means, parameters={"epsilon": 1e-4, "density": 1.0})
    torch.testing.assert_close(family.tensors("out")[UP], expected[UP], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("form", ["rows_columns", "low_rank", "blocks"])
def test_compressed_statistics_merge_as_the_dense_numbers_that_they_stand_for(
    family, tmp_path, form
):
    how = {"form": form} | ({"block": 64} if form == "blocks" else {})
    recipe, statistics = recipe_for(family, "fisher", "fisher", how=how)
    merge(recipe, tmp_path / "out")
    dense = statistics[0][UP].astype(np.float64)
    if form == "rows_columns":
        dense = np.outer(dense.sum(1), dense.sum(0)) / dense.sum()
    found = planning.make_plan(Recipe.load(recipe))
    label = found.resolved.statistics[0]
    stored = found.resolved.checkpoints[label].tensors[UP]
    assert stored.shape == dense.shape
    if form == "rows_columns":
        buffer = bytearray(stored.nbytes)
        stored.read_into(0, stored.numel, memoryview(buffer))
        np.testing.assert_allclose(np.frombuffer(buffer, np.float32), dense.reshape(-1), rtol=1e-5)


@pytest.mark.parametrize(("method", "kind"), [("ota", "adam"), ("regmean", "gram")])
def test_the_bytes_do_not_depend_on_threads_or_memory(family, tmp_path, weights_of, method, kind):
    recipe, _ = recipe_for(family, method, kind)
    merge(recipe, tmp_path / "one", threads=1)
    merge(recipe, tmp_path / "four", threads=4, memory_bytes=64 * 2**20)
    assert weights_of(tmp_path / "one") == weights_of(tmp_path / "four")


def test_the_manifest_names_statistics_by_digest_and_the_card_by_part(family, tmp_path):
    recipe, _ = recipe_for(family, "fisher", "fisher")
    made = merge(recipe, tmp_path / "out")
    label = "e1.fisher..safetensors"
    assert made.inputs[label].digest.startswith("xxh3-checkpoint-1:")
    assert set(made.inputs[label].tensors) == set(family.tensors("e1"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "statistics" in card
    front = card.split("---")[1]
    assert "safetensors" not in front


def test_the_record_is_verified_and_replayed(family, tmp_path, weights_of):
    recipe, _ = recipe_for(family, "ota", "adam")
    merge(recipe, tmp_path / "out")
    assert verify(tmp_path / "out", recompute=3).ok
    replay(tmp_path / "out", tmp_path / "again")
    assert weights_of(tmp_path / "out") == weights_of(tmp_path / "again")


def test_changed_statistics_are_named_when_a_tensor_comes_out_differently(family, tmp_path):
    recipe, _ = recipe_for(family, "fisher", "fisher")
    merge(recipe, tmp_path / "out")
    rng = np.random.default_rng(99)
    shapes = {n: t.shape for n, t in family.tensors("e1").items()}
    write_statistics(
        recipe["models"][0]["statistics"],
        {n: rng.random(s).astype(np.float32) for n, s in shapes.items()},
        kind="fisher",
        of=family.root / "e1",
        data="another",
        samples=16,
    )
    found = verify(tmp_path / "out", recompute=1)
    assert any("e1.fisher" in problem for problem in found.problems)


def test_statistics_are_counted_and_part_of_the_plans_identity(family):
    recipe, statistics = recipe_for(family, "fisher", "fisher")
    plan = weightsmith.plan(recipe)
    by_name = {t.output.name: t for t in plan.tensors}
    weights = 2 * 2 * statistics[0][UP].size
    assert by_name[UP].work.passes == 2
    assert by_name[UP].work.read_bytes == 2 * (weights + 2 * 4 * statistics[0][UP].size)
    before = plan.digest
    assert weightsmith.plan(recipe).digest == before
    statistics_of(family, 1, "fisher", data="another")
    assert weightsmith.plan(recipe).digest != before


def test_gram_matrices_are_in_the_predicted_memory(family):
    recipe, _ = recipe_for(family, "regmean", "gram")
    plan = weightsmith.plan(recipe)
    tensor = next(t for t in plan.tensors if t.output.name == UP)
    assert tensor.work.whole
    assert tensor.work.held_bytes == 4 * (3 * 3000 * 96 + 2 * 96 * 96)


def test_a_negative_fisher_stops_the_merge(family, tmp_path):
    recipe, statistics = recipe_for(family, "fisher", "fisher")
    statistics[0][UP][5, 5] = -1.0
    write_statistics(
        recipe["models"][0]["statistics"],
        statistics[0],
        kind="fisher",
        of=family.root / "e1",
        data="c4",
        samples=16,
    )
    with pytest.raises(CheckpointError, match="negative number at element 485"):
        merge(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (lambda gram: np.triu(gram), r"not symmetric: elements \[\d+, \d+\]"),
        (lambda gram: -gram, r"negative number on its diagonal, at \[\d+, \d+\]"),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_a_matrix_that_is_no_gram_matrix_stops_the_merge(
    family, tmp_path, damaged, message, backend
):
    recipe, statistics = recipe_for(family, "regmean", "gram")
    statistics[0][UP] = damaged(statistics[0][UP])
    write_statistics(
        recipe["models"][0]["statistics"],
        statistics[0],
        kind="gram",
        of=family.root / "e1",
        data="c4",
        samples=16,
    )
    with pytest.raises(
        CompatibilityError, match=f"Gram matrix of '{UP}' of model 'e1' .*{message}"
    ):
        merge(recipe, tmp_path / "out", backend=backend)
    assert not (tmp_path / "out").exists()


def test_a_merge_goes_on_after_an_interruption(family, tmp_path, weights_of, monkeypatch):
    from weightsmith.engine.running import run as running

    recipe, _ = recipe_for(family, "ota", "adam")
    merge(recipe, tmp_path / "whole", threads=1)
    recorded = []
    original = running.Journal.record

    def stopping(self, record):
        original(self, record)
        recorded.append(record)
        if len(recorded) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(running.Journal, "record", stopping)
        with pytest.raises(KeyboardInterrupt):
            merge(recipe, tmp_path / "parts", threads=1)
    merge(recipe, tmp_path / "parts", threads=1)
    assert weights_of(tmp_path / "parts") == weights_of(tmp_path / "whole")


def test_a_plan_explains_the_statistics(family):
    from weightsmith.inspection.explanation import explain_tensor

    recipe, _ = recipe_for(family, "fisher", "fisher")
    told = str(explain_tensor(weightsmith.plan(recipe), UP))
    assert "e1.fisher" in told


# In memory --------------------------------------------------------------------------------------------------------


def test_gradients_flow_through_averages_with_statistics():
    experts = [{"w": torch.rand(3, 4, requires_grad=True)} for _ in range(2)]
    fishers = [{"w": torch.rand(3, 4)} for _ in range(2)]
    found = merge_state_dicts("fisher", experts, statistics=fishers)
    found["w"].sum().backward()
    total = sum(e["w"].grad for e in experts)
    torch.testing.assert_close(total, torch.ones(3, 4))


def test_statistics_in_memory_are_checked():
    experts = [{"w": torch.ones(2, 2)}, {"w": torch.zeros(2, 2)}]
    with pytest.raises(UsageError, match="one mapping for each of the 2 experts"):
        merge_state_dicts("fisher", experts)
    with pytest.raises(UsageError, match="takes no statistics"):
        merge_state_dicts("linear", experts, statistics=[{}, {}])
    with pytest.raises(UsageError, match="of kind 'gram'"):
        merge_state_dicts("fisher", experts, statistics=[{}, {}], statistics_kind="gram")
    ones = {"w": torch.ones(2, 2)}
    for bad in (
        {"w": torch.ones(3)},
        {},
        {"w": -torch.ones(2, 2)},
        {"w": torch.full((2, 2), float("nan"))},
    ):
        with pytest.raises(CompatibilityError):
            merge_state_dicts("fisher", experts, statistics=[ones, bad])


def refused(method, statistics, message, **more):
    experts = [{"w": torch.ones(2, 2), "n": torch.ones(1, dtype=torch.int64)} for _ in range(2)]
    with pytest.raises(CompatibilityError, match=message):
        merge_state_dicts(method, experts, statistics=statistics, **more)


def test_statistics_in_memory_of_other_tensors_or_of_none_are_refused():
    ones = torch.ones(2, 2)
    refused("fisher", [{"w": ones}, {"w": ones, "W": ones}], "expert 1 .* lacks.*: 'W';")
    refused("fisher", [{"n": torch.ones(1)}] * 2, "expert 0 .* or of integers: 'n';")
    refused("fisher", [{}, {}], "expert 0 are of no tensor")
    refused("fisher", [{"w": ones.long()}] * 2, r"holds torch\.int64, not floats")


def test_lists_of_statistics_in_memory_have_the_length_of_their_kind():
    ones = torch.ones(2, 2)
    refused(
        "fisher", [{"w": [ones, ones]}, {"w": ones}], r"'w' of expert 0 is a list of 2; pass one"
    )
    base = {"w": torch.zeros(2, 2), "n": torch.ones(1, dtype=torch.int64)}
    lists = [{"w": [ones]}, {"w": []}]
    refused("rcp", lists, "'w' of expert 1 is a list of 0; pass one tensor per", base=base)


def test_a_matrix_in_memory_that_is_no_gram_matrix_is_refused():
    eye = torch.eye(2)
    skew = torch.tensor([[2.0, 1.5], [0.0, 2.0]])
    refused(
        "regmean", [{"w": eye}, {"w": skew}], r"of expert 1 is not symmetric: elements \[0, 1\]"
    )
    refused("regmean", [{"w": -eye}, {"w": eye}], r"expert 0 holds a negative .* at \[0, 0\]")


def test_tensors_without_statistics_in_memory_fall_back():
    experts = [
        {"w": torch.ones(2, 2), "b": torch.ones(2)},
        {"w": torch.zeros(2, 2), "b": torch.zeros(2)},
    ]
    grams = [{"w": torch.eye(2) * 3}, {"w": torch.eye(2)}]
    found = merge_state_dicts("regmean", experts, statistics=grams)
    torch.testing.assert_close(found["w"], torch.full((2, 2), 0.75))
    torch.testing.assert_close(found["b"], torch.full((2,), 0.5))


def test_a_stored_file_can_be_read_with_the_usual_library(family):
    path, tensors = statistics_of(family, 1, "fisher")
    np.testing.assert_array_equal(load_file(path)[UP].numpy(), tensors[UP])
