"""Statistics of the base, of modifiers and of steps: which file goes where, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith.checkpoints.formats.statistics_writer import write_statistics
from weightsmith.errors import CompatibilityError, RecipeError
from weightsmith.recipes import Recipe, load

from .conftest import HIDDEN, llama_shapes

Q = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture
def measured(make, tmp_path):
    """Write statistics of a base or of one of two experts, whose weights differ."""
    shapes = llama_shapes(4, head=True, vocabulary=6)
    for i, name in enumerate(("base", "a", "b")):
        make(name, extra={n: np.full(s, i + 1.0, np.float32) for n, s in shapes.items()})

    def write(of, kind, name, word="", shape=(HIDDEN, HIDDEN)):
        tensor = np.ones(shape, np.float32)
        path = tmp_path / f"{name}.safetensors"
        write_statistics(
            path,
            {f"{Q}::{word}" if word else Q: tensor},
            kind=kind,
            of=tmp_path / of,
            data="test",
            samples=4,
        )
        return str(path)

    return write


def recipe(tmp_path, method, files, **more):
    """Models a and b with files, and the base; `base` among the files lists it, too."""
    models = [
        {"model": str(tmp_path / name)} | ({"statistics": files[name]} if name in files else {})
        for name in ("a", "b", *(["base"] if "base" in files else []))
    ]
    text = {"weightsmith": 1, "merge_method": method, "models": models}
    return text | {"base_model": str(tmp_path / "base")} | more


def files_of(statistics, part):
    """The files that statistics are read from, all of them from tensors of this name."""
    found = [leaf for one in statistics for leaf in one.leaves]
    assert {leaf.tensor for leaf in found} <= {part}
    return [leaf.checkpoint.removesuffix(".safetensors") for leaf in found]


def test_a_method_takes_of_each_expert_the_file_that_is_of_the_base(measured, solve, tmp_path):
    files = {
        name: [
            measured(name, "gradients", f"{name}.own", "absolute"),
            measured("base", "gradients", f"{name}.base", "absolute"),
        ]
        for name in "ab"
    }
    part = f"{Q}::absolute"
    found = solve(recipe(tmp_path, "tatr", files)).formula(Q)
    assert files_of(found.statistics, part) == ["a.base", "b.base"]
    own = solve(recipe(tmp_path, "sens", files)).formula(Q)
    assert files_of(own.statistics, part) == ["a.own", "b.own"]


def test_the_base_among_the_models_carries_its_own_file(measured, solve, tmp_path):
    channels = measured("base", "channels", "c", "input_magnitude", (HIDDEN,))
    solved = solve(recipe(tmp_path, "aim", {"base": channels}))
    formula = solved.formula(Q)
    assert len(formula.experts) == 2
    assert files_of(formula.statistics, f"{Q}::input_magnitude") == ["c"]
    assert formula.statistics[0].shape == (HIDDEN, HIDDEN)
    assert solved.formula(NORM).statistics == ()
    assert not solved.found()


@pytest.mark.parametrize(("listed", "experts"), [({}, 2), ({"parameters": {"weight": 1}}, 3)])
def test_a_base_that_is_listed_for_its_statistics_is_no_expert_of_a_rule(
    measured, solve, tmp_path, listed, experts
):
    """A base with parameters of its own is meant as one."""
    channels = measured("base", "channels", "c", "input_magnitude", (HIDDEN,))
    rule = {"match": {"role": "norm"}, "merge_method": "linear"}
    text = recipe(tmp_path, "aim", {"base": channels}, rules=[rule])
    text["models"][-1] |= listed
    text["parameters"] = {"weight": 0.5}
    solved = solve(text)
    assert len(solved.formula(Q).experts) == 2
    merged = solved.formula(NORM)
    assert merged.method == "linear"
    assert len(merged.experts) == experts


def test_a_step_has_statistics_of_the_base_beside_its_method(measured, solve, tmp_path):
    channels = measured("base", "channels", "c", "input_magnitude", (HIDDEN,))
    step = {"aim": {"omega": 0.2}, "statistics": channels}
    text = recipe(tmp_path, "ties", {}, then=[step, "svc"])
    formula = solve(text).formula(Q).experts[0]
    assert formula.method == "aim"
    assert files_of(formula.statistics, f"{Q}::input_magnitude") == ["c"]
    read = load(text)
    again = Recipe.load(read.dump())
    assert again.digest() == read.digest()
    assert [str(f) for f in again.document.then[0].statistics] == [channels]


def test_modifiers_and_the_method_take_files_of_their_own(measured, solve, tmp_path):
    files = {
        name: [
            measured("base", "gradients", f"{name}.base", "absolute"),
            measured(name, "channels", f"{name}.channels", "input_square", (HIDDEN,)),
            measured(name, "fisher", f"{name}.fisher"),
        ]
        for name in "ab"
    }
    modify = ["trust_region", "clip", {"wanda": {"density": 0.5}}]
    formula = solve(recipe(tmp_path, "fisher", files, modify=modify)).formula(Q)
    assert files_of(formula.statistics, Q) == ["a.fisher", "b.fisher"]
    region, clip, wanda = formula.modifier_statistics
    assert files_of(region, f"{Q}::absolute") == ["a.base", "b.base"]
    assert clip == ()
    assert files_of(wanda, f"{Q}::input_square") == ["a.channels", "b.channels"]


def test_calls_in_expressions_take_the_same_files(measured, solve, tmp_path):
    files = {
        "base": measured("base", "channels", "c", "input_magnitude", (HIDDEN,)),
        "a": measured("a", "channels", "a.c", "input_square", (HIDDEN,)),
        "b": measured("base", "gradients", "b.base", "absolute"),
    }
    named = {name: str(tmp_path / name) for name in ("base", "a", "b")}

    def formula(expression, *given):
        text = {"weightsmith": 1, "expression": expression, "checkpoints": named}
        return solve(text | {"statistics": {name: files[name] for name in given}}).formula(Q)

    aim = formula("aim(a, b, base=base)", "base")
    assert files_of(aim.statistics, f"{Q}::input_magnitude") == ["c"]
    wanda = formula("linear(a, modify=[wanda(density=0.5)])", "a")
    assert files_of(wanda.modifier_statistics[0], f"{Q}::input_square") == ["a.c"]
    region = formula("linear(b, base=base, modify=[trust_region])", "b")
    assert files_of(region.modifier_statistics[0], f"{Q}::absolute") == ["b.base"]
    with pytest.raises(
        RecipeError, match="aim needs statistics of the base; name the file of 'base'"
    ):
        formula("aim(a, b, base=base)")
    with pytest.raises(RecipeError, match=r"wanda needs statistics of every model; .* of 'a'"):
        formula("linear(a, modify=[wanda(density=0.5)])")
    with pytest.raises(RecipeError, match="The base that aim merges is computed by the expression"):
        formula("aim(a, base=0.5 * a + 0.5 * b)", "base")


def test_statistics_of_the_wrong_weights_are_named(measured, solve, tmp_path):
    own = {n: measured(n, "gradients", f"{n}.own", "absolute") for n in "ab"}
    of_base = {n: measured("base", "gradients", f"{n}.base", "absolute") for n in "ab"}
    message = "tatr needs statistics of kind gradients of the base over the model's data, but gradients is"
    with pytest.raises(RecipeError, match=message):
        solve(recipe(tmp_path, "tatr", own))
    message = (
        "'a': method sens needs statistics of kind gradients, but gradients of the base is given"
    )
    with pytest.raises(RecipeError, match=message):
        solve(recipe(tmp_path, "sens", of_base))
    with pytest.raises(
        RecipeError, match=r"'base': method aim needs .* channels of the base, and none"
    ):
        solve(recipe(tmp_path, "aim", {}))
    with pytest.raises(
        RecipeError, match="modifier wanda needs statistics of kind channels, and none"
    ):
        solve(recipe(tmp_path, "ties", {}, modify=[{"wanda": {"density": 0.5}}]))
    other = measured("b", "channels", "c", "input_magnitude", (HIDDEN,))
    step = [{"aim": {}, "statistics": other}]
    with pytest.raises(CompatibilityError, match=r"are of 'b' .*, not of .*base"):
        solve(recipe(tmp_path, "ties", {}, then=step))


def test_statistics_in_the_wrong_place_are_named(measured, tmp_path):
    channels = measured("base", "channels", "c", "input_magnitude", (HIDDEN,))
    with pytest.raises(
        RecipeError, match=r"then\[0\].*aim needs statistics of the base; name their"
    ):
        load(recipe(tmp_path, "ties", {}, then=["aim"]))
    with pytest.raises(RecipeError, match=r"then\[0\].*lines takes no statistics; leave them out"):
        load(recipe(tmp_path, "ties", {}, then=[{"lines": {}, "statistics": channels}]))
    step = {"wanda": {"density": 0.5}, "statistics": channels}
    with pytest.raises(RecipeError, match=r"modify\[0\].*wanda goes by stand under `statistics:`"):
        load(recipe(tmp_path, "ties", {}, modify=[step]))
    with pytest.raises(RecipeError, match="a step is one method with its parameters"):
        load(recipe(tmp_path, "ties", {}, then=[{"statistics": channels}]))
