"""Merging state dicts: tensors have the roles that a checkpoint of these names has, and the result is its own."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import weightsmith
from weightsmith.errors import NonFiniteError, UsageError

BLOCK = {
    "attn.c_attn.weight": (8, 24),
    "attn.c_attn.bias": (24,),
    "attn.c_proj.weight": (8, 8),
    "ln_1.weight": (8,),
    "mlp.c_fc.weight": (8, 32),
    "mlp.c_proj.weight": (32, 8),
}
SHAPES = {
    "wte.weight": (40, 8),
    **{f"h.{layer}.{name}": shape for layer in (0, 1) for name, shape in BLOCK.items()},
    "ln_f.weight": (8,),
}


@pytest.fixture(scope="module")
def models():
    generator = torch.Generator().manual_seed(0)
    return [{k: torch.randn(s, generator=generator) for k, s in SHAPES.items()} for _ in range(3)]


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("tsv_m", {"embeddings": "average"}),
        ("iso_cts", {"common_share": 0.5}),
        ("widen", {}),
        ("wudi", {}),
        ("opcm", {}),
        ("lines", {}),
        ("localize_and_stitch", {"exclude": "embedding"}),
    ],
)
def test_state_dicts_and_folders_give_the_same_merge(models, tmp_path, method, parameters):
    """Embeddings, layers and matrices stored input first are found in both."""
    for name, model in zip(("base", "e1", "e2"), models, strict=True):
        (tmp_path / name).mkdir()
        save_file(model, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    recipe = {
        "weightsmith": 1,
        "merge_method": method,
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / name)} for name in ("e1", "e2")],
        "parameters": parameters,
    }
    weightsmith.merge(recipe, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    base, *experts = models
    held = weightsmith.merge_state_dicts(method, experts, base=base, parameters=parameters)
    for name, tensor in stored.items():
        torch.testing.assert_close(held[name], tensor, rtol=0, atol=1e-5, msg=name)


def test_a_matrix_stored_input_first_is_merged_as_its_transpose(models):
    name = "h.1.mlp.c_fc.weight"
    base, *experts = models
    merged = weightsmith.merge_state_dicts("wudi", experts, base=base)[name]
    turned = [{"w": model[name].T.contiguous()} for model in models]
    expected = weightsmith.merge_state_dicts("wudi", turned[1:], base=turned[0])["w"].T
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-4)
    other = weightsmith.merge_state_dicts(
        "wudi", experts, base=base, parameters={"orientation": "output_first"}
    )[name]
    assert (merged - other).abs().max() > 1e-2


def test_embeddings_have_their_own_rule(models):
    base, *experts = models
    merged = weightsmith.merge_state_dicts(
        "tsv_m", experts, base=base, parameters={"embeddings": "base"}
    )
    assert torch.equal(merged["wte.weight"], base["wte.weight"])
    assert not torch.equal(merged["h.0.mlp.c_fc.weight"], base["h.0.mlp.c_fc.weight"])


@pytest.mark.parametrize(
    ("method", "parameters"), [("lawa", {"k": 1}), ("passthrough", {}), ("linear", {}), ("ema", {})]
)
def test_the_result_shares_no_memory_with_its_inputs(method, parameters):
    """A peer's averages alias the model that trains on, so that all of its snapshots are one."""
    model = {"w": torch.ones(3), "n": torch.tensor([1])}
    merged = weightsmith.merge_state_dicts(method, [model], parameters=parameters)
    for name, tensor in merged.items():
        tensor.add_(1)
        assert torch.equal(model[name], torch.ones(model[name].shape, dtype=tensor.dtype))


