"""What goes into each output tensor: bases, dtypes, integers, ties, and everything that does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith.errors import RecipeError
from weightsmith.recipes import load
from weightsmith.recipes.resolution.combine import keeps_values
from weightsmith.recipes.resolution.formula import Cast, Leaf, Merge, Same
from weightsmith.recipes.resolution.resolve import resolve, shard_bytes
from weightsmith.tensors.dtypes import DType

NORM = "model.norm.weight"


def test_mergekit_adds_an_unlisted_base_to_a_method_that_ignores_bases(make, solve):
    for name in "abc":
        make(name)
    text = (
        "merge_method: linear\nbase_model: c\nmodels: [{model: a}, {model: b}]\n"
        "parameters: {weight: 1}\n"
    )
    assert solve(text).formula(NORM).labels == ("a", "b", "c")
    native = solve("weightsmith: 1\n" + text)
    assert native.formula(NORM).labels == ("a", "b")
    assert native.resolved.config_source == native.resolved.base == "c"


def test_the_base_is_never_an_expert_of_a_method_that_uses_it(make, solve):
    for name in "abc":
        make(name)
    formula = solve(
        "merge_method: ties\nbase_model: b\nparameters: {weight: 1}\n"
        "models: [{model: a}, {model: b, parameters: {weight: 7}}, {model: c}]\n"
    ).formula(NORM)
    assert formula.base == Leaf("b", NORM)
    assert formula.labels == ("a", "c")
    assert formula.per_expert == ((("weight", 1.0),), (("weight", 1.0),))


def test_a_missing_base_and_a_wrong_number_of_experts_are_refused(make, solve):
    for name in "abc":
        make(name)
    with pytest.raises(RecipeError, match="ties needs a base"):
        solve("merge_method: ties\nmodels: [{model: a}]\nparameters: {weight: 1}\n")
    with pytest.raises(RecipeError, match=r"slerp merges exactly 1 expert\(s\), but 2"):
        solve(
            "merge_method: slerp\nbase_model: c\nparameters: {t: 0.5}\n"
            "models: [{model: a}, {model: b}]\n"
        )


def test_outputs_keep_the_donors_file_order(make, solve):
    make("a"), make("b")
    solved = solve(
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"
    )
    stored = list(solved.resolved.checkpoints["a"].tensors)
    assert [output.name for output in solved.resolved.outputs] == stored


def test_dtype_rounds_inputs_in_mergekits_semantics_only_where_that_changes_them(make, solve):
    make("a", dtype="float32"), make("b", dtype="float16")
    text = (
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\n"
        "parameters: {weight: 1}\ndtype: float16\nout_dtype: float32\n"
    )
    formula = solve(text).formula(NORM)
    assert formula.experts == (Cast(DType.FLOAT16, Leaf("a", NORM)), Leaf("b", NORM))
    assert solve(text).outputs[NORM].dtype is DType.FLOAT32
    native = solve("weightsmith: 1\n" + text)
    assert native.formula(NORM).experts == (Leaf("a", NORM), Leaf("b", NORM))
    assert native.outputs[NORM].dtype is DType.FLOAT32


def test_without_a_dtype_results_have_the_promoted_one(make, solve):
    make("a", dtype="float16"), make("b", dtype="float32")
    solved = solve(
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"
    )
    assert solved.outputs[NORM].dtype is DType.FLOAT32
    assert solved.resolved.out_dtype is None


@pytest.mark.parametrize("stored", [d for d in DType if d.is_float])
@pytest.mark.parametrize("wanted", [d for d in DType if d.is_float])
def test_a_conversion_is_exact_where_exponent_and_fraction_fit(stored, wanted):
    bits = {  # exponent bits, fraction bits
        DType.FLOAT64: (11, 52),
        DType.FLOAT32: (8, 23),
        DType.FLOAT16: (5, 10),
        DType.BFLOAT16: (8, 7),
        DType.FLOAT8_E4M3FN: (4, 3),
        DType.FLOAT8_E5M2: (5, 2),
    }
    (e1, f1), (e2, f2) = bits[stored], bits[wanted]
    # e4m3fn has no infinities and e5m2 has, so between them only identity is exact.
    fits = stored is wanted or (e1 <= e2 and f1 <= f2 and not (stored.is_fp8 and wanted.is_fp8))
    assert keeps_values(stored, wanted) == fits


def test_passthrough_copies_with_one_and_scales_with_another_number(make, solve):
    make("a")
    copied = solve("merge_method: passthrough\nmodels: [{model: a}]\n")
    assert copied.formula(NORM) == Leaf("a", NORM)
    scaled = solve(
        "merge_method: passthrough\nmodels: [{model: a, parameters: {scale: "
        "[{filter: o_proj, value: 0}, {value: 1}]}}]\n"
    )
    assert scaled.formula(NORM) == Leaf("a", NORM)
    o = scaled.formula("model.layers.0.self_attn.o_proj.weight")
    assert isinstance(o, Merge)
    assert o.per_expert == ((("scale", 0.0),),)


def test_integers_come_from_the_base_or_must_agree(make, solve):
    for name in "abc":
        make(name, extra={"steps": np.arange(3)})
    with_base = solve(
        "merge_method: ties\nbase_model: c\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"
    )
    assert with_base.formula("steps") == Leaf("c", "steps")
    without = solve(
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"
        "dtype: float16\n"
    )
    assert without.formula("steps") == Same((Leaf("a", "steps"), Leaf("b", "steps")))
    assert without.outputs["steps"].dtype is DType.INT64


def test_everything_that_does_not_fit_is_found_at_once(make, solve):
    make("a")
    make(
        "b",
        vocabulary=9,
        extra={"model.norm.weight": np.zeros(7, np.float32)},
        without=("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"),
    )
    found = solve(
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"
    ).found()
    assert set(found) == {"vocabulary-mismatch", "shape-mismatch", "missing-tensor"}
    assert "6 entries in 'a' but 9 in 'b'" in found["vocabulary-mismatch"]
    assert "layers.0.mlp.up_proj" in found["missing-tensor"]
    assert "layers.1.mlp.up_proj" in found["missing-tensor"]


@pytest.mark.parametrize(
    ("policy", "labels"), [("base", ("a", "b")), ("skip", ("a",))], ids=["base", "skip"]
)
def test_missing_tensors_follow_the_policy(make, solve, policy, labels):
    name = "model.layers.0.mlp.up_proj.weight"
    make("a"), make("b", without=(name,)), make("c")
    solved = solve(
        f"weightsmith: 1\nmerge_method: task_arithmetic\nbase_model: c\nmissing: {policy}\n"
        "models: [{model: a}, {model: b}]\n"
    )
    assert not solved.found()
    assert solved.formula(name).labels == labels
    assert solved.formula(name).experts[-1] == Leaf("c" if policy == "base" else "a", name)


def test_a_method_that_lacks_experts_after_skipping_copies_what_is_there(make, solve):
    name = "model.layers.0.mlp.up_proj.weight"
    make("a"), make("b", without=(name,))
    solved = solve(
        "weightsmith: 1\nmerge_method: nuslerp\nmissing: skip\nmodels: [{model: a}, {model: b}]\n"
    )
    assert solved.formula(name) == Leaf("a", name)


def test_a_tied_and_an_untied_model_are_an_error_that_untie_resolves(make, solve):
    make("tied", head=False), make("untied")
    text = (
        "weightsmith: 1\nmerge_method: linear\nmodels: [{model: untied}, {model: tied}]\n"
        "missing: error\n"
    )
    assert "untie: true" in solve(text).found()["tied-untied-mix"]
    solved = solve(text + "untie: true\n")
    assert not solved.found()
    head = solved.formula("lm_head.weight")
    assert head.experts == (Leaf("untied", "lm_head.weight"), Leaf("tied", "lm_head.weight"))
    stored = solved.resolved.checkpoints["tied"].tensors
    assert stored["lm_head.weight"].offset == stored["model.embed_tokens.weight"].offset


def test_tied_tensors_that_are_stored_twice_are_written_once(make, solve):
    for name in "ab":
        make(name, config={"tie_word_embeddings": True})
    solved = solve(
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"
    )
    assert "lm_head.weight" not in solved.outputs
    assert "model.embed_tokens.weight" in solved.outputs


def test_models_of_the_same_name_get_distinct_labels(make, solve):
    make("x/model"), make("y/model")
    solved = solve(
        "merge_method: linear\nmodels: [{model: x/model}, {model: y/model}]\nparameters: {weight: 1}\n"
    )
    assert list(solved.resolved.checkpoints) == ["model", "model#2"]
    assert solved.formula(NORM).labels == ("model", "model#2")


def test_a_donor_can_be_named(make, solve):
    for name in "ab":
        make(name)
    solved = solve(
        "weightsmith: 1\nmerge_method: linear\ndonor: b\nmodels: [{model: a}, {model: b}]\n"
    )
    assert solved.resolved.config_source == "b"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("tokenizer_source: union", "no tokenizer files"),
        ("tokenizer: {source: base, tokens: {x: {source: a}}}", "no tokenizer files"),
        ("tokenizer: {source: base, pad_to_multiple_of: 8}", "no tokenizer files"),
        ("tokenizer_source: other", "no tokenizer files"),
        ("chat_template: chatm", "did you mean 'chatml'"),
    ],
)
def test_a_vocabulary_that_no_model_has_cannot_be_aligned_to(make, solve, section, message):
    make("a"), make("b"), make("other", vocabulary=9)
    with pytest.raises(RecipeError, match=message):
        solve(
            "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"
            + section
        )


@pytest.mark.parametrize("section", ["tokenizer_source: base", "tokenizer: {source: b}", ""])
def test_tokenizer_sections_that_copy_are_taken(make, solve, section):
    make("a"), make("b")
    solved = solve(
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"
        + section
    )
    assert not solved.found()


def test_a_mapping_of_checkpoints_must_have_every_model():
    recipe = load({"merge_method": "passthrough", "models": [{"model": "nowhere"}]})
    with pytest.raises(RecipeError, match="'nowhere' of the recipe was not given"):
        resolve(recipe, {})


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (None, 5 * 10**9),
        ("5GB", 5 * 10**9),
        ("1.5 MiB", 3 * 2**19),
        ("10B", 10),
        ("5", 5),
        (123, 123),
    ],
)
def test_shard_sizes(given, size):
    assert shard_bytes(given) == size


@pytest.mark.parametrize("given", ["GB", "-1GB", "0GB", 0, "5 apples"])
def test_sizes_that_are_none_are_refused(given):
    with pytest.raises(RecipeError, match="shard_size"):
        shard_bytes(given)


def test_integer_dtypes_cannot_hold_weights(make, solve):
    make("a")
    with pytest.raises(RecipeError, match="cannot hold weights"):
        solve("merge_method: passthrough\nmodels: [{model: a}]\ndtype: int64\n")


@pytest.mark.parametrize(
    "recipe",
    [
        "merge_method: linear\nmodels: [{model: large}]\nbase_model: small",
        "merge_method: linear\nmodels: [{model: small}]\nbase_model: large",
        "merge_method: passthrough\nmodels: [{model: large}]\nbase_model: small",
        "expression: linear(x, y)\ncheckpoints: {x: large, y: large, base: small}",
        "expression: linear(x, y)\ncheckpoints: {x: large, y: large}\ndonor: small",
    ],
)
def test_a_base_that_takes_no_part_must_fit_all_the_same(make, solve, recipe: str) -> None:
    """Its shapes and tokenizer are the result's, so that other tables would be cut or read past their end."""
    make("large", 2, vocabulary=9)
    make("small", 2, vocabulary=7)
    assert solve(f"weightsmith: 1\n{recipe}\n").found().keys() == {"vocabulary-mismatch"}


