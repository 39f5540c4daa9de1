"""The same recipe through both resolvers: the same tensors, inputs and numbers for every output tensor."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import weightsmith
from weightsmith.errors import WeightsmithError
from weightsmith.methods.parts import registry
from weightsmith.recipes.language.dialect import PARAMETERS, without_effect
from weightsmith.recipes.resolution.formula import Cast, Formula, Leaf, Merge

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

LAYERS = 4
WITH_BASE = ("ties", "task_arithmetic", "dare_ties", "breadcrumbs", "della_linear")
NUMBERS = st.one_of(
    st.integers(0, 1),
    st.integers(0, 100).map(lambda n: n / 100),
    st.sampled_from(["0.5", "1e-2", "2.5e-1"]),
)
# Weights that sum to zero are refused here (docs/parity.md), so they are positive.
WEIGHTS = st.one_of(
    st.just(1), st.integers(5, 100).map(lambda n: n / 100), st.sampled_from(["0.5", "1e-2"])
)
FLAGS = st.booleans()
FILTERS = st.sampled_from(
    ["self_attn", "mlp", "*", "lm_head", "norm", "layers.1.", "", "MLP", "embed", None]
)


def setting(scalars: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A scalar, a gradient, or conditions on names."""
    plain = st.one_of(scalars, st.lists(scalars, min_size=1, max_size=4))
    condition = st.builds(
        lambda value, name: {"value": value} if name is None else {"value": value, "filter": name},
        plain,
        FILTERS,
    )
    return st.one_of(plain, condition, st.lists(condition, min_size=1, max_size=3))


def parameters(method: str, level: str) -> st.SearchStrategy[dict[str, Any]]:
    """Some of a method's parameters, as they may stand at a level."""
    shared = {
        "normalize": FLAGS,
        "rescale": FLAGS,
        "int8_mask": FLAGS,
        "lambda": NUMBERS,
        "t": NUMBERS,
    }
    each = {"weight": WEIGHTS, "density": st.just(1), "gamma": NUMBERS}
    if method in ("ties", "dare_ties", "breadcrumbs"):
        each["density"] = NUMBERS
    known = each if level == "model" else {**shared, **each}
    return st.fixed_dictionaries(
        {}, optional={k: setting(s) for k, s in known.items() if k in PARAMETERS[method]}
    )


@st.composite
def recipes(draw: Any) -> dict[str, Any]:
    """A configuration with places `{0}`, `{1}`, `{2}` for the folders of the base and two models."""
    method = draw(st.sampled_from([*WITH_BASE, "linear", "slerp"]))
    config: dict[str, Any] = {"merge_method": method, "dtype": "bfloat16"}
    models = ["{1}", "{2}"] if method != "slerp" else ["{1}"]
    if method != "linear":
        config["base_model"] = "{0}"
    top = draw(parameters(method, "top"))
    if "weight" in registry.get(method).parameters and draw(st.integers(0, 9)):
        top.setdefault("weight", draw(WEIGHTS))
    if method == "slerp" and draw(st.integers(0, 9)):
        top.setdefault("t", draw(NUMBERS))
    if top:
        config["parameters"] = top

    def source(model: str, **facts: Any) -> dict[str, Any]:
        given = draw(parameters(method, "model"))
        return {"model": model, **facts, **({"parameters": given} if given else {})}

    def sliced() -> list[dict[str, Any]]:
        slices = []
        for _ in range(draw(st.integers(1, 3))):
            length = draw(st.integers(1, LAYERS))
            sources = []
            for model in [*(["{0}"] if method != "linear" else []), *models]:
                start = draw(st.integers(0, LAYERS - length))
                sources.append(source(model, layer_range=[start, start + length]))
            part = {"sources": draw(st.permutations(sources))}
            given = draw(parameters(method, "slice"))
            slices.append({**part, **({"parameters": given} if given else {})})
        return slices

    def listed() -> list[dict[str, Any]]:
        with_base = method != "linear" and draw(st.booleans())
        return draw(
            st.permutations([source(m) for m in [*models, *(["{0}"] if with_base else [])]])
        )

    form = draw(st.sampled_from(["models", "slices", "modules-models", "modules-slices"]))
    inputs = listed() if form.endswith("models") else sliced()
    key = form.split("-")[-1]
    if form.startswith("modules"):
        given = draw(parameters(method, "module"))
        config["modules"] = {"default": {key: inputs, **({"parameters": given} if given else {})}}
    else:
        config[key] = inputs
    return config


def leaf(formula: Formula) -> Leaf:
    while isinstance(formula, Cast):
        formula = formula.inner
    assert isinstance(formula, Leaf)
    return formula


