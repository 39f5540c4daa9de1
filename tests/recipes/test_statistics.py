"""`statistics:` in recipes: which file goes to which expert, and what is refused before anything runs."""

from __future__ import annotations

import numpy as np
import pytest

import weightsmith
from weightsmith.checkpoints.formats.statistics_writer import write_statistics
from weightsmith.errors import CompatibilityError, RecipeError
from weightsmith.recipes import Recipe, load
from weightsmith.recipes.language.expressions import methods
from weightsmith.recipes.resolution.formula import Leaf, Merge

from .conftest import HIDDEN, llama_shapes

Q = "model.layers.0.self_attn.q_proj.weight"
EMBED = "model.embed_tokens.weight"


@pytest.fixture
def measured(make, tmp_path):
    """Two models that differ, and `write(model, kind, ...)` for statistics of them."""
    shapes = llama_shapes(4, head=True, vocabulary=6)
    for i, name in enumerate("ab"):
        make(name, extra={n: np.full(s, i + 1.0, np.float32) for n, s in shapes.items()})

    def write(model, kind="fisher", names=tuple(shapes), name=None, **how):
        tensors = {}
        for n in names if kind != "metrics" else ():
            width = shapes[n][-1]
            gram = np.eye(width, dtype=np.float32)
            ones = np.ones(shapes[n], np.float32)
            tensors[n] = gram if kind == "gram" else [ones] * 2 if kind == "gradients" else ones
        path = tmp_path / (name or f"{model}.{kind}.safetensors")
        write_statistics(
            path,
            tensors,
            **{"kind": kind, "of": tmp_path / model, "data": "test", "samples": 4} | how,
        )
        return str(path)

    return write


def recipe(tmp_path, statistics, method="fisher", **more):
    models = [
        {"model": str(tmp_path / name)} | ({"statistics": files} if files else {})
        for name, files in zip("ab", statistics, strict=True)
    ]
    return {"weightsmith": 1, "merge_method": method, "models": models} | more


def test_each_expert_gets_the_statistics_of_its_own_file(measured, solve, tmp_path):
    files = [measured("a"), measured("b", normalization="sum")]
    solved = solve(recipe(tmp_path, files))
    formula = solved.formula(Q)
    assert isinstance(formula, Merge)
    first, second = formula.statistics
    assert first.leaves == (Leaf("a.fisher.safetensors", Q),)
    assert second.leaves == (Leaf("b.fisher.safetensors", Q),)
    assert (first.kind, first.shape, first.divisor) == ("fisher", (HIDDEN, HIDDEN), 1.0)
    assert second.divisor == 4.0
    assert solved.resolved.statistics == ("a.fisher.safetensors", "b.fisher.safetensors")
    assert not solved.found()


def test_the_recipe_on_record_keeps_the_files(measured, tmp_path):
    files = [measured("a"), measured("b")]
    read = load(recipe(tmp_path, files))
    again = Recipe.load(read.dump())
    assert [str(f) for m in again.document.models for f in m.statistics] == files
    assert again.digest() == read.digest()


def test_a_method_takes_the_kind_that_it_prefers_among_several_files(measured, solve, tmp_path):
    files = [[measured(m, "gram", (Q,)), measured(m, "adam"), measured(m)] for m in "ab"]
    assert {s.kind for s in solve(recipe(tmp_path, files)).formula(Q).statistics} == {"fisher"}
    ota = solve(recipe(tmp_path, files, "ota", base_model=str(tmp_path / "a")))
    assert [s.kind for s in ota.formula(Q).statistics] == ["adam"]
    rules = [{"match": {"name": "q_proj"}, "merge_method": "regmean"}]
    mixed = solve(recipe(tmp_path, files, "linear", rules=rules))
    assert {s.kind for s in mixed.formula(Q).statistics} == {"gram"}
    assert mixed.formula(EMBED).statistics == ()


def test_tensors_that_no_file_has_follow_the_methods_fallback(measured, solve, tmp_path):
    files = [measured(m, "gram", (Q,)) for m in "ab"]
    solved = solve(recipe(tmp_path, files, "regmean"))
    assert len(solved.formula(Q).statistics) == 2
    assert solved.formula(EMBED).statistics == ()
    assert not solved.found()


