"""Arithmetic on checkpoints, as text and with Python operators."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightsmith.errors import RecipeError
from weightsmith.recipes import Recipe, load
from weightsmith.recipes.language.expression_reading import Call, Combination, Name
from weightsmith.recipes.language.expression_reading import parse_expression as parse
from weightsmith.recipes.language.expressions import checkpoint, methods
from weightsmith.recipes.resolution.formula import Leaf, Merge, Same, Sum

NORM = "model.norm.weight"
NAMES = {"a": 0, "b": 0, "base": 0}


def coefficients(text: str) -> dict[str, float]:
    return {atom.name: c for c, atom in parse(text, NAMES).terms if isinstance(atom, Name)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", {"a": 1}),
        ("a + 0.5 * (b - base)", {"a": 1, "b": 0.5, "base": -0.5}),
        ("(a + b) / 2", {"a": 0.5, "b": 0.5}),
        ("-(-a)", {"a": 1}),
        ("2 * a - b", {"a": 2, "b": -1}),
        ("(1 - 0.25) * a + 0.25 * b", {"a": 0.75, "b": 0.25}),
        ("a + b - a", {"b": 1}),
        ("base + (a - base) + (b - base)", {"base": -1, "a": 1, "b": 1}),
        ("(a + b + base) / 3", {"a": 1 / 3, "b": 1 / 3, "base": 1 / 3}),
        ("1e-1 * a + 9e-1 * b", {"a": 0.1, "b": 0.9}),
    ],
)
def test_expressions_become_linear_combinations(text, expected):
    assert coefficients(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a + b", "adds two weights"),
        ("a - b", "is a delta"),
        ("a - a", "is a delta"),
        ("0.5 * a", "scales a weight by 0.5"),
        ("a + 0.5 * b", "sum to 1.5"),
        ("a * b", "multiplies two tensors"),
        ("a / b", "divides by a tensor"),
        ("1 / a", "divides by a tensor"),
        ("a / 0", "divides by zero"),
        ("a + 1", "adds a number"),
        ("3 - a", "adds a number"),
        ("2 + 2", "is the number 4"),
        ("a ** 2", "is not allowed"),
        ("a @ b", "is not allowed"),
        ("a if a else b", "is not allowed"),
        ("a.b", "is not allowed"),
        ("a[0]", "is not allowed"),
        ("[a]", "is not allowed"),
        ("lambda: a", "is not allowed"),
        ("a; b", "malformed"),
        ("a +", "malformed"),
        ("c", "not among `checkpoints:`"),
        ("bse", "did you mean 'base'"),
        ("True * a", "not a number"),
        ("1j * a", "not a number"),
        ("1e999 * a", "too large"),
        ("9" * 400 + " * a", "too large"),
        ("(" * 300 + "a" + ")" * 300, "malformed|too deep"),
        ("-" * 5000 + "a", "too deep|malformed"),
        ("a + " * 10000 + "a", "characters"),
        ("nothing(a)", "no merge method"),
        ("a.ties(b)", "not a call"),
        ("ties(base, *a)", "uses \\*"),
        ("ties(base, **a)", "uses \\*"),
        ("ties(base, a - b)", "is a delta"),
        ("ties(base, 0.5)", "is a number"),
        ("ties()", "needs a base"),
        ("linear(a, b, base=base)", "gives a base"),
        ("slerp(base, a, b, t=0.5)", "exactly 1"),
        ("ties(base, a, weigth=1)", "has no 'weigth'"),
        ("ties(base, a, b, weight=[1])", "1 values for 2"),
        ("ties(base, a, density=7)", "must lie in"),
        ("ties(base, a, density=b)", "is a tensor"),
        ("__import__('os').system('x')", "not a call"),
    ],
)
def test_expressions_without_meaning_are_refused_when_the_recipe_is_read(text, message):
    with pytest.raises(RecipeError, match=message):
        load({"weightsmith": 1, "expression": text, "checkpoints": {k: k for k in NAMES}})


def test_a_call_takes_its_base_first_or_by_name():
    first = parse("ties(base, a, b, density=0.3, lambda=0.5)", NAMES)
    named = parse("ties(a, b, base=base, density=[0.3, 0.3], lambda_=0.5)", NAMES)
    assert first == named
    ((_, call),) = first.terms
    assert isinstance(call, Call)
    assert call.base == Combination(((1.0, Name("base")),))
    assert call.shared == (("lambda", 0.5),)
    assert call.per_expert == ((("density", 0.3),), (("density", 0.3),))


def test_the_same_call_twice_is_one_term():
    assert len(parse("0.5 * ties(base, a) + 0.5 * ties(base, a)", NAMES).terms) == 1


@st.composite
def trees(draw: st.DrawFn, depth: int = 0) -> str:
    if depth > 4 or draw(st.booleans()):
        return draw(st.sampled_from(sorted(NAMES)))
    left, right = draw(trees(depth + 1)), draw(trees(depth + 1))
    number = draw(st.sampled_from(["2", "0.5", "-3", "1e-1"]))
    form = draw(
        st.sampled_from(["({l} + {r})", "({l} - {r})", "({n} * {l})", "({l} / {n})", "(-{l})"])
    )
    return form.format(l=left, r=right, n=number)


@settings(max_examples=60, deadline=None)
@given(trees())
def test_coefficients_agree_with_pythons_own_arithmetic(text):
    unit = {name: np.eye(len(NAMES))[i] for i, name in enumerate(sorted(NAMES))}
    expected = eval(text, {"__builtins__": {}}, unit)
    whole = f"({text}) + {1.0 - float(expected.sum())!r} * a"
    expected = expected + (1.0 - float(expected.sum())) * unit["a"]
    found = coefficients(whole)
    got = np.array([found.get(name, 0.0) for name in sorted(NAMES)])
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_an_expression_resolves_to_a_sum_over_stored_tensors(make, solve):
    for name in NAMES:
        make(name, extra={"steps": np.arange(3)})
    text = (
        "weightsmith: 1\nexpression: a + 0.5 * (b - base)\ncheckpoints: {a: a, b: b, base: base}\n"
    )
    solved = solve(text)
    assert not solved.found()
    terms = ((1.0, Leaf("a", NORM)), (0.5, Leaf("b", NORM)), (-0.5, Leaf("base", NORM)))
    assert solved.formula(NORM) == Sum(terms)
    assert solved.resolved.base == solved.resolved.config_source == "base"
    assert solved.formula("steps") == Leaf("base", "steps")
    without = solve(text.replace("base", "c").replace("c: c", "c: base"))
    assert isinstance(without.formula("steps"), Same)


def test_an_expression_may_hold_methods_and_recipes(make, solve):
    for name in NAMES:
        make(name)
    solved = solve(
        """
