"""Modules of checkpoints that name one network differently."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from weightsmith.errors import RecipeError
from weightsmith.recipes.resolution.formula import Leaf

Tensors = dict[str, np.ndarray]


def arrays(shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """Zeros of each shape."""
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def stack(prefix: str, layers: int, parts: Mapping[str, tuple[int, ...]]) -> Tensors:
    """Blocks of the same tensors."""
    return arrays({f"{prefix}.{i}.{p}.weight": s for i in range(layers) for p, s in parts.items()})


BLOCK = {"self_attn.q_proj": (4, 4), "mlp.up_proj": (8, 4), "input_layernorm": (4,)}
VISION = {"attn.qkv": (12, 4), "mlp.fc1": (8, 4), "norm1": (4,)}


def vision_language(layers: int = 3) -> Tensors:
    """In the names that a loaded model has."""
    return {
        **arrays({"model.language_model.embed_tokens.weight": (9, 4)}),
        **stack("model.language_model.layers", layers, BLOCK),
        **arrays({"model.language_model.norm.weight": (4,), "lm_head.weight": (9, 4)}),
        **stack("model.visual.blocks", 2, VISION),
        **arrays({"model.visual.merger.ln_q.weight": (4,), "model.visual.patch.weight": (4, 3)}),
    }


def plain(layers: int = 3, rows: int = 9) -> Tensors:
    """A language model."""
    return {
        **arrays({"model.embed_tokens.weight": (rows, 4)}),
        **stack("model.layers", layers, BLOCK),
        **arrays({"model.norm.weight": (4,), "lm_head.weight": (rows, 4)}),
    }


RECIPE = """
weightsmith: 1
merge_method: linear
base_model: vlm
parameters: {weight: 1}
modules:
  text_decoder:
    models: [{model: vlm}, {model: llm}]
