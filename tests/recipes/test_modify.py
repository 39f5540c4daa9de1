"""`modify:` in recipes: levels, refusals, round trips, and merges on disk that agree with merges in memory."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import weightsmith
from weightsmith.engine.planning.plan import require_runnable
from weightsmith.engine.planning.plan_making import make_plan
from weightsmith.errors import RecipeError
from weightsmith.inspection.explanation import explain_tensor
from weightsmith.inspection.plan_summary import summarize_plan
from weightsmith.methods.parts import modifiers, registry
from weightsmith.methods.parts.registry import REQUIRED
from weightsmith.recipes import Recipe, load
from weightsmith.recipes.language.modifier_calls import Modification
from weightsmith.recipes.resolution.formula import Leaf

NORM = "model.norm.weight"
Q = "model.layers.{}.self_attn.q_proj.weight"
HEAD = "weightsmith: 1\nbase_model: base\nmodels: [{model: a}, {model: b}]\n"


@pytest.fixture
def three(make):
    for name in ("base", "a", "b"):
        make(name)


# Resolution -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("three")
def test_the_closest_level_says_which_modifiers_apply(solve):
    solved = solve(
        HEAD
        + """
merge_method: ties
modify: [{clip: {limit: 2}}, coordinate_median]
rules:
  - {match: {role: attention.q}, modify: [{sparsify: {density: 0.5}}]}
  - {match: {role: norm}, modify: []}
"""
    )
    assert not solved.found()
    chain = (Modification("clip", (("limit", 2.0),)), Modification("coordinate_median", ()))
    assert solved.formula("model.layers.0.mlp.up_proj.weight").modifiers == chain
    q = solved.formula(Q.format(1))
    assert q.modifiers == (Modification("sparsify", (("density", 0.5),)),)
    assert q.origin == q.base == Leaf("base", Q.format(1))
    assert solved.formula(NORM).modifiers == ()
    assert solved.formula(NORM).origin is None


@pytest.mark.usefixtures("three")
def test_slices_and_modules_have_their_own(solve):
    sliced = solve(
        """
weightsmith: 1
merge_method: linear
base_model: base
modify: [winsorize]
slices:
  - {sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}], modify: [clip]}
  - {sources: [{model: a, layer_range: [2, 4]}, {model: b, layer_range: [2, 4]}], modify: []}
"""
    )
    assert not sliced.found()
    assert [m.modifier for m in sliced.formula(Q.format(0)).modifiers] == ["clip"]
    assert sliced.formula(Q.format(0)).origin == Leaf("base", Q.format(0))
    assert sliced.formula(Q.format(3)).modifiers == ()


@pytest.mark.usefixtures("three")
def test_a_module_can_say_it_for_all_of_its_tensors(solve):
    solved = solve(
        HEAD.replace("models: [{model: a}, {model: b}]\n", "")
        + """
merge_method: linear
modules:
  decoder:
    match: {name: "*"}
    models: [{model: a}, {model: b}]
    modify: [clip]
""".replace('"*"', "'.'")
    )
    assert not solved.found()
    assert [m.modifier for m in solved.formula(NORM).modifiers] == ["clip"]


@pytest.mark.usefixtures("three")
def test_parameters_of_modifiers_can_change_with_depth_and_role(solve):
    solved = solve(
        HEAD
        + """
merge_method: task_arithmetic
modify:
  - sparsify:
      density:
        - {match: {role: norm}, value: 1.0}
        - {value: [0.2, 0.8]}