def compare(ours: Any, theirs: dict[str, Any]) -> None:
    outputs = {o.name: o for o in ours.resolved.outputs}
    assert set(outputs) == set(theirs)
    folders = {
        label: str(checkpoint.path) for label, checkpoint in ours.resolved.checkpoints.items()
    }
    for name, task in theirs.items():
        merge = outputs[name].formula
        names = {
            model.model.path: weight.name
            for model, weight in task.gather_tensors.weight_info.items()
        }
        if isinstance(merge, (Leaf, Cast)):  # an unscaled passthrough
            found = leaf(merge)
            assert {folders[found.checkpoint]: found.tensor} == names, name
            assert task.method_name == "passthrough"
            assert [p["scale"] for p in task.input_parameters.values()] in ([None], [1])
            continue
        assert isinstance(merge, Merge), name
        base = task.base_model.model.path if task.base_model is not None else None
        spec = registry.get(merge.method)
        if spec.base is registry.Base.IGNORED:
            base = None
        if base is not None:
            found = leaf(merge.base)
            assert (folders[found.checkpoint], found.tensor) == (base, names[base]), name
        experts = [leaf(expert) for expert in merge.experts]
        order = [model.model.path for model in task.model_order if model.model.path != base]
        assert [(folders[e.checkpoint], e.tensor) for e in experts] == [
            (path, names[path]) for path in order
        ], name
        built = spec.build(
            dict(merge.shared), [dict(p) for p in merge.per_expert], preset="mergekit"
        )
        for key, number in task.parameters.items():
            assert_same(spec, built, key, number, name)
        each = {model.model.path: given for model, given in task.input_parameters.items()}
        for position, path in enumerate(order):
            for key, number in each[path].items():
                assert_same(spec, built, key, number, name, position)


def assert_same(
    spec: Any, built: Any, key: str, theirs: Any, where: str, position: int | None = None
) -> None:
    if without_effect(key, [spec.name]) is not None:
        assert key not in spec.parameters, where
        return
    parameter = spec.parameters[key]
    mine = getattr(built, parameter.name)
    mine = mine if position is None else mine[position]
    expected = parameter.check(theirs, where, "mergekit")
    assert (
        mine == pytest.approx(expected, rel=1e-12, abs=1e-15)
        if isinstance(expected, float)
        else mine == expected
    ), f"{where}: {key} of input {position} is {mine!r}, mergekit has {expected!r}"


def written(config: Any, folders: list[str]) -> str:
    text = yaml.safe_dump(config)
    for number, folder in enumerate(folders):
        text = text.replace(f"'{{{number}}}'", folder)
    return text


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(recipes())
def test_random_recipes_resolve_to_the_same_numbers(planned, checkpoints, config):
    text = written(config, checkpoints("llama"))
    theirs = None
    with contextlib.suppress(
        RuntimeError, ValueError
    ):  # a missing parameter, or one of the wrong type
        theirs = planned(text)
    ours, problems = None, []
    try:
        ours = weightsmith.plan(text)
        problems = [finding.sentence for finding in ours.errors]
    except WeightsmithError as refusal:
        problems = [str(refusal)]
    event("refused" if theirs is None else "planned")
    if theirs is None:
        assert problems, "mergekit refuses what is planned here"
    else:
        assert not problems
        compare(ours, theirs)


def at(number: int, first: int, last: int, **parameters: Any) -> dict[str, Any]:
    given = {"parameters": parameters} if parameters else {}
    return {"model": f"{{{number}}}", "layer_range": [first, last], **given}


PLANS = {
    "gradient over models": {
        "merge_method": "linear",
        "models": [
            {"model": "{1}", "parameters": {"weight": [0, 1]}},
            {"model": "{2}", "parameters": {"weight": [1, 0.5, 1]}},
        ],
    },
    "base that is not listed": {
        "merge_method": "ties",
        "base_model": "{0}",
        "models": [{"model": "{2}"}, {"model": "{1}"}],
        "parameters": {"weight": [0.1, 1], "density": 0.5},
    },
    "stack": {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [at(0, 0, 3)]},
            {"sources": [at(1, 1, 4)]},
            {"sources": [at(2, 3, 4)]},
        ],
    },
    "scaled stack": {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [at(0, 0, 2)]},
            {
                "sources": [
                    at(
                        0,
                        1,
                        4,
                        scale=[
                            {"filter": "o_proj", "value": 0},
                            {"filter": "down_proj", "value": 0},
                            {"value": 1},
                        ],
                    )
                ]
            },
        ],
    },
    "slerp with filters": {
        "merge_method": "slerp",
        "base_model": "{0}",
        "slices": [{"sources": [at(0, 0, 4), at(1, 0, 4)]}],
        "parameters": {
            "t": [
                {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
                {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
                {"value": 0.5},
            ]
        },
    },
    "slices of one layer": {
        "merge_method": "linear",
        "slices": [
            {"sources": [at(0, 3, 4, weight=[0.25, 0.75]), at(1, 0, 1, weight=1)]},
            {"sources": [at(1, 2, 4, weight=[0.25, 0.75]), at(2, 0, 2, weight=0.5)]},
        ],
    },
    "reordered layers with a base": {
        "merge_method": "task_arithmetic",
        "base_model": "{0}",
        "slices": [
            {"sources": [at(1, 2, 4), at(0, 2, 4)]},
            {"sources": [at(0, 0, 2), at(2, 0, 2, weight=0.5)], "parameters": {"lambda": [0.5, 1]}},
        ],
        "parameters": {"weight": 1},
    },
}


@pytest.mark.parametrize("family", ["llama", "llama-tied", "mistral", "qwen2", "gpt2"])
@pytest.mark.parametrize("plan", PLANS)
def test_plans_have_the_same_tensors_sources_and_positions(planned, checkpoints, family, plan):
    text = written({**PLANS[plan], "dtype": "bfloat16"}, checkpoints(family))
    ours = weightsmith.plan(text)
    assert not ours.errors
    compare(ours, planned(text))