"""
Q = "model.language_model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def pair(make: Callable[..., object]) -> Callable[..., None]:
    """Write `vlm` and `llm` with these tensors."""

    def write(vlm: Tensors, llm: Tensors) -> None:
        for name, tensors in (("vlm", vlm), ("llm", llm)):
            make(name, 3, extra=tensors, only_extra=True, vocabulary=9)

    return write


def test_a_plain_models_names_are_found_under_the_donors_prefix(pair, solve) -> None:
    """Blocks, embedding, norm and head each merge with their counterpart; the rest is copied."""
    pair(vision_language(), plain())
    solved = solve(RECIPE)
    assert not solved.found()
    assert solved.formula(Q).experts == (
        Leaf("vlm", Q),
        Leaf("llm", Q.replace("language_model.", "")),
    )
    for name in ("model.language_model.embed_tokens.weight", "model.language_model.norm.weight"):
        own = name.replace("language_model.", "")
        assert solved.formula(name).experts == (Leaf("vlm", name), Leaf("llm", own))
    assert solved.formula("lm_head.weight").experts[1] == Leaf("llm", "lm_head.weight")
    assert solved.formula("model.visual.patch.weight") == Leaf("vlm", "model.visual.patch.weight")
    assert set(solved.outputs) == set(vision_language())
    note = solved.found("note")["module-names"]
    assert "modules.text_decoder: names of 'llm' are read as those of 'vlm'" in note
    assert "model.* as model.language_model.*" in note


def test_a_module_by_pattern_sees_the_donors_names(pair, solve) -> None:
    """`match:` is written once, for the names of the result."""
    pair(vision_language(), plain())
    text = RECIPE.replace("text_decoder:", "words:").replace(
        "    models:", "    match: {name: language_model}\n    models:"
    )
    solved = solve(text)
    assert not solved.found()
    assert solved.formula(Q).experts[1] == Leaf("llm", Q.replace("language_model.", ""))
    assert solved.formula("lm_head.weight") == Leaf("vlm", "lm_head.weight")


def test_a_head_and_norm_of_other_names_are_found_by_role(pair, solve) -> None:
    """Where a name does not follow the prefix, the only tensor of its role and shape is meant."""
    names = {
        "model.norm.weight": "model.final_layernorm.weight",
        "lm_head.weight": "embed_out.weight",
    }
    pair(vision_language(), {names.get(name, name): t for name, t in plain().items()})
    solved = solve(RECIPE)
    assert not solved.found()
    norm = "model.language_model.norm.weight"
    assert solved.formula(norm).experts[1] == Leaf("llm", "model.final_layernorm.weight")
    assert solved.formula("lm_head.weight").experts[1] == Leaf("llm", "embed_out.weight")
    assert "embed_out.weight as lm_head.weight" in solved.found("note")["module-names"]


def test_a_declared_prefix_says_what_cannot_be_inferred(pair, solve) -> None:
    """Two stacks that are alike need a word; with it the one that is meant is merged."""
    vlm = {**vision_language(), **stack("model.audio_tower.layers", 3, BLOCK)}
    pair(vlm, plain())
    with pytest.raises(RecipeError, match=r"could be .*audio_tower.* or .*language_model.*prefix"):
        solve(RECIPE)
    declared = RECIPE + "    prefix: {model.language_model: model}\n"
    solved = solve(declared)
    assert not solved.found()
    assert solved.formula(Q).experts[1] == Leaf("llm", Q.replace("language_model.", ""))


def test_a_prefix_alone_stands_for_models_without_one(pair, solve) -> None:
    """As in `language_model.model.layers` beside `model.layers`."""
    vlm = {f"language_model.{name}": t for name, t in plain().items()}
    pair({**vlm, **stack("vision_tower.layers", 2, VISION)}, plain())
    for text in (RECIPE, RECIPE + "    prefix: language_model\n"):
        solved = solve(text)
        assert not solved.found()
        name = "language_model.lm_head.weight"
        assert solved.formula(name).experts[1] == Leaf("llm", "lm_head.weight")


def test_tensors_without_a_counterpart_are_an_error_that_names_them(pair, solve) -> None:
    """Nothing of a model is left out without a word."""
    extra = arrays({"model.layers.0.self_attn.q_norm.weight": (4,), "model.extra.weight": (4, 4)})
    pair(vision_language(), {**plain(), **extra})
    found = solve(RECIPE).found()["module-names"]
    assert "'model.layers.0.self_attn.q_norm.weight'" in found
    assert "'model.extra.weight'" in found
    assert "`prefix:`" in found


def test_parts_that_the_donor_does_not_have_are_left_out_with_a_note(pair, solve) -> None:
    """A plain model takes the language part of a vision-language one."""
    pair(plain(), vision_language())
    text = RECIPE.replace("text_decoder:", "default:")
    solved = solve(text)
    assert not solved.found()
    assert set(solved.outputs) == set(plain())
    name = "model.layers.1.self_attn.q_proj.weight"
    assert solved.formula(name).experts[1] == Leaf("llm", Q)


def test_models_of_the_donors_names_are_read_as_they_are(pair, solve) -> None:
    """No note where nothing is renamed."""
    pair(vision_language(), vision_language())
    solved = solve(RECIPE)
    assert not solved.found()
    assert "module-names" not in solved.found("note")


def test_another_depth_is_a_matter_of_slices_not_of_names(pair, solve) -> None:
    """A deeper plain model is refused for its layers, and its layers can be chosen."""
    pair(vision_language(), plain(5))
    found = solve(RECIPE).found()
    assert "layer-count" in found
    assert "module-names" not in found
    slices = "slices: [{sources: [{model: vlm, layer_range: [0, 3]}, {model: llm, layer_range: [2, 5]}]}]"
    solved = solve(RECIPE.replace("models: [{model: vlm}, {model: llm}]", slices))
    assert not solved.found()
    assert solved.formula(Q).experts[1] == Leaf("llm", "model.layers.3.self_attn.q_proj.weight")


def test_a_rotary_table_of_old_files_is_no_missing_counterpart(pair, solve) -> None:
    """Old Llama files have a buffer in every layer that the network computes anew."""
    extra = arrays({f"model.layers.{i}.self_attn.rotary_emb.inv_freq": (2,) for i in range(3)})
    pair(vision_language(), {**plain(), **extra})
    assert "module-names" not in solve(RECIPE).found()


def test_newlines_between_image_rows_are_not_the_language_models(pair, solve) -> None:
    """A parameter of the vision side that lies among the text's names is copied."""
    extra = arrays({"model.image_newline": (4,)})
    pair({**vision_language(), **extra}, plain())
    solved = solve(RECIPE)
    assert not solved.found()
    assert solved.formula("model.image_newline") == Leaf("vlm", "model.image_newline")


KINDS = ["embedding", "attention", "mlp", "norm", "head"]
METHODS = ["linear", "task_arithmetic", "ties", "dare_ties", "magmax"]


@pytest.mark.parametrize("turn", range(len(METHODS)))
@pytest.mark.parametrize("count", [2, 3])
def test_every_module_is_merged_by_its_own_method(make, solve, turn: int, count: int) -> None:
    """Whatever else is made and forgotten while they are resolved one after the other."""
    for name in ("base", "a", "b", "c"):
        make(name, 3)
    methods = dict(zip(KINDS, METHODS[turn:] + METHODS[:turn], strict=True))
    models = ", ".join(f"{{model: {name}}}" for name in "abc"[:count])
    modules = "".join(
        f"  {kind}s:\n    match: {{role: {kind}}}\n    merge_method: {method}\n    models: [{models}]\n"
        for kind, method in methods.items()
    )
    solved = solve(f"weightsmith: 1\nbase_model: base\nmodules:\n{modules}")
    merged = {
        output.place.role.partition(".")[0]: output.formula.method
        for output in solved.outputs.values()
    }
    assert merged == methods