"""
    )
    assert dict(solved.formula(Q.format(0)).modifiers[0].parameters) == {"density": 0.2}
    assert dict(solved.formula(Q.format(3)).modifiers[0].parameters) == {"density": 0.8}
    assert dict(solved.formula(NORM).modifiers[0].parameters) == {"density": 1.0}


@pytest.mark.usefixtures("three")
def test_a_method_without_a_base_is_modified_against_the_base(solve):
    merge = solve(HEAD + "merge_method: linear\nmodify: [clip]\n").formula(NORM)
    assert merge.base is None
    assert merge.origin == Leaf("base", NORM)
    assert merge.labels == ("a", "b")
    robust = solve(HEAD + "merge_method: linear\nmodify: [winsorize]\n").formula(NORM)
    assert robust.origin is None


@pytest.mark.usefixtures("three")
def test_a_modified_passthrough_is_no_copy(solve):
    text = "weightsmith: 1\nmerge_method: passthrough\nbase_model: base\nmodels: [{model: a}]\n"
    assert solve(text).formula(NORM) == Leaf("a", NORM)
    merge = solve(text + "modify: [{sparsify: {density: 0.1}}]\n").formula(NORM)
    assert merge.modifiers[0].modifier == "sparsify"


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("modify: [clips]", r"modify\[0\].*no modifier called 'clips'; did you mean clip"),
        ("modify: [ties]", "ties is a merge method"),
        ("modify: [{clip: {limits: 2}}]", "clip has no parameter 'limits'; it has limit"),
        ("modify: [{clip: {limit: -2}}]", "limit must lie in"),
        ("modify: [sparsify]", "sparsify needs the parameter 'density'"),
        ("rules: [{match: {role: norm}, modify: [clops]}]", r"rules\[0\].modify\[0\]"),
    ],
)
def test_mistakes_are_refused(text, sentence, tmp_path):
    recipe = HEAD.replace("base_model: base", f"base_model: {tmp_path / 'base'}")
    for name in "ab":
        recipe = recipe.replace(f"{{model: {name}}}", f"{{model: {tmp_path / name}}}")
    with pytest.raises(RecipeError, match=sentence):
        require_runnable(make_plan(load(recipe + "merge_method: linear\n" + text + "\n")))


@pytest.mark.usefixtures("three")
def test_a_modifier_that_measures_from_the_base_needs_one(solve):
    text = "weightsmith: 1\nmerge_method: linear\nmodels: [{model: a}, {model: b}]\n"
    assert solve(text + "modify: [clip]\n").formula(NORM).origin is None
    with pytest.raises(RecipeError, match="modifier sparsify needs a base; give `base_model:`"):
        solve(text + "modify: [{sparsify: {density: 0.5}}]\n")


def test_expressions_and_mergekit_have_no_place_for_it():
    with pytest.raises(RecipeError, match="rules and modify do not apply"):
        load("weightsmith: 1\nexpression: a\ncheckpoints: {a: a}\nmodify: [clip]\n")
    with pytest.raises(RecipeError, match="'modify' belongs to native recipes"):
        load("merge_method: linear\nmodels: [{model: a}]\nmodify: [clip]\n")


@pytest.mark.parametrize(
    ("where", "path"),
    [
        ("modify: [clip]\nmodels: [{model: a, parameters: {weight: 1}}]", "`modify`"),
        (
            "slices: [{sources: [{model: a, layer_range: [0, 1]}], modify: [clip]}]",
            r"`slices\[0\].modify`",
        ),
    ],
)
def test_mergekit_cannot_express_it(where, path):
    with pytest.raises(RecipeError, match=f"mergekit cannot express {path}"):
        load(f"weightsmith: 1\nmerge_method: linear\n{where}\n").to_mergekit()


def test_dump_and_load_are_inverse_and_the_digest_tells_recipes_apart():
    text = HEAD + "merge_method: ties\nmodify: [{clip: {limit: 2.0}}, winsorize]\n"
    recipe = load(text)
    assert load(recipe.dump()) == recipe
    assert recipe.to_mapping()["modify"] == [{"clip": {"limit": 2}}, {"winsorize": {}}]
    off = load(text + "rules: [{match: {role: norm}, modify: []}]\n")
    assert load(off.dump()).document.rules[0].modify == ()
    digests = {r.digest() for r in (recipe, off, load(HEAD + "merge_method: ties\n"))}
    assert len(digests) == 3


# Expressions ------------------------------------------------------------------------------------------------------


def expression(text):
    names = ("base", "a", "b")
    return f"weightsmith: 1\nexpression: {text}\ncheckpoints: {{{', '.join(f'{n}: {n}' for n in names)}}}\n"


@pytest.mark.usefixtures("three")
def test_methods_in_expressions_take_modifiers(solve):
    text = '"0.5 * base + 0.5 * ties(base, a, b, modify=[clip(limit=2), winsorize], density=0.4)"'
    merge = solve(expression(text)).formula(NORM).terms[1][1]
    chain = (Modification("clip", (("limit", 2.0),)), Modification("winsorize", ()))
    assert merge.modifiers == chain
    assert merge.origin == merge.base == Leaf("base", NORM)
    linear = solve(expression('"linear(a, b, base=base, modify=clip)"')).formula(NORM)
    assert (linear.base, linear.origin) == (None, Leaf("base", NORM))


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "linear(a, b, modify=[sparsify(density=0.5)])",
            "modifier sparsify needs a base; add `base=`",
        ),
        ("linear(a, b, modify=[clip(2)])", "`clip.2.` is no modifier"),
        ("linear(a, b, modify=[a + b])", "`a . b` is no modifier"),
        ("linear(a, b, modify=[clop()])", "no modifier called 'clop'; did you mean clip"),
        ("linear(a, b, modify=[clip(limits=2)])", "clip has no parameter 'limits'"),
        ("linear(a, b, base=base)", "gives a base, but linear has none"),
    ],
)
def test_mistakes_in_expressions_are_refused(solve, text, sentence):
    with pytest.raises(RecipeError, match=sentence):
        solve(expression(f'"{text}"'))


def test_modifiers_are_functions_in_python(family, tmp_path):
    from weightsmith.recipes.language.expressions import checkpoint, methods
    from weightsmith.recipes.language.modifier_calls import modifiers as modifying

    base, *experts = (checkpoint(family / name) for name in ("base", "a", "b", "c"))
    made = methods.linear(*experts, base=base, modify=[modifying.clip(limit=0.5, scope="layer")])
    found = on_disk(Recipe.from_expression(made), tmp_path / "out")
    step = {"clip": {"limit": 0.5, "scope": "layer"}}
    same = on_disk(recipe_for(family, "linear", modify=[step]), tmp_path / "same")
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, same[name])


# On disk ----------------------------------------------------------------------------------------------------------

LAYERS = 3


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Folders `base`, `a`, `b`, `c` of a small model with different changes in different layers."""
    root = tmp_path_factory.mktemp("family")
    rng = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (8, 4), NORM: (4,), "lm_head.weight": (8, 4)}
    for i in range(LAYERS):
        shapes[f"model.layers.{i}.input_layernorm.weight"] = (4,)
        shapes[Q.format(i)] = (4, 4)
        shapes[f"model.layers.{i}.mlp.down_proj.weight"] = (4, 6)
    base = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    states = {"base": base}
    for name, strength in (("a", (0.1, 0.9, 0.1)), ("b", (0.8, 0.1, 0.9)), ("c", (0.5, 0.5, 0.5))):
        states[name] = {}
        for n, tensor in base.items():
            layer = int(n.split(".")[2]) if ".layers." in n else 0
            change = strength[layer] * rng.normal(size=tensor.shape)
            states[name][n] = (tensor + change).astype(np.float32)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    config |= {"num_hidden_layers": LAYERS, "vocab_size": 8, "tie_word_embeddings": False}
    for name, state in states.items():
        (root / name).mkdir()
        save_file(state, root / name / "model.safetensors")
        (root / name / "config.json").write_text(json.dumps(config))
    return root