def test_gradients_have_a_leaf_for_each_sample(measured, solve, tmp_path):
    files = [measured(m, "gradients") for m in "ab"]
    statistics = solve(recipe(tmp_path, files)).formula(Q).statistics
    assert [leaf.tensor for leaf in statistics[0].leaves] == [f"{Q}::0", f"{Q}::1"]


def test_layers_of_slices_take_the_statistics_of_the_layers_they_come_from(
    measured, solve, tmp_path
):
    files = [measured(m) for m in "ab"]
    sources = [
        {"model": str(tmp_path / m), "layer_range": [2, 4], "statistics": f}
        for m, f in zip("ab", files, strict=True)
    ]
    text = {"weightsmith": 1, "merge_method": "fisher", "slices": [{"sources": sources}]}
    statistics = solve(text).formula(Q).statistics
    assert statistics[0].leaves[0].tensor == Q.replace("layers.0", "layers.2")


def test_statistics_that_only_some_have_are_an_error(measured, solve, tmp_path):
    files = [measured("a"), measured("b", names=(Q,))]
    found = solve(recipe(tmp_path, files)).found()
    assert "lack tensors" in found["missing-statistics"]


def test_statistics_of_another_shape_are_an_error(measured, solve, tmp_path):
    path = tmp_path / "wrong.safetensors"
    write_statistics(
        path, {Q: np.ones((2, 2))}, kind="fisher", of=tmp_path / "a", data="", samples=1
    )
    files = [str(path), measured("b", names=(Q,))]
    found = solve(recipe(tmp_path, files)).found()
    assert "has shape [2, 2] for a weight of shape [4, 4]" in found["statistics-shape"]


def test_statistics_of_other_weights_are_refused(measured, solve, tmp_path):
    with pytest.raises(CompatibilityError, match="collect them from this checkpoint"):
        solve(recipe(tmp_path, [measured("b"), measured("b")]))


def renamed(path, change):
    """The file with its tensors under other names, its header as it was."""
    import json

    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        data = file.read()
    header = {k if k == "__metadata__" else change(k): v for k, v in header.items()}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize("names", [(Q,), None])
def test_names_that_the_model_lacks_are_an_error_that_lists_the_first(
    measured, solve, tmp_path, names
):
    """Of all tensors or of one: a prefix that a trainer wrapped around the model is the usual cause."""
    how = {} if names is None else {"names": (*names, EMBED)}
    files = [measured("a", **how), measured("b", **how)]

    def wrapped(name):
        return name if names is not None and name == EMBED else f"module.{name}"

    renamed(files[1], wrapped)
    message = r"b\.fisher\.safetensors' are of tensors that .*/b' lacks: 'module\.[a-z_.0-9]*"
    rest = "';" if names else r"', 'module\..*', 'module\..*' and \d+ more;"
    with pytest.raises(CompatibilityError, match=message + rest):
        solve(recipe(tmp_path, files))


def test_shared_statistics_of_unknown_tensors_are_an_error(measured, solve, tmp_path):
    other = Q.replace("q_proj", "k_proj")
    good = [measured(m, "gram", (Q,), same={other: Q}) for m in "ab"]
    assert len(solve(recipe(tmp_path, good, "regmean")).formula(other).statistics) == 2
    for same, message in (({"key": Q}, "lacks: 'key'"), ({other: EMBED}, f"not hold: '{EMBED}'")):
        files = [good[0], measured("b", "gram", (Q,), same=same)]
        with pytest.raises(CompatibilityError, match=message):
            solve(recipe(tmp_path, files, "regmean"))


def test_statistics_that_no_merged_tensor_has_are_an_error(measured, solve, tmp_path):
    files = [measured(m, names=(Q,)) for m in "ab"]
    rules = [{"match": {"name": "q_proj"}, "merge_method": "linear"}]
    found = solve(recipe(tmp_path, files, rules=rules)).found()
    assert "of no tensor that is merged by them" in found["unused-statistics"]
    kept = [{"match": {"name": "layers.1"}, "merge_method": "linear"}]
    assert not solve(recipe(tmp_path, files, rules=kept)).found()


