"""Adapters extracted from fine-tunes: what they hold, what they lose and that this is measured."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from weightsmith.adapters.adapter_reading import open_adapter
from weightsmith.adapters.attaching import attach
from weightsmith.checkpoints import open_checkpoint
from weightsmith.deltas.changed import read_matrix
from weightsmith.deltas.changes import Full
from weightsmith.errors import CompatibilityError, NonFiniteError, UsageError
from weightsmith.lora.adapter_writing import write_adapter
from weightsmith.lora.decomposing import sketched, whole
from weightsmith.lora.extraction import extract
from weightsmith.lora.treatments import Choices, Treatment
from weightsmith.tensors.dtypes import DType

Q = "model.layers.0.self_attn.q_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"
UP_BIAS = "model.layers.0.mlp.up_proj.bias"
NORM = "model.norm.weight"
TABLE = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
SHAPES = {TABLE: (40, 12), Q: (12, 12), UP: (20, 12), UP_BIAS: (20,), NORM: (12,), HEAD: (40, 12)}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1}
NO_TIES = {**LLAMA, "tie_word_embeddings": False}


def save(folder, tensors, config=NO_TIES):
    folder.mkdir()
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(folder)


def base_tensors(shapes=SHAPES, seed=0):
    rng = np.random.default_rng(seed)
    return {n: torch.from_numpy(rng.normal(size=s).astype(np.float32)) for n, s in shapes.items()}


def low_rank(shape, rank, seed=1, size=0.1):
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, int(np.prod(shape[1:]))))
    return torch.from_numpy((size * found).astype(np.float32)).reshape(shape)


def noise(shape, seed=2, size=0.1):
    return torch.from_numpy(size * np.random.default_rng(seed).normal(size=shape)).float()


def pair(tmp_path, changes, tensors=None, config=NO_TIES):
    """Base and fine-tune, which is the base plus `changes`."""
    tensors = base_tensors() if tensors is None else tensors
    tuned = {n: t + changes[n].to(t.dtype) if n in changes else t for n, t in tensors.items()}
    return save(tmp_path / "base", tensors, config), save(tmp_path / "tuned", tuned, config)


def delta(finetune, base, name):
    return read_matrix(finetune.tensors[name]) - read_matrix(base.tensors[name])


def by_key(report):
    return {tensor.key: tensor for tensor in report.tensors}


def test_a_merged_adapter_is_found_again(tmp_path):
    changes = {Q: low_rank((12, 12), 3), UP: low_rank((20, 12), 2, seed=5)}
    base, tuned = pair(tmp_path, changes)
    adapter, report = extract(tuned, base, rank=3)
    for name, change in changes.items():
        found = adapter.factors[name].change
        np.testing.assert_allclose(found.left @ found.right, change, atol=1e-6)
    assert set(adapter.factors) == set(changes)
    assert not adapter.replaced
    assert not adapter.added
    assert report.relative < 1e-6
    assert report.unchanged == 4


def test_the_adapter_merged_back_misses_the_fine_tune_by_what_the_report_says(tmp_path):
    changes = {name: noise(shape, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}
    base, tuned = pair(tmp_path, changes)
    adapter, report = extract(tuned, base, rank=4)
    write_adapter(adapter, tmp_path / "out", base=base)
    merged = attach(base, [(open_adapter(tmp_path / "out"), 1.0)])
    rows = by_key(report)
    assert set(rows) == set(SHAPES)
    for name in SHAPES:
        missed = np.linalg.norm(
            read_matrix(tuned.tensors[name]) - read_matrix(merged.tensors[name])
        )
        assert missed == pytest.approx(rows[name].error, rel=1e-4, abs=1e-5)
        assert rows[name].change == pytest.approx(np.linalg.norm(delta(tuned, base, name)))
    assert rows[TABLE].error == rows[NORM].error == 0.0
    assert rows[UP_BIAS].error < 1e-7
    assert rows[HEAD].rank == rows[Q].rank == 4
    total = np.sqrt(sum(rows[name].error ** 2 for name in SHAPES))
    assert report.error == pytest.approx(total)
    assert report.nbytes == sum(
        t.numel() * 4 for t in load_file(tmp_path / "out/adapter_model.safetensors").values()
    )


def test_errors_are_those_of_eckart_and_young_and_fall_with_the_rank(tmp_path):
    base, tuned = pair(tmp_path, {UP: noise((20, 12))})
    values = np.linalg.svd(delta(tuned, base, UP), compute_uv=False)
    for rank in range(1, 13):
        _, report = extract(tuned, base, rank=rank)
        expected = np.sqrt(np.square(values[rank:]).sum())
        assert by_key(report)[UP].error == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("energy", [0.3, 0.9, 0.999])
def test_an_energy_takes_the_fewest_directions_that_hold_it(tmp_path, energy):
    base, tuned = pair(tmp_path, {UP: noise((20, 12)), Q: noise((12, 12), seed=3)})
    _, report = extract(tuned, base, energy=energy)
    for name in (UP, Q):
        squares = np.square(np.linalg.svd(delta(tuned, base, name), compute_uv=False))
        shares = np.cumsum(squares) / squares.sum()
        assert by_key(report)[name].rank == int(np.argmax(shares >= energy)) + 1
        assert by_key(report)[name].relative ** 2 <= 1 - energy


def test_an_error_bound_holds_for_the_factors_as_they_are_stored(tmp_path):
    change = low_rank((20, 12), 3) + noise((20, 12), size=1e-4)
    base, tuned = pair(tmp_path, {UP: change})
    squares = np.square(np.linalg.svd(delta(tuned, base, UP), compute_uv=False))
    lost = np.sqrt(1 - squares[:3].sum() / squares.sum())
    bound = float(np.sqrt(lost**2 + 1e-6))
    adapter, report = extract(tuned, base, error=bound)
    assert by_key(report)[UP].rank == 3
    # With bfloat16 the rounding of three directions alone is more than what is allowed.
    with pytest.raises(CompatibilityError, match=r"bfloat16.*wider type"):
        extract(tuned, base, error=bound, dtype=DType.BFLOAT16)
    adapter, report = extract(tuned, base, error=0.02, dtype=DType.BFLOAT16)
    found = adapter.factors[UP].change
    stored = [
        torch.from_numpy(f).to(torch.bfloat16).double().numpy() for f in (found.left, found.right)
    ]
    missed = np.linalg.norm(delta(tuned, base, UP) - stored[0] @ stored[1])
    assert by_key(report)[UP].error == pytest.approx(missed, rel=1e-12)
    assert missed <= 0.02 * by_key(report)[UP].change


def test_energy_one_and_error_zero_keep_all_directions(tmp_path):
    base, tuned = pair(tmp_path, {UP: noise((20, 12))})
    for asked in ({"energy": 1.0}, {"error": 0.0}):
        _, report = extract(tuned, base, **asked)
        assert by_key(report)[UP].rank == 12
        assert report.relative < 1e-6


def test_a_rank_limits_what_an_error_asks_for(tmp_path):
    base, tuned = pair(tmp_path, {UP: noise((20, 12))})
    _, report = extract(tuned, base, error=0.01, rank=2)
    assert by_key(report)[UP].rank == 2
    assert report.relative > 0.01


# What a peer gets wrong (mergekit-extract-lora 0.1.5).


def test_biases_are_declared_so_that_peft_adds_them(tmp_path):
    base, tuned = pair(tmp_path, {UP: low_rank((20, 12), 2), UP_BIAS: noise((20,))})
    adapter, _ = extract(tuned, base, rank=2)
    write_adapter(adapter, tmp_path / "out", base=base)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    names = load_file(tmp_path / "out/adapter_model.safetensors")
    assert config.get("lora_bias") or config["bias"] != "none"
    assert any("bias" in name for name in names)
    merged = attach(base, [(open_adapter(tmp_path / "out"), 1.0)])
    np.testing.assert_allclose(
        read_matrix(merged.tensors[UP_BIAS]), read_matrix(tuned.tensors[UP_BIAS]), atol=1e-6
    )


def test_no_tensor_gets_rank_zero(tmp_path):
    tiny = low_rank((12, 12), 1, size=1e-6)
    base, tuned = pair(tmp_path, {UP: noise((20, 12), size=10.0), Q: tiny})
    for asked in ({"rank": 4}, {"energy": 1e-6}, {"error": 0.999}, {"budget_bytes": 4 * 32 * 3}):
        adapter, report = extract(tuned, base, **asked)
        assert all(f.change.rank >= 1 for f in adapter.factors.values())
        assert UP in adapter.factors
        if "budget_bytes" in asked:
            assert by_key(report)[Q].treatment is Treatment.LEFT_OUT
            assert by_key(report)[Q].error == by_key(report)[Q].change > 0


def test_a_convolution_is_a_matrix_of_outputs_by_all_else(tmp_path):
    names = {
        "conv1.weight": (6, 4, 3, 3),
        "conv2.weight": (8, 6, 1, 1),
        "conv3.weight": (6, 1, 3, 3),
    }
    changes = {n: low_rank(s, 2, seed=i) for i, (n, s) in enumerate(names.items())}
    base, tuned = pair(tmp_path, changes, base_tensors(names), {})
    adapter, report = extract(tuned, base, rank=2)
    for name in ("conv1.weight", "conv2.weight"):
        factors = adapter.factors[name]
        assert (factors.kind, factors.shape) == ("conv", names[name])
        assert factors.change.left.shape == (names[name][0], 2)
        made = (factors.change.left @ factors.change.right).reshape(names[name])
        np.testing.assert_allclose(made, changes[name], atol=1e-5)
    # One input for each output: its groups cannot share a factor.
    assert by_key(report)["conv3.weight"].treatment is Treatment.REPLACED


def test_the_difference_is_not_rounded_to_the_type_of_the_files(tmp_path):
    tensors = {n: t.to(torch.bfloat16) for n, t in base_tensors().items()}
    # Subtracted in bfloat16 these differences would lose most of their digits.
    tuned = {**tensors, UP: (tensors[UP].float() * 3.37 + 0.1).to(torch.bfloat16)}
    base, finetune = save(tmp_path / "base", tensors), save(tmp_path / "tuned", tuned)
    adapter, _ = extract(finetune, base, energy=1.0)
    found = adapter.factors[UP].change
    exact = tuned[UP].double() - tensors[UP].double()
    rounded = (tuned[UP] - tensors[UP]).double()
    assert (exact - rounded).abs().max() > 1e-4
    np.testing.assert_allclose(found.left @ found.right, exact, atol=2e-6)


def test_only_the_changed_modules_are_targets(tmp_path):
    other = "model.layers.1.self_attn.q_proj.weight"
    tensors = base_tensors({**SHAPES, other: (12, 12), "extra.q_proj.weight": (5, 5)})
    base, tuned = pair(tmp_path, {Q: low_rank((12, 12), 2)}, tensors)
    adapter, _ = extract(tuned, base, rank=2)
    write_adapter(adapter, tmp_path / "out", base=base)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["target_modules"] == [Q.removesuffix(".weight")]


def test_large_matrices_are_sketched_and_their_error_is_true(tmp_path):
    shape = (1100, 1060)
    change = low_rank(shape, 5, size=0.01).double().numpy()
    change += np.random.default_rng(4).normal(size=shape) * 1e-4
    name = "model.layers.0.mlp.up_proj.weight"
    base, tuned = pair(
        tmp_path, {name: torch.from_numpy(change).float()}, base_tensors({name: shape})
    )
    exact = delta(tuned, base, name)
    adapter, report = extract(tuned, base, rank=5)
    again, _ = extract(tuned, base, rank=5, threads=2)
    found = adapter.factors[name].change
    missed = np.linalg.norm(exact - found.left @ found.right)
    assert report.error == pytest.approx(missed, rel=1e-12)
    best = np.sqrt(np.square(np.linalg.norm(exact)) - np.square(_largest(exact, 5)).sum())
    assert best * (1 - 1e-9) <= missed <= best * 1.01
    np.testing.assert_array_equal(found.left, again.factors[name].change.left)
    _, bounded = extract(tuned, base, error=0.3)
    assert bounded.relative <= 0.3


def _largest(matrix, count):
    return np.sqrt(np.linalg.eigvalsh(matrix.T @ matrix)[-count:])


@pytest.mark.parametrize("shape", [(30, 8), (8, 30), (8, 8), (3000, 20), (5, 1)])
def test_whole_and_sketched_directions_are_those_of_the_matrix(shape):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=shape)
    values = np.linalg.svd(matrix, compute_uv=False)
    found = whole(Full(matrix))
    np.testing.assert_allclose(found.values, values)
    for rank in {1, min(shape)}:
        kept = found.leading(rank)
        missed = np.linalg.norm(matrix - kept.left @ kept.right)
        assert missed == pytest.approx(np.sqrt(np.square(values[rank:]).sum()), abs=1e-10)
    narrow = Full(matrix[:, :1] @ rng.normal(size=(1, shape[1])))
    part = sketched(narrow, "name", 3)
    np.testing.assert_allclose(part.values[:1], np.linalg.norm(narrow.matrix), rtol=1e-9)
    assert len(part.values) == 1


# Tensors that are no plain matrices.


def test_choices_say_what_becomes_of_tables_heads_biases_and_norms(tmp_path):
    changes = {name: noise(shape, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}
    base, tuned = pair(tmp_path, changes)
    adapter, _ = extract(tuned, base, rank=2, choices=Choices("lora", "replace"))
    assert adapter.factors[TABLE].kind == "embedding"
    assert set(adapter.replaced) == {HEAD, NORM}
    assert set(adapter.added) == {UP_BIAS}
    adapter, report = extract(tuned, base, rank=2, choices=Choices("skip", "skip", "skip", "skip"))
    assert set(adapter.factors) == {Q, UP}
    assert not adapter.replaced
    assert not adapter.added
    assert {t.key for t in report.left_out} == {TABLE, HEAD, UP_BIAS, NORM}
    assert [f.code for f in report.findings] == ["left-out"]
    assert report.error > by_key(report)[TABLE].change


def test_factors_follow_the_orientation_of_the_base(tmp_path):
    names = {
        "h.0.attn.c_attn.weight": (8, 24),
        "h.0.mlp.c_fc.weight": (8, 32),
        "wte.weight": (40, 8),
    }
    change = {"h.0.mlp.c_fc.weight": low_rank((8, 32), 2)}
    base, tuned = pair(tmp_path, change, base_tensors(names), {"model_type": "gpt2"})
    adapter, _ = extract(tuned, base, rank=2)
    factors = adapter.factors["h.0.mlp.c_fc.weight"]
    assert factors.input_first
    assert factors.change.shape == (8, 32)
    write_adapter(adapter, tmp_path / "out", base=base)
    stored = load_file(tmp_path / "out/adapter_model.safetensors")
    a = next(t for n, t in stored.items() if "lora_A" in n)
    assert tuple(a.shape) == (2, 8)


def test_fused_experts_are_factored_one_by_one(tmp_path):
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors = base_tensors({**SHAPES, name: (3, 10, 12)})
    changed = torch.zeros(3, 10, 12)
    changed[1], changed[2] = low_rank((10, 12), 2), low_rank((10, 12), 1, seed=7)
    base, tuned = pair(tmp_path, {name: changed}, tensors)
    adapter, report = extract(tuned, base, rank=2)
    assert {f.part: f.change.rank for f in adapter.factors.values()} == {1: 2, 2: 2}
    for factors in adapter.factors.values():
        made = factors.change.left @ factors.change.right
        np.testing.assert_allclose(made, changed[factors.part], atol=1e-6)
    assert report.relative < 1e-6
    write_adapter(adapter, tmp_path / "out", base=base)
    merged = attach(base, [(open_adapter(tmp_path / "out"), 1.0)])
    np.testing.assert_allclose(
        read_matrix(merged.tensors[name]), read_matrix(tuned.tensors[name]), atol=1e-6
    )


@pytest.mark.parametrize("embeddings", ["replace", "lora"])
def test_a_tied_table_counts_once_and_its_two_copies_cost_bytes(tmp_path, embeddings):
    tied = {**LLAMA, "tie_word_embeddings": True}
    tensors = {n: t for n, t in base_tensors().items() if n != HEAD}
    changes = {TABLE: noise((40, 12)), Q: low_rank((12, 12), 2)}
    base, tuned = pair(tmp_path, changes, tensors, tied)
    adapter, report = extract(tuned, base, rank=2, choices=Choices(embeddings))
    assert HEAD not in by_key(report)
    write_adapter(adapter, tmp_path / "out", base=base)
    stored = load_file(tmp_path / "out/adapter_model.safetensors")
    assert sum(t.numel() * 4 for t in stored.values()) == report.nbytes


def test_a_head_that_the_fine_tune_untied_is_lost_with_a_warning(tmp_path):
    tied = {**LLAMA, "tie_word_embeddings": True}
    tensors = base_tensors()
    without = {n: t for n, t in tensors.items() if n != HEAD}
    base = save(tmp_path / "base", without, tied)
    equal = save(
        tmp_path / "equal", {**without, HEAD: without[TABLE].clone(), Q: tensors[Q] + 1}, NO_TIES
    )
    adapter, report = extract(equal, base, rank=1)
    assert set(adapter.factors) == {Q}
    assert not report.findings
    apart = save(tmp_path / "apart", {**tensors, Q: tensors[Q] + 1}, NO_TIES)
    _, report = extract(apart, base, rank=1)
    assert [t.key for t in report.left_out] == [HEAD]
    assert "ties its head" in report.findings[0].message


def test_a_head_that_the_fine_tune_tied_is_factored(tmp_path):
    tensors = base_tensors()
    tuned = {n: t for n, t in tensors.items() if n != HEAD}
    base = save(tmp_path / "base", tensors, NO_TIES)
    finetune = save(tmp_path / "tuned", tuned, {**LLAMA, "tie_word_embeddings": True})
    adapter, _ = extract(finetune, base, energy=1.0)
    made = adapter.factors[HEAD].change
    np.testing.assert_allclose(made.left @ made.right, tensors[TABLE] - tensors[HEAD], atol=1e-5)


def test_a_resized_vocabulary_is_stored_whole(tmp_path):
    tensors = base_tensors()
    grown = {n: torch.cat([t, t[:3]]) if n in (TABLE, HEAD) else t for n, t in tensors.items()}
    base, finetune = (
        save(tmp_path / "base", tensors),
        save(tmp_path / "tuned", {**grown, Q: grown[Q] + 1}),
    )
    adapter, report = extract(finetune, base, rank=1, choices=Choices("lora", "lora"))
    assert {n: v.shape for n, v in adapter.replaced.items()} == {TABLE: (43, 12), HEAD: (43, 12)}
    assert [f.code for f in report.findings] == ["resized", "resized"]


def test_what_adapters_have_no_place_for_is_left_out_and_counted(tmp_path):
    names = {**SHAPES, "model.token_mask": (4, 4), "model.layers.0.step": (3,)}
    tensors = {**base_tensors(names), "model.layers.0.step": torch.tensor([1, 2, 3])}
    base = save(tmp_path / "base", tensors)
    changed = {
        **tensors,
        Q: tensors[Q] + low_rank((12, 12), 1),
        "model.token_mask": tensors["model.token_mask"] + 1,
        "model.layers.0.step": torch.tensor([1, 2, 4]),
    }
    _, report = extract(save(tmp_path / "tuned", changed), base, rank=1)
    assert {t.key for t in report.left_out} == {"model.token_mask", "model.layers.0.step"}
    assert by_key(report)["model.layers.0.step"].change is None
    assert report.error == pytest.approx(4.0, rel=1e-5)


def test_a_change_within_rounding_is_told(tmp_path):
    tensors = {n: t.to(torch.bfloat16) for n, t in base_tensors().items()}
    exact = low_rank((12, 12), 2, size=1e-3)
    near = {**tensors, Q: (tensors[Q].float() + exact).to(torch.bfloat16)}
    far = {**tensors, Q: (tensors[Q].float() + 300 * exact).to(torch.bfloat16)}
    base = save(tmp_path / "base", tensors)
    _, report = extract(save(tmp_path / "near", near), base, rank=2)
    assert [f.code for f in report.findings] == ["within-rounding"]
    _, report = extract(save(tmp_path / "far", far), base, energy=1.0)
    assert not report.findings
    # The spectrum has a cliff behind the two directions that were trained.
    assert by_key(report)[Q].signal == 2
    assert by_key(report)[Q].rank > 4


# Wrong input.


def test_masks_scalars_and_tensors_without_elements_do_not_matter(tmp_path):
    mask = torch.full((4, 4), float("-inf")).triu(1)
    more = {
        "model.layers.0.mask": mask,
        "model.scale": torch.tensor(2.0),
        "model.nothing.weight": torch.zeros(0, 12),
        "model.none.weight": torch.zeros(5, 0),
    }
    tensors = {**base_tensors(), **more}
    base = save(tmp_path / "base", tensors)
    tuned = {**tensors, Q: tensors[Q] + low_rank((12, 12), 1), "model.scale": torch.tensor(3.0)}
    _, report = extract(save(tmp_path / "tuned", tuned), base, rank=1)
    assert {t.key: t.treatment.value for t in report.tensors} == {
        Q: "factored",
        "model.scale": "left out",
    }
    _, report = extract(
        save(tmp_path / "other", {**tuned, "model.layers.0.mask": mask.T}), base, rank=1
    )
    assert by_key(report)["model.layers.0.mask"].change is None


def test_a_norm_that_counts_its_batches_is_replaced_whole(tmp_path):
    """The count beside its weight is an integer, which no adapter holds."""
    count = {"model.norm.num_batches_tracked": torch.tensor(7)}
    changes = {NORM: noise((12,)), Q: low_rank((12, 12), 2)}
    base, tuned = pair(tmp_path, changes, base_tensors() | count)
    adapter, _ = extract(tuned, base, rank=2)
    write_adapter(adapter, tmp_path / "adapter", base=base)
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert [name for name in stored if "norm" in name] == ["base_model.model.model.norm.weight"]


def test_equal_models_have_nothing_to_extract(tmp_path):
    base, tuned = pair(tmp_path, {})
    with pytest.raises(CompatibilityError, match="same weights"):
        extract(tuned, base, rank=1)


def test_models_of_other_shapes_or_tensors_are_refused(tmp_path):
    tensors = base_tensors()
    base = save(tmp_path / "base", tensors)
    wide = save(tmp_path / "wide", {**tensors, UP: torch.zeros(24, 12)})
    with pytest.raises(CompatibilityError, match=r"\(24, 12\).*\(20, 12\)"):
        extract(wide, base, rank=1)
    less = save(tmp_path / "less", {n: t for n, t in tensors.items() if n != UP})
    with pytest.raises(CompatibilityError, match="up_proj"):
        extract(less, base, rank=1)


def test_nan_in_a_changed_tensor_is_an_error(tmp_path):
    broken = noise((20, 12))
    broken[3, 4] = float("nan")
    base, tuned = pair(tmp_path, {UP: broken})
    with pytest.raises(NonFiniteError, match="up_proj"):
        extract(tuned, base, rank=1)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"rank": 0},
        {"energy": 0.0},
        {"energy": 1.5},
        {"error": 1.0},
        {"budget_bytes": 0},
        {"energy": 0.5, "error": 0.5},
        {"energy": 0.5, "budget_bytes": 100},
        {"rank": 1, "dtype": DType.INT8},
        {"rank": 13},
    ],
)
def test_bounds_without_meaning_are_refused(tmp_path, asked):
    base, tuned = pair(tmp_path, {Q: low_rank((12, 12), 1)})
    with pytest.raises(UsageError):
        extract(tuned, base, **asked)


def test_a_budget_below_what_is_stored_whole_is_refused(tmp_path):
    base, tuned = pair(tmp_path, {TABLE: noise((40, 12)), Q: low_rank((12, 12), 1)})
    with pytest.raises(UsageError, match="whole"):
        extract(tuned, base, budget_bytes=1000)


def test_ranks_of_different_threads_are_the_same(tmp_path):
    changes = {name: noise(shape, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}
    base, tuned = pair(tmp_path, changes)
    first, one = extract(tuned, base, budget_bytes=6000, threads=1)
    second, two = extract(tuned, base, budget_bytes=6000, threads=4)
    assert one == replace(two)
    for key, factors in first.factors.items():
        np.testing.assert_array_equal(factors.change.left, second.factors[key].change.left)


ODD = {
    "positions": (1, 12),
    "model.positions": (3, 12),
    "model.layers.0.gate.running": (12,),
    "2_Dense/model.safetensors/linear.weight": (4, 12),
}


def _with_odd_tensors(tmp_path):
    """A bare parameter, parameters beside modules with factors, a module in a file of its own, an integer counter."""
    tensors = base_tensors({**SHAPES, **{n: s for n, s in ODD.items() if "/" not in n}})
    tensors["model.seen"] = torch.tensor(3)
    dense = base_tensors({"linear.weight": (4, 12)})
    changes = {n: noise(t.shape, i) for i, (n, t) in enumerate(tensors.items()) if t.ndim}
    found = []
    for name, sign in (("base", 0.0), ("tuned", 1.0)):
        own = {
            n: t + sign * changes[n] if n in changes else t + int(4 * sign)
            for n, t in tensors.items()
        }
        save(tmp_path / name, own)
        place = tmp_path / name / "2_Dense"
        place.mkdir()
        save_file({"linear.weight": dense["linear.weight"] + sign}, place / "model.safetensors")
        (tmp_path / name / "modules.json").write_text('[{"path": ""}, {"path": "2_Dense"}]')
        found.append(open_checkpoint(tmp_path / name))
    return found


def test_odd_tensors_are_left_out_with_a_warning_and_the_rest_is_written(tmp_path):
    base, tuned = _with_odd_tensors(tmp_path)
    adapter, report = extract(tuned, base, rank=12)
    assert {t.key for t in report.left_out} == {*ODD, "model.seen"}
    whys = {f.message.rpartition(": ")[2] for f in report.findings if f.code == "left-out"}
    assert len(whys) >= 3
    write_adapter(adapter, tmp_path / "out", base=base)
    merged = attach(base, [(open_adapter(tmp_path / "out"), 1.0)])
    for name in SHAPES:
        found, wanted = read_matrix(merged.tensors[name]), read_matrix(tuned.tensors[name])
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_what_a_pattern_excludes_is_left_out_whatever_it_is(tmp_path):
    base, tuned = pair(tmp_path, {n: noise(s) for n, s in SHAPES.items()})
    _, report = extract(tuned, base, rank=2, choices=Choices(exclude=("*.mlp.*", HEAD)))
    assert {t.key for t in report.left_out} == {UP, UP_BIAS, HEAD}
    assert {t.why for t in report.left_out} == {"it was asked to be excluded"}
    with pytest.raises(UsageError, match=r"did you mean 'model\.norm\.weight'"):
        extract(tuned, base, rank=2, choices=Choices(exclude=("model.norms.weight",)))


def test_tensors_that_do_not_fit_together_may_be_excluded(tmp_path):
    tensors = base_tensors()
    base = save(tmp_path / "base", tensors)
    tuned = save(tmp_path / "tuned", {**tensors, Q: noise((12, 24)), UP: tensors[UP] + 1})
    with pytest.raises(CompatibilityError, match="has the shape"):
        extract(tuned, base, rank=2)
    _, report = extract(tuned, base, rank=2, choices=Choices(exclude=(Q,)))
    assert [t.key for t in report.left_out] == [Q]


def test_an_extracted_resized_vocabulary_is_merged_back(tmp_path):
    tensors = base_tensors()
    base = save(tmp_path / "base", tensors, {**NO_TIES, "vocab_size": 40})
    grown = {TABLE: noise((43, 12), 3), HEAD: noise((43, 12), 4), Q: tensors[Q] + noise((12, 12))}
    tuned = save(tmp_path / "tuned", {**tensors, **grown}, {**NO_TIES, "vocab_size": 43})
    adapter, _ = extract(tuned, base, rank=12)
    write_adapter(adapter, tmp_path / "out", base=base)
    merged = attach(base, [(open_adapter(tmp_path / "out"), 1.0)])
    assert merged.config["vocab_size"] == merged.vocab_size == 43
    for name in tensors:
        found, wanted = read_matrix(merged.tensors[name]), read_matrix(tuned.tensors[name])
        np.testing.assert_allclose(found, wanted, atol=1e-5)