def test_a_result_that_overflows_is_refused_as_on_disk(tmp_path):
    big = {"w": torch.full((2, 3), 4e4, dtype=torch.float16)}
    parameters = {"normalize": False}
    with pytest.raises(NonFiniteError, match=r"'w' would hold 6 NaN or infinite .* float16"):
        weightsmith.merge_state_dicts("linear", [big, big], parameters=parameters)
    let = weightsmith.merge_state_dicts(
        "linear", [big, big], parameters=parameters, nonfinite="propagate"
    )
    assert torch.isinf(let["w"]).all()
    (tmp_path / "big").mkdir()
    save_file(big, tmp_path / "big" / "model.safetensors", metadata={"format": "pt"})
    recipe = {
        "weightsmith": 1,
        "merge_method": "linear",
        "models": [{"model": str(tmp_path / "big")}] * 2,
        "parameters": parameters,
    }
    with pytest.raises(NonFiniteError, match="would hold 6 NaN or infinite"):
        weightsmith.merge(recipe, tmp_path / "out")


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_an_input_that_is_not_finite_is_refused_wherever_it_is(bad):
    """Even where no element of the result depends on it."""
    good = {"w": torch.ones(2, 3)}
    broken = {"w": torch.tensor([[1.0, 1.0, 1.0], [1.0, bad, 1.0]])}
    with pytest.raises(NonFiniteError, match=r"'w' of state dict 2 holds 1 .* at element 4"):
        weightsmith.merge_state_dicts("ties", [good, broken], base=good)
    found = weightsmith.merge_state_dicts("linear", [good, broken], nonfinite="propagate")["w"]
    assert found.isfinite().sum() == 5
    with pytest.raises(UsageError, match="nonfinite"):
        weightsmith.merge_state_dicts("linear", [good, good], nonfinite="ignore")


def test_floats_of_8_bits_and_tensors_without_data_are_merged():
    narrow = {"w": torch.ones(2, 2).to(torch.float8_e4m3fn)}
    found = weightsmith.merge_state_dicts("linear", [narrow, narrow])["w"]
    assert found.dtype is torch.float8_e4m3fn
    assert bool((found.float() == 1.0).all())
    absent = {"w": torch.empty(2, 2, device="meta")}
    assert weightsmith.merge_state_dicts("linear", [absent, absent])["w"].is_meta


ONE = {"w": torch.tensor([1.0, 2.0])}
TWO = {"w": torch.tensor([3.0, 5.0])}


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"per_expert": [{"weight": 1}]}, "per_expert holds 1 for 2 experts"),
        ({"per_expert": [{"weight": 1}] * 3}, "per_expert holds 3 for 2 experts"),
        ({"per_expert": {"weight": 1}}, "per_expert is a list of mappings"),
        ({"per_expert": [1, 2]}, "per_expert lists mappings"),
        ({"parameters": 5}, "parameters maps names to values"),
        ({"modify": "clip"}, "modify is a list of modifiers"),
        ({"modify": [5]}, "modify lists names of modifiers"),
        ({"seed": "x"}, "seed is a whole number from 0 to 2^64 - 1, not 'x'"),
        ({"seed": True}, "seed is a whole number from 0 to 2^64 - 1, not true"),
        ({"base": 5}, "The base is a value of type int"),
        ({"experts": ONE}, "experts is a list of state dicts"),
        ({"experts": 5}, "experts is a list of state dicts"),
        ({"experts": [ONE, [1.0]]}, "State dict 1 is a value of type list"),
        ({"experts": [{"w": [1.0]}] * 2}, "'w' of state dict 0 is a value of type list"),
        ({"experts": [{5: torch.ones(2)}] * 2}, "Tensors are called by texts"),
        ({"experts": [{"w": torch.ones(2).to_sparse()}] * 2}, "sparse; pass it as `to_dense()`"),
        ({"method": 5}, "A method is given by its name"),
    ],
)
def test_arguments_of_another_form_are_refused_in_words(arguments, part):
    given = {"method": "linear", "experts": [ONE, TWO], **arguments}
    with pytest.raises(UsageError) as caught:
        weightsmith.merge_state_dicts(given.pop("method"), given.pop("experts"), **given)
    assert part in str(caught.value)


def test_a_list_for_each_expert_may_be_empty_or_complete():
    merge = weightsmith.merge_state_dicts
    own = merge("linear", (ONE, TWO), per_expert=({"weight": 1}, {"weight": 3}))
    assert own["w"].tolist() == [2.5, 4.25]
    assert merge("linear", [ONE, TWO], per_expert=[])["w"].tolist() == [2.0, 3.5]