def test_tied_names_are_not_unknown(make, solve, tmp_path):
    """A head that is stored beside its embedding has the embedding's statistics, and may have its own."""
    shapes = llama_shapes(1, head=True, vocabulary=6)
    table = np.ones(shapes[EMBED], np.float32)
    for name in "ab":
        extra = {n: np.ones(s, np.float32) for n, s in shapes.items()}
        make(name, 1, config={"tie_word_embeddings": True}, extra=extra)
    for stored in (EMBED, "lm_head.weight"):
        files = []
        for name in "ab":
            files.append(str(tmp_path / f"{name}.safetensors"))
            write_statistics(
                files[-1], {stored: table}, kind="fisher", of=tmp_path / name, data="", samples=1
            )
        solved = solve(recipe(tmp_path, files))
        assert len(solved.formula(EMBED).statistics) == 2
        assert not solved.found()


def test_a_method_that_needs_statistics_says_so(measured, solve, tmp_path):
    with pytest.raises(RecipeError, match="needs statistics of kind fisher or adam or gradients"):
        solve(recipe(tmp_path, [None, None]))
    with pytest.raises(RecipeError, match="but gram is given"):
        solve(recipe(tmp_path, [measured(m, "gram", (Q,)) for m in "ab"]))


def test_a_method_that_takes_none_refuses_them(measured, tmp_path):
    with pytest.raises(RecipeError, match=r"models\[0\].*linear takes no statistics"):
        load(recipe(tmp_path, [measured("a"), None], "linear"))


def test_statistics_of_a_recipe_within_a_recipe_are_refused(measured, solve, tmp_path):
    inner = recipe(tmp_path, [None, None], "linear")
    text = {
        "weightsmith": 1,
        "merge_method": "fisher",
        "models": [{"model": inner, "statistics": measured("a")}],
    }
    with pytest.raises(RecipeError, match="which a recipe makes"):
        solve(text)


def expression(tmp_path, text, statistics=None, **more):
    named = {name: str(tmp_path / name) for name in "ab"}
    files = {"statistics": statistics} if statistics else {}
    return {"weightsmith": 1, "expression": text, "checkpoints": named} | files | more


def test_checkpoints_of_an_expression_have_the_statistics_that_models_have(
    measured, solve, tmp_path
):
    files = {"a": measured("a"), "b": [measured("b", "gram", (Q,)), measured("b")]}
    listed = solve(recipe(tmp_path, files.values())).formula(Q)
    written = solve(expression(tmp_path, "fisher(a, b)", files))
    assert written.formula(Q).statistics == listed.statistics
    assert not written.found()
    inside = solve(expression(tmp_path, "a + 0.5 * (fisher(b, a) - a)", files)).formula(Q)
    (_, first), (_, second) = inside.terms
    merged = first if isinstance(first, Merge) else second
    assert merged.statistics == listed.statistics[::-1]
    based = solve(expression(tmp_path, "ota(a, b, base=a)", files)).formula(Q)
    assert [s.kind for s in based.statistics] == ["fisher", "fisher"]
    opened = ("a.fisher.safetensors", "b.gram.safetensors", "b.fisher.safetensors")
    assert written.resolved.statistics == opened


def test_operands_in_python_carry_their_statistics(measured, solve, tmp_path):
    a = weightsmith.open(tmp_path / "a", measured("a"))
    b = weightsmith.open(tmp_path / "b", [measured("b"), measured("b", "gram", (Q,))])
    made = Recipe.from_expression(a + 0.5 * (-methods.fisher(a, b) + b) + 0 * (b - a))
    assert sorted(len(f) for f in made.document.statistics.values()) == [1, 2]
    assert Recipe.load(made.dump()).digest() == made.digest()
    files = [measured("a"), measured("b")]
    fisher = Recipe.from_expression(methods.fisher(a, b)).to_mapping()
    assert (
        solve(fisher).formula(Q).statistics == solve(recipe(tmp_path, files)).formula(Q).statistics
    )