def test_a_step_takes_no_base_of_another_shape(make, solve) -> None:
    """A rule may have kept a tensor of a model with other rows."""
    make("base", 2, vocabulary=9)
    make("a", 2, vocabulary=9)
    make("small", 2, vocabulary=7)
    text = (
        "weightsmith: 1\nmerge_method: linear\nmodels: [{model: a}]\nbase_model: base\n"
        "rules: [{match: {role: [embedding, head]}, keep: small}]\nthen: [lines: {alpha: 0.5}]\n"
    )
    with pytest.raises(RecipeError, match="two of one shape"):
        solve(text)


def test_inputs_that_compute_in_other_ways_are_refused_unless_the_recipe_accepts_it(
    make, solve
) -> None:
    make("a", config={"hidden_act": "silu", "rope_theta": 1e4})
    make("b", config={"hidden_act": "gelu", "rope_theta": 1e6})
    text = "weightsmith: 1\nmerge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"
    found = solve(text)
    assert "'hidden_act'" in found.found()["config-differs"]
    assert "'rope_parameters.rope_theta'" in found.found("warning")["config-differs"]
    accepted = solve(text + "accept: [hidden_act, rope_theta]\n")
    assert not accepted.found()
    assert not accepted.found("warning")
    assert "hidden_act" in accepted.found("note")["config-accepted"]
    idle = solve(text + "accept: [hidden_act, rope_theta, head_dim]\n")
    assert "'head_dim'" in idle.found("warning")["idle-accept"]


def test_the_donors_configuration_is_what_others_are_compared_with(make, solve) -> None:
    for name, theta in (("a", 1e4), ("b", 1e6), ("c", 1e6)):
        make(name, config={"rope_theta": theta})
    text = "weightsmith: 1\nmerge_method: linear\nmodels: [{model: b}, {model: c}]\nparameters: {weight: 1}\n"
    assert not solve(text).found("warning")
    found = solve(text + "donor: a\n").found("warning")["config-differs"]
    assert "1000000.0 in" in found
    assert "10000.0 in" in found
