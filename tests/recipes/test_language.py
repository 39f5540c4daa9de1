"""What a recipe may say, and how everything else is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from weightsmith.errors import RecipeError
from weightsmith.findings import Severity
from weightsmith.recipes import Recipe, load, override
from weightsmith.recipes.language.recipe import load as load_with_name

NATIVE = "weightsmith: 1\nmerge_method: linear\nmodels: [{model: a}, {model: b}]\n"
THEIRS = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"


def refusal(text: str, **options: object) -> str:
    with pytest.raises(RecipeError) as caught:
        load(text, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["empty"]),
        ("- a\n- b\n", ["line 1", "a recipe is a mapping"]),
        ("a: [1\nb: 2\n", ["line 2", "not valid YAML"]),
        (NATIVE + "merge_method: ties\n", ["line 4, column 1", "'merge_method' is given twice"]),
        (NATIVE + "parameters: {1: 2}\n", ["key must be text"]),
        (NATIVE + "seed: 12:30\n", ["base 60"]),
        (NATIVE + "seed: !!python/object:os.system x\n", ["tag"]),
        (NATIVE + "dtyp: float16\n", ["line 4", "unknown key 'dtyp'", "'dtype'"]),
        (
            NATIVE + "dtype: float17\n",
            ["line 4", "'float17' is not a dtype: use one of float64", "float8_e5m2."],
        ),
        (NATIVE + "base: c\n", ["unknown key 'base'; did you mean 'base_model'?"]),
        (NATIVE + "size: 5GB\n", ["unknown key 'size'; did you mean 'shard_size'?"]),
        (NATIVE + "tokenizer: union\n", ["not 'union'; write `{source: union}`"]),
        (
            NATIVE + "rules: [{match: {rol: norm}, keep: a}]\n",
            ["rules[0].match.rol: unknown key 'rol'; did you mean 'role'?"],
        ),
        (NATIVE + "seed: -1\n", ["seed"]),
        (NATIVE + "seed: yes\n", ["seed", "whole number"]),
        (NATIVE + "nonfinite: maybe\n", ["nonfinite"]),
        (NATIVE + "untie: 1\n", ["untie", "true or false"]),
        (NATIVE + "weightsmith_version: 2\n", ["unknown key"]),
        (NATIVE.replace("1", "2"), ["weightsmith"]),
        (NATIVE + "slices: [{sources: [{model: a, layer_range: [0, 1]}]}]\n", ["exactly one of"]),
        ("weightsmith: 1\nmerge_method: linear\n", ["none is given"]),
        ("weightsmith: 1\nmodels: [{model: a}]\n", ["merge_method is missing"]),
        (
            NATIVE.replace("linear", "liner"),
            ["line 2, column 1: merge_method", "'liner'", "did you mean linear"],
        ),
        (NATIVE.replace("{model: b}", "{modle: b}"), ["unknown key 'modle'", "'model'"]),
        (NATIVE.replace("{model: b}", "{}"), ["'model' is missing"]),
        (NATIVE.replace("{model: b}", "{model: b, weight: 1}"), ["under `parameters:`"]),
        (NATIVE.replace("{model: b}", "b"), ["expected a mapping of keys", "write `model: b`"]),
        (
            NATIVE.replace("model: b", "model: 7"),
            ["models[1].model", "a path, a Hub id or a mapping"],
        ),
        (NATIVE.replace("model: b", "model: ''"), ["empty text"]),
        (NATIVE.replace("model: b", "model: b@c@d"), ["PATH@REVISION"]),
        (NATIVE.replace("model: b", "model: b++c"), ["empty part beside a `+`"]),
        (NATIVE.replace("model: b", "model: +c"), ["empty part beside a `+`"]),
        (NATIVE.replace("model: b", "model: b+c@d@e"), ["PATH@REVISION"]),
        (NATIVE.replace("model: b", "model: {model: b+c, lora: d}"), ["one of the two places"]),
        (NATIVE.replace("model: b", "model: {model: b, lora: {path: c, scale: x}}"), ["scale"]),
        (NATIVE.replace("model: b", "model: {model: b, lora: {pth: c}}"), ["An adapter must be"]),
        (NATIVE.replace("model: b", "model: {model: b, typo: c}"), ["'typo'"]),
        (NATIVE + "parameters: {wieght: 1}\n", ["no parameter 'wieght'", "'weight'"]),
        (
            NATIVE + "parameters: {density: 1}\n",
            ["line 4, column 14: parameters.density", "linear has no parameter 'density'"],
        ),
        (NATIVE + "parameters: 3\n", ["parameters"]),
        (NATIVE + "parameters: {weight: [1, {value: 2}]}\n", ["not both"]),
        (NATIVE + "parameters: {weight: {filter: a}}\n", ["'value' is missing"]),
        (NATIVE + "parameters: {weight: {value: 1, fliter: a}}\n", ["'fliter'", "'filter'"]),
        (NATIVE + "parameters: {weight: {value: 1, match: {}}}\n", ["match: is empty"]),
        (NATIVE + "parameters: {weight: {value: 1, filter: a, match: {role: mlp}}}\n", ["either"]),
        (NATIVE + "parameters: {weight: {value: 1, match: {role: atention}}}\n", ["'attention'"]),
        (NATIVE + "parameters: {weight: {value: 1, match: {name: '['}}}\n", ["malformed"]),
        (NATIVE + "parameters: {weight: {value: 1, match: {layers: [3, 3]}}}\n", ["first < end"]),
        (NATIVE + "rules: [{match: {role: mlp}}]\n", ["a rule has either"]),
        (NATIVE + "rules: [{match: {role: mlp}, keep: a, merge_method: ties}]\n", ["either keep"]),
        (NATIVE + "then: [{lines: {}, truncate: {}}]\n", ["one method"]),
        (NATIVE + "then: [{lienar: {}}]\n", ["'lienar'"]),
        (NATIVE + "then: [{truncate: {rnak: 2}}]\n", ["'rnak'"]),
        (NATIVE + "assert: [{finite: false}]\n", ["finite"]),
        (NATIVE + "assert: [{finite: true, norm_ratio: {}}]\n", ["one of finite"]),
        (NATIVE + "assert: [{norm_ratio: {low: 2, high: 1}}]\n", ["interval"]),
        (NATIVE + "expression: a + b\n", ["exactly one of"]),
        (NATIVE + "checkpoints: {a: b}\n", ["belongs to an expression"]),
        (NATIVE + "tokenizer_source: base\ntokenizer: {source: base}\n", ["exclude each other"]),
        ("weightsmith: 1\nexpression: a\n", ["needs `checkpoints:`"]),
        (
            "weightsmith: 1\nexpression: a\ncheckpoints: {a: x}\nparameters: {t: 1}\n",
            ["expression"],
        ),
        (NATIVE.replace("models:", "models: []\nmodel_list:"), ["unknown key"]),
        (THEIRS + "normalize: true\n", ["mergekit would ignore", "under `parameters:`"]),
        (THEIRS + "rules: []\n", ["native recipes", "`weightsmith: 1`"]),
        (THEIRS + "semantics: paper\n", ["native recipes"]),
        (THEIRS.replace("weight", "wieght"), ["mergekit would ignore", "'weight'"]),
        (THEIRS.replace("weight: 1", "weight: {value: 1, match: {role: mlp}}"), ["native recipes"]),
    ],
)
def test_mistakes_are_refused_in_one_sentence(text, parts):
    message = refusal(text)
    for part in parts:
        assert part in message


@pytest.mark.parametrize("other", ["", ", {model: a, layer_range: [0, 1]}"])
def test_a_refused_source_is_one_mistake_and_not_a_short_list_too(other):
    source = f"{{model: a++b, layer_range: [0, 1]}}{other}"
    message = refusal(f"weightsmith: 1\nmerge_method: linear\nslices: [{{sources: [{source}]}}]\n")
    assert "empty part beside a `+`" in message
    assert "at least" not in message


def test_an_empty_list_of_sources_is_a_mistake():
    text = "weightsmith: 1\nmerge_method: linear\nslices: [{sources: []}]\n"
    assert "give at least one" in refusal(text)


def test_the_advice_for_a_misspelt_parameter_is_one_sentence():
    message = refusal(NATIVE + "parameters: {wieght: 1}\n")
    assert message.endswith(
        "no parameter 'wieght'; write 'weight' if that is meant, or leave it out."
    )


@pytest.mark.parametrize("text", [NATIVE, THEIRS])
def test_an_architecture_that_is_overridden_is_noted_as_without_effect(text):
    assert not load(text).findings
    model = "{model: {path: a}, override_architecture: LlamaForCausalLM}"
    changed = text.replace("model: a", f"model: {model}", 1)
    (finding,) = load(changed).findings
    assert (finding.severity, finding.code) == (Severity.NOTE, "unused-key")
    assert "override_architecture is accepted and never used" in finding.message


def test_a_mistake_in_a_file_is_placed_by_line_and_column(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("weightsmith: 1\nmerge_method: linear\nmodels:\n  - model: a\n    wieght: 3\n")
    assert f"{path}, line 5, column 5: models[0].wieght" in refusal(path)


def test_several_mistakes_are_told_together():
    message = refusal(NATIVE + "untie: 1\nseed: x\n")
    assert "untie" in message
    assert "seed" in message


def test_a_missing_file_is_not_taken_for_text(tmp_path):
    assert "cannot be read" in refusal(str(tmp_path / "none.yaml"))
    assert "cannot be read" in refusal("none.yaml")


def test_deep_nesting_and_alias_bombs_are_refused_quickly():
    assert "deep" in refusal("a: " + "[" * 5000 + "]" * 5000)
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for i in range(1, 12):
        bomb += f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n"
    assert "aliases" in refusal(bomb)
    assert "deep" in refusal("a: &a [*a]\n")


def test_anchors_and_merge_keys_work():
    recipe = load(
        "x: 1\n".replace("x: 1\n", "") + "weightsmith: 1\nmerge_method: linear\nmodels:\n"
        "  - &first {model: a, parameters: {weight: 2}}\n  - {<<: *first, model: b}\n"
    )
    assert str(recipe.document.models[1].model) == "b"
    assert recipe.document.models[1].parameters == {"weight": 2}


def test_a_native_recipe_takes_1e_5_as_a_number_without_a_word():
    recipe = load(NATIVE.replace("model: b", "model: b, parameters: {weight: 1e-5}"))
    assert recipe.document.models[1].parameters == {"weight": 1e-5}
    assert recipe.findings == ()


def test_mergekits_dialect_notes_numbers_that_yaml_reads_as_text():
    recipe = load(THEIRS.replace("weight: 1", "weight: 1e-5"))
    (note,) = recipe.findings
    assert note.code == "number-as-text"
    assert "line 3" in note.message


IDLE = {"density": 0.2, "rescale": "l1", "int8_mask": True}


@pytest.mark.parametrize(("native", "severity"), [(True, "warning"), (False, "note")])
def test_parameters_of_mergekit_that_do_nothing_are_named(native, severity):
    model = {"model": "b", "parameters": {"weight": 1, "density": 0.5}}
    document = {"merge_method": "task_arithmetic", "base_model": "a", "models": [model]}
    document |= {"parameters": IDLE} | ({"weightsmith": 1} if native else {})
    recipe = Recipe.load(document)
    found = {f.subject: f.severity.value for f in recipe.findings if f.code == "unused-parameter"}
    assert found == dict.fromkeys(
        [*(f"parameters.{key}" for key in IDLE), "models[0].parameters.density"], severity
    )
    assert all("has no effect, because" in f.message for f in recipe.findings)


def test_a_parameter_that_does_something_elsewhere_is_refused_in_a_native_recipe():
    document = {
        "weightsmith": 1,
        "merge_method": "linear",
        "models": [{"model": "b"}],
        "parameters": {"density": 0.5},
    }
    with pytest.raises(RecipeError, match="linear has no parameter 'density'"):
        Recipe.load(document)


def test_mergekits_dialect_warns_of_parameters_without_effect():
    recipe = load(THEIRS.replace("weight: 1", "weight: 1, density: 0.5, int8_mask: true"))
    found = {finding.subject: finding.severity.value for finding in recipe.findings}
    assert found == {"parameters.density": "warning", "parameters.int8_mask": "note"}


def test_a_shared_parameter_of_one_model_is_refused_natively_and_a_warning_in_the_dialect():
    text = "merge_method: slerp\nbase_model: a\nmodels: [{model: b, parameters: {t: 0.5}}]\n"
    assert "one value for the whole merge" in refusal("weightsmith: 1\n" + text)
    (finding,) = load(text).findings
    assert finding.severity.value == "warning"


def test_legacy_words_and_spellings_of_the_dialect_are_named():
    recipe = load(THEIRS.replace("weight: 1", "weight: 1, embed_slerp: true") + "dtype: bf16\n")
    assert {finding.code for finding in recipe.findings} == {"unused-parameter", "dtype-spelling"}
    assert recipe.document.dtype == "bfloat16"


def test_the_dialect_decides_the_semantics():
    assert load(THEIRS).semantics == "mergekit"
    assert load(NATIVE).semantics == "paper"
    assert load(NATIVE + "semantics: mergekit\n").semantics == "mergekit"


def test_models_are_written_as_text_or_mappings():
    recipe = load(
        NATIVE.replace("model: b", "model: {model: {path: org/b, revision: v2}}").replace(
            "model: a", "model: org/a@main"
        )
    )
    assert [str(entry.model) for entry in recipe.document.models] == ["org/a@main", "org/b@v2"]


def test_a_local_path_that_exists_may_hold_plus_and_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a+b@c").mkdir()
    recipe = load(NATIVE.replace("model: b", "model: a+b@c"))
    assert recipe.document.models[1].model.path == "a+b@c"
    Path("a+b@c").rmdir()
    assert load(recipe.dump()) == recipe


def test_mappings_from_python_may_hold_paths_and_tuples():
    recipe = load(
        {"weightsmith": 1, "merge_method": "linear", "models": ({"model": Path("x/a")},), "seed": 1}
    )
    assert str(recipe.document.models[0].model) == "x/a"


def test_overrides_change_single_values():
    recipe = load(
        NATIVE, overrides=["parameters.weight=0.3", "models.1.model=c", "dtype=float16", "seed=7"]
    )
    assert recipe.document.parameters == {"weight": 0.3}
    assert str(recipe.document.models[1].model) == "c"
    assert (recipe.document.dtype, recipe.document.seed) == ("float16", 7)


def test_overrides_leave_the_given_document_alone():
    document = {"parameters": {"t": [1, 2]}}
    assert override(document, ["parameters.t.0=5"]) == {"parameters": {"t": [5, 2]}}
    assert document == {"parameters": {"t": [1, 2]}}


@pytest.mark.parametrize(
    "text", ["weight", "=3", "a..b=1", "models.9.model=x", "models.x=1", "merge_method.x=1", "a=[1"]
)
def test_overrides_that_lead_nowhere_are_refused(text):
    assert "override" in refusal(NATIVE, overrides=[text])


MULTI = """
name: first
merge_method: linear
models: [{model: a}, {model: b}]
parameters: {weight: 1}
---
merge_method: slerp
base_model: first
models: [{model: c}]
parameters: {t: 0.5}
"""


def test_documents_refer_to_each_other_by_name():
    recipe = load(MULTI)
    assert recipe.document.merge_method == "slerp"
    assert recipe.document.base_model.merge_method == "linear"
    assert recipe.document.base_model.semantics == "mergekit"
    assert load(recipe.dump()) == recipe
    assert load_with_name(MULTI, name="first").document.merge_method == "linear"


def test_documents_that_refer_to_each_other_in_a_circle_are_refused():
    text = MULTI.replace("model: a}", "model: second}").replace("---\n", "---\nname: second\n")
    assert "refer to each other" in refusal(text, name="first")


def test_the_result_of_several_documents_must_be_clear():
    assert "no `name:`" in refusal(THEIRS + "---\n" + THEIRS)
    assert "is not clear" in refusal(f"name: x\n{THEIRS}---\nname: y\n{THEIRS}")
    assert "called 'x'" in refusal(f"name: x\n{THEIRS}---\nname: x\n{THEIRS}")
    assert "no merge called 'frist'" in refusal(MULTI, name="frist")


def test_a_recipe_file_inside_a_recipe_is_read_relative_to_it(tmp_path):
    (tmp_path / "sub" / "m").mkdir(parents=True)
    (tmp_path / "sub" / "inner.yaml").write_text(
        "merge_method: linear\nmodels: [{model: m}, {model: org/x}]\nparameters: {weight: 1}\n"
    )
    outer = tmp_path / "outer.yaml"
    outer.write_text("weightsmith: 1\nmerge_method: linear\nmodels: [{model: sub/inner.yaml}]\n")
    inner = load(outer).document.models[0].model
    assert inner.semantics == "mergekit"
    assert [str(entry.model) for entry in inner.models] == ["sub/m", "org/x"]


def test_all_paths_of_a_recipe_inside_are_meant_from_its_own_folder(tmp_path):
    for name in ("m", "lora", "b+c"):
        (tmp_path / "sub" / name).mkdir(parents=True)
    (tmp_path / "sub" / "s.safetensors").touch()
    (tmp_path / "sub" / "inner.yaml").write_text(
        "weightsmith: 1\nmerge_method: fisher\nmodels:\n"
        "- {model: m+lora:2, statistics: s.safetensors}\n"
        "- {model: {model: m, lora: lora}}\n- {model: b+c+lora}\n"
    )
    outer = tmp_path / "outer.yaml"
    outer.write_text("weightsmith: 1\nmerge_method: linear\nmodels: [{model: sub/inner.yaml}]\n")
    first, second, third = load(outer).document.models[0].model.models
    assert str(first.model) == "sub/m+sub/lora:2.0"
    assert [str(file) for file in first.statistics] == ["sub/s.safetensors"]
    assert str(second.model) == "sub/m+sub/lora"
    assert (third.model.path, third.model.adapters[0].path) == ("sub/b+c", "sub/lora")


def test_recipe_files_that_contain_themselves_are_refused(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("weightsmith: 1\nmerge_method: linear\nmodels: [{model: r.yaml}]\n")
    assert "contains itself" in refusal(path)


def test_digests_depend_on_meaning_and_not_on_writing():
    spread = "models:\n- {model: a}\n- {model: b}\nmerge_method: linear\nweightsmith: 1\n"
    assert load(NATIVE).digest() == load(spread).digest()
    assert load(NATIVE).digest() != load(NATIVE + "seed: 1\n").digest()


SCALARS = st.one_of(
    st.integers(-3, 3), st.floats(-1e3, 1e3), st.sampled_from([1e-5, 5e-324, 1e300, 0.1])
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, min_size=1, max_size=4))
MATCHES = st.sampled_from(
    [
        {"role": "mlp"},
        {"role": ["attention", "norm"], "layers": [0, 3]},
        {"name": "q_proj|[a-c]+"},
        {"glob": "model.*.weight"},
    ]
)
CONDITIONS = st.fixed_dictionaries({"value": VALUES}, optional={"filter": st.text(max_size=6)}) | (
    st.fixed_dictionaries({"value": VALUES, "match": MATCHES})
)
SETTINGS = st.one_of(VALUES, st.lists(CONDITIONS, min_size=1, max_size=3))
PARAMETERS = st.fixed_dictionaries({}, optional={"weight": SETTINGS, "normalize": st.booleans()})
OWN = st.fixed_dictionaries({}, optional={"weight": SETTINGS})
NAMES = st.sampled_from(["a", "org/b", "c@main", "./d", "~/e", "yes", "1e-5", "null", "2024-01-01"])
MODELS = st.fixed_dictionaries({"model": NAMES}, optional={"parameters": OWN})


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, object]:
    recipe: dict[str, object] = {"weightsmith": 1, "merge_method": "linear"}
    if draw(st.booleans()):
        recipe["models"] = draw(st.lists(MODELS, min_size=1, max_size=3))
    else:
        start = draw(st.integers(0, 5))
        source = draw(MODELS) | {"layer_range": [start, start + draw(st.integers(1, 4))]}
        recipe["slices"] = [{"sources": [source], "parameters": draw(PARAMETERS)}]
    optional = {
        "parameters": PARAMETERS,
        "base_model": NAMES,
        "dtype": st.sampled_from(["bf16", "float32", "torch.float16"]),
        "seed": st.integers(0, 2**64 - 1),
        "shard_size": st.sampled_from(["5GB", 1000]),
        "missing": st.sampled_from(["error", "base", "skip"]),
        "semantics": st.sampled_from(["paper", "mergekit"]),
        "rules": st.lists(
            st.one_of(
                st.fixed_dictionaries({"match": MATCHES, "keep": NAMES}),
                st.fixed_dictionaries({"match": MATCHES, "merge_method": st.just("linear")}),
            ),
            max_size=2,
        ),
        "assert": st.lists(
            st.sampled_from(
                [{"finite": True}, {"norm_ratio": {"low": 0.5}}, {"equal": {"to": "a"}}]
            ),
            max_size=2,
        ),
        "then": st.just([{"truncate": {"rank": 8}}]),
    }
    for key, strategy in optional.items():
        if draw(st.booleans()):
            recipe[key] = draw(strategy)
    return recipe


@settings(max_examples=50, deadline=None)
@given(recipes())
def test_a_dumped_recipe_loads_as_an_equal_one(raw):
    recipe = Recipe.load(raw)
    again = load(recipe.dump())
    assert again == recipe
    assert again.dump() == recipe.dump()
    assert load(yaml.safe_dump(raw)) == recipe


@pytest.mark.parametrize("text", ["\x85", "a\x85b", "a\x85", "\u2028", "\ufeff", "'\x85\""])
def test_a_dump_keeps_characters_that_yaml_takes_for_line_breaks(text):
    weight = [{"filter": text, "value": 0}, {"value": 1}]
    raw = {**yaml.safe_load(NATIVE), "parameters": {"weight": weight}}
    recipe = Recipe.load(raw)
    assert load(recipe.dump()) == recipe


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60) | st.binary(max_size=40).map(lambda b: b.decode("latin-1")))
def test_arbitrary_text_is_refused_with_a_recipe_error_or_read(text):
    try:
        load("a: 1\n" + text)
    except RecipeError:
        return
    pytest.fail("a: 1 is no recipe")