weightsmith: 1
expression: 0.5 * ties(base, a, b, weight=[1, 2]) + 0.5 * soup
checkpoints:
  a: a
  b: b
  base: base
  soup: {merge_method: linear, models: [{model: a}, {model: b}]}
"""
    )
    (half, ties), (_, soup) = solved.formula(NORM).terms
    assert half == 0.5
    assert (ties.method, ties.labels) == ("ties", ("a", "b"))
    assert ties.per_expert == ((("weight", 1.0),), (("weight", 2.0),))
    assert isinstance(soup, Merge)
    assert soup.scope_id != ties.scope_id


def test_models_that_do_not_fit_an_expression_are_found(make, solve):
    make("a"), make("b", vocabulary=9, without=(NORM,))
    found = solve("weightsmith: 1\nexpression: (a + b) / 2\ncheckpoints: {a: a, b: b}\n").found()
    assert set(found) == {"vocabulary-mismatch", "missing-tensor"}


def test_operators_write_the_same_recipe():
    base, a = checkpoint("models/base"), checkpoint("models/a")
    recipe = Recipe.from_expression(base + 0.5 * (a - base) / 2, dtype="bf16")
    assert recipe.document.dtype == "bfloat16"
    parsed = parse(recipe.document.expression, recipe.document.checkpoints)
    by_path = {str(recipe.document.checkpoints[atom.name]): c for c, atom in parsed.terms}
    assert by_path == {"models/base": 0.75, "models/a": 0.25}
    assert load(recipe.dump()) == recipe


def test_methods_can_be_called_on_operands():
    base, a, b = (checkpoint(name) for name in ("base", "a", "b"))
    recipe = Recipe.from_expression(methods.ties(a, b, base=base, density=[0.1, 0.2], lambda_=0.5))
    assert recipe.document.expression == "ties(m1, m2, base=m3, density=[0.1, 0.2], lambda_=0.5)"
    assert [str(m) for m in recipe.document.checkpoints.values()] == ["a", "b", "base"]


@pytest.mark.parametrize("other", ["x", None, True])
def test_operands_of_another_kind_are_refused(other):
    with pytest.raises(RecipeError, match="cannot be combined"):
        checkpoint("a") * other


def test_an_expression_that_is_no_weight_is_refused():
    with pytest.raises(RecipeError, match="adds two weights"):
        Recipe.from_expression(checkpoint("a") + checkpoint("b"))


@pytest.mark.parametrize(
    "build",
    [
        lambda a, b: methods.ties(a, b, 5),
        lambda a, b: methods.ties(a, b, "b"),
        lambda a, b: methods.ties(a, b, density=float("nan")),
        lambda a, b: methods.linear(a, b, weight=[1.0, float("inf")]),
        lambda a, b: a + 10**400 * (b - a),
        lambda a, b: a + float("nan") * (b - a),
        lambda a, b: a + np.bool_(True) * (b - a),
        lambda a, b: a + (b - a) * np.bool_(True),
    ],
)
def test_operands_without_a_meaning_are_refused_when_they_are_given(build):
    with pytest.raises(RecipeError) as caught:
        build(checkpoint("a"), checkpoint("b"))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("given", ["a", 5, None])
def test_a_recipe_is_made_of_expressions_only(given):
    with pytest.raises(RecipeError, match="is no expression"):
        Recipe.from_expression(given)


def test_numbers_that_numpy_computed_are_numbers():
    a, b = checkpoint("a"), checkpoint("b")
    for half in (np.float64(0.5), np.float32(0.5)):
        assert repr(a + (b - a) * half) == repr(a + (b - a) * 0.5)
        assert repr(a + half * (b - a)) == repr(a + 0.5 * (b - a))
    weighted = Recipe.from_expression(methods.linear(a, b, weight=[0.25, 0.75]))
    for weight in (np.array([0.25, 0.75]), (np.float64(0.25), 0.75)):
        assert Recipe.from_expression(methods.linear(a, b, weight=weight)) == weighted