def recipe_for(family, method, models="abc", **more):
    spec = registry.get(method)
    low, high = spec.experts
    count = min(len(models), high or len(models))
    needs_base = spec.base is not registry.Base.IGNORED or "modify" in more or "then" in more
    return {
        "weightsmith": 1,
        "merge_method": method,
        "models": [{"model": str(family / m)} for m in models[: max(low, count)]],
        **({"base_model": str(family / "base")} if needs_base else {}),
        **more,
    }


def on_disk(recipe, out, **options):
    weightsmith.merge(recipe, out, threads=2, **options)
    return {
        name: tensor
        for file in sorted(out.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def in_memory(family, method, models="abc", *, base=True, **how):
    def state(name):
        read = load_file(family / name / "model.safetensors")
        return {n: torch.from_numpy(t) for n, t in read.items()}

    labels = [str(family / m) for m in models]
    merged = weightsmith.merge_state_dicts(
        method,
        [state(m) for m in models],
        base=state("base") if base else None,
        labels=labels,
        **how,
    )
    return {n: t.numpy() for n, t in merged.items()}


CHAINS = [
    ("linear", ["coordinate_median"]),
    ("linear", [{"trimmed": {"k": 1}}]),
    ("soup", [{"clip": {"scope": "model", "reference": "smallest"}}]),
    ("ties", [{"clip": {"scope": "layer"}}, {"scale_by_depth": {"alpha": 0.2}}]),
    ("task_arithmetic", [{"sparsify": {"density": 0.4, "scope": "model", "rescale": "l1"}}]),
    ("layer_importance", [{"clip": {"scope": "layer"}}]),
]


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize(("method", "modify"), CHAINS, ids=lambda x: str(x)[:40])
def test_merges_on_disk_are_merges_in_memory(family, tmp_path, method, modify, backend):
    _require(backend)
    found = on_disk(recipe_for(family, method, modify=modify), tmp_path / "out", backend=backend)
    expected = in_memory(family, method, modify=modify)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, expected[name], rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("transition", [0, 1])
def test_measured_layer_swapping_on_disk_moves_whole_layers(family, tmp_path, backend, transition):
    _require(backend)
    parameters = {"select": "measured", "transition": transition}
    recipe = recipe_for(family, "layer_swapping", "ab", parameters=parameters)
    found = on_disk(recipe, tmp_path / "out", backend=backend)
    states = {m: load_file(family / m / "model.safetensors") for m in "ab"}
    for name, tensor in found.items():
        if transition and ".layers.1." in name:
            expected = in_memory(family, "layer_swapping", "ab", parameters=parameters)[name]
        else:
            expected = states["a" if ".layers.1." in name else "b"][name]
        np.testing.assert_array_equal(tensor, expected, err_msg=name)


def test_the_plan_counts_the_pass_over_the_layers(family):
    recipe = recipe_for(family, "layer_swapping", "ab", parameters={"select": "measured"})
    plan = make_plan(Recipe.load(recipe))
    by_name = {t.output.name: t for t in plan.tensors}
    assert by_name[Q.format(1)].work.passes == 2
    assert by_name[Q.format(1)].work.model_scope
    # The final norm has the shape of the norms in the layers, but no part in their statistics.
    assert by_name[NORM].work.passes == 1
    assert not by_name[NORM].work.model_scope


def _require(backend):
    if backend == "native":
        native = pytest.importorskip("weightsmith.graph.backends.native")
        if not native.available():
            pytest.skip("the native library is not built")


@pytest.mark.parametrize("method", registry.names())
def test_modifiers_and_post_steps_compose_with_every_method(family, tmp_path, method):
    spec = registry.get(method)
    if any(d is REQUIRED and spec.parameters[k].kind is str for k, d in spec.defaults().items()):
        pytest.skip("needs the name of something that this family does not have")
    parameters = {k: 0.4 for k, d in spec.defaults().items() if d is REQUIRED}
    more = {"modify": ["clip"], "parameters": parameters}
    then = [{"lines": {"alpha": 0.5}}]
    try:
        found = on_disk(recipe_for(family, method, then=then, **more), tmp_path / "scaled")
    except RecipeError as refusal:
        assert "statistics" in str(refusal)  # noqa: PT017
        return
    plain = on_disk(recipe_for(family, method, **more), tmp_path / "plain")
    base = load_file(family / "base" / "model.safetensors")
    for name, tensor in found.items():
        layer = int(name.split(".")[2]) if ".layers." in name else 0
        scale = 0.5 + 0.5 * layer / (LAYERS - 1)
        expected = base[name] + scale * (plain[name] - base[name])
        np.testing.assert_allclose(tensor, expected, rtol=1e-5, atol=1e-5, err_msg=name)


# What is shown ----------------------------------------------------------------------------------------------------


def test_an_explanation_shows_modifiers_with_their_parameters(family):
    recipe = recipe_for(family, "linear", modify=[{"clip": {"limit": 1.5}}])
    plan = make_plan(Recipe.load(recipe))
    told = explain_tensor(plan, NORM)
    (modifier,) = told.to_mapping()["formula"]["modifiers"]
    assert modifier["modifier"] == "clip"
    assert modifier["parameters"]["limit"] == {"value": 1.5, "from": "given"}
    assert modifier["parameters"]["scope"] == {"value": "tensor", "from": "default"}
    assert told.to_mapping()["formula"]["origin"]["checkpoint"] == str(family / "base")
    text = "\n".join(told.lines)
    assert "experts modified by clip, Norm clipping (Sun et al., 2019" in text
    assert "limit = 1.5, reference = median (default)" in text
    assert summarize_plan(plan).steps[0].what == "clip > linear"


def test_the_card_names_modifiers_with_their_papers(family, tmp_path):
    on_disk(recipe_for(family, "linear", modify=[{"clip": {"limit": 1.5}}]), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "clip" in card
    assert "arXiv:1911.07963" in card


def test_every_modifier_has_a_formula_to_explain():
    from weightsmith.inspection.explanation import formula_of

    for name in modifiers.names():
        assert "=" in "\n".join(formula_of(modifiers.get(name)))