def test_metrics_of_an_expression_come_from_files_or_as_numbers(measured, solve, tmp_path):
    files = {
        name: measured(name, "metrics", metrics={"loss": loss})
        for name, loss in (("a", 0.5), ("b", 1.5))
    }
    from_files = solve(expression(tmp_path, "metrics_weighted(a, b)", files)).formula(Q)
    assert from_files.per_expert == ((("metric", 0.5),), (("metric", 1.5),))
    text = "metrics_weighted(a, 0.5 * a + 0.5 * b, metric=[1, 2])"
    assert solve(expression(tmp_path, text)).formula(Q).per_expert == (
        (("metric", 1),),
        (("metric", 2),),
    )


def test_statistics_that_an_expression_cannot_have_or_lacks_are_named(measured, solve, tmp_path):
    files = {"a": measured("a"), "b": measured("b")}
    with pytest.raises(RecipeError, match=r"fisher needs statistics.*file of 'b'"):
        load(expression(tmp_path, "fisher(a, b)", {"a": files["a"]}))
    with pytest.raises(RecipeError, match=r"Argument 2 that fisher merges is computed"):
        load(expression(tmp_path, "fisher(a, 0.5 * a + 0.5 * b)", files))
    with pytest.raises(RecipeError, match=r"Argument 1 that fisher merges is computed"):
        load(expression(tmp_path, "linear(a, fisher(linear(a), b))", files))
    with pytest.raises(RecipeError, match=r"statistics\.b.*no method of the expression takes"):
        load(expression(tmp_path, "linear(a, b)", {"b": files["b"]}))
    with pytest.raises(RecipeError, match=r"'c', which is not among `checkpoints:`"):
        load(expression(tmp_path, "fisher(a, b)", files | {"c": files["a"]}))
    with pytest.raises(RecipeError, match=r"name those of `models:` under each model"):
        load(recipe(tmp_path, [None, None], "linear") | {"statistics": files})
    with pytest.raises(RecipeError, match="needs statistics of kind gram, but fisher"):
        solve(expression(tmp_path, "regmean(a, b)", files))
    with pytest.raises(CompatibilityError, match="collect them from this checkpoint"):
        solve(expression(tmp_path, "fisher(a, b)", {"a": files["b"], "b": files["b"]}))


def test_statistics_that_only_one_operand_has_of_a_tensor_are_an_error(measured, solve, tmp_path):
    files = {"a": measured("a"), "b": measured("b", names=(Q,))}
    found = solve(expression(tmp_path, "fisher(a, b)", files)).found()
    assert "lack tensors" in found["missing-statistics"]


def test_steps_have_no_place_for_statistics(tmp_path):
    with pytest.raises(RecipeError, match=r"then\[0\].*ota needs statistics"):
        load(recipe(tmp_path, [None, None], "linear", then=["ota"]))


def test_mergekits_dialect_has_no_statistics(measured, tmp_path):
    text = recipe(tmp_path, [measured("a"), None])
    text.pop("weightsmith")
    with pytest.raises(RecipeError, match="'statistics' belongs to native recipes"):
        load({k: text[k] for k in ("merge_method", "models")})


# Metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_come_from_files_or_the_recipe(measured, solve, tmp_path):
    files = [
        measured(m, "metrics", metrics={"loss": loss, "step": step})
        for m, loss, step in (("a", 0.5, 10), ("b", 1.5, 30))
    ]
    solved = solve(recipe(tmp_path, files, "metrics_weighted"))
    assert solved.formula(Q).per_expert == ((("metric", 0.5),), (("metric", 1.5),))
    by_step = solve(recipe(tmp_path, files, "metrics_weighted", parameters={"by": "step"}))
    assert by_step.formula(Q).per_expert == ((("metric", 10.0),), (("metric", 30.0),))
    text = recipe(tmp_path, [files[0], None], "metrics_weighted")
    text["models"][1]["parameters"] = {"metric": 2.0}
    assert solve(text).formula(Q).per_expert == ((("metric", 0.5),), (("metric", 2.0),))


def test_a_missing_metric_is_named(measured, solve, tmp_path):
    files = [measured(m, "metrics", metrics={"accuracy": 0.5}) for m in "ab"]
    with pytest.raises(RecipeError, match="has no metric 'loss' \\(it has accuracy\\)"):
        solve(recipe(tmp_path, files, "metrics_weighted"))
    assert "missing-parameter" in solve(recipe(tmp_path, [None, None], "metrics_weighted")).found()
