"""Every form of update loaded as a product of low rank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.adapters.adapter import Adapter, Form, Update
from weightsmith.checkpoints import open_checkpoint
from weightsmith.deltas.changes import Full, Hadamard, Kronecker, LowRankChange, Stacked
from weightsmith.errors import CompatibilityError
from weightsmith.lora.low_rank_adapters import low_rank_adapter
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.files.safetensors_header import read_header

from .lora import change, dense

RNG = np.random.default_rng(0)
W = RNG.normal(size=(12, 10)).astype(np.float32)
TABLE = RNG.normal(size=(7, 3)).astype(np.float32)


@pytest.fixture
def base(tmp_path):
    save_file({"w.weight": W, "table.weight": TABLE}, tmp_path / "base.safetensors")
    return open_checkpoint(tmp_path / "base.safetensors")


def stored(folder, **arrays):
    save_file(arrays, folder / "stored.safetensors")
    return {tensor.name: tensor for tensor in read_header(folder / "stored.safetensors")}


def holding(*updates):
    return Adapter(Path("x"), "x", "peft", {u.key: u for u in updates}, base_reference="org/b")


def update(found, form=Form.LORA, target="w.weight", **more):
    shape = more.pop("shape", found.shape)
    return Update(target, form, more.pop("sources", ()), lambda: found, shape, **more)


def test_lora_is_taken_as_it_is():
    found = change(RNG, scale=0.5)
    loaded = low_rank_adapter(holding(update(found, input_first=True)))
    (factors,) = loaded.factors.values()
    assert factors.change is found
    assert factors.input_first
    assert (factors.kind, factors.key, factors.shape) == ("linear", "w.weight", (12, 10))
    assert loaded.base_reference == "org/b"
    assert loaded.parameters == 3 * (12 + 10)


@pytest.mark.parametrize(
    ("found", "rank"),
    [
        (Hadamard(change(RNG, rank=2), change(RNG, rank=3)), 6),
        (Kronecker(RNG.normal(size=(3, 2)), change(RNG, (4, 5), 1).rows(0, 4)), 2),
        (Full(RNG.normal(size=(12, 10))), 10),
    ],
)
def test_other_forms_are_exact_or_cut_as_asked(found, rank):
    whole = low_rank_adapter(holding(update(found, Form.FULL))).factors["w.weight"].change
    assert whole.rank == rank
    true = found.rows(0, 12)
    assert np.allclose(dense(whole), true, atol=1e-12)
    cut = low_rank_adapter(holding(update(found, Form.FULL)), rank=2).factors["w.weight"].change
    u, s, vt = np.linalg.svd(true)
    assert cut.rank == 2
    assert np.allclose(dense(cut), (u[:, :2] * s[:2]) @ vt[:2], atol=1e-10)


def test_convolutions_count_as_matrices_and_experts_one_by_one():
    kernel = change(RNG, (6, 4 * 9))
    parts = tuple(change(RNG) for _ in range(3))
    loaded = low_rank_adapter(
        holding(
            update(kernel, target="conv.weight", shape=(6, 4, 3, 3)),
            update(Stacked(parts), target="experts.down_proj", shape=(3, 12, 10)),
        )
    )
    conv = loaded.factors["conv.weight"]
    assert (conv.kind, conv.shape) == ("conv", (6, 4, 3, 3))
    for number, part in enumerate(parts):
        expert = loaded.factors[f"experts.down_proj[{number}]"]
        assert (expert.target, expert.part, expert.kind) == ("experts.down_proj", number, "linear")
        assert expert.shape == (3, 12, 10)
        assert expert.change is part


def test_embeddings_are_told_by_their_factors(tmp_path):
    names = stored(tmp_path, **{"x.lora_embedding_A": np.ones((2, 7), np.float16)})
    loaded = low_rank_adapter(holding(update(change(RNG), sources=tuple(names.values()))))
    assert loaded.factors["w.weight"].kind == "embedding"
    assert loaded.dtype is DType.FLOAT16


def test_vectors_are_added_whole():
    bias = Full(np.arange(4.0)[:, None], 2.0)
    loaded = low_rank_adapter(
        holding(
            update(bias, Form.FULL, "x.bias", shape=(4,)),
            update(Full(np.ones((1, 3))), Form.FULL, "y.bias", shape=None),
        )
    )
    assert not loaded.factors
    assert np.array_equal(loaded.added["x.bias"], 2.0 * np.arange(4))
    assert np.array_equal(loaded.added["y.bias"], np.ones(3))


def test_a_tensor_of_a_component_keeps_its_components_name():
    loaded = low_rank_adapter(
        holding(
            update(change(RNG), component="unet"), update(change(RNG), component="text_encoder")
        )
    )
    assert list(loaded.factors) == ["unet.w.weight", "text_encoder.w.weight"]


def test_whole_tensors_are_replaced(tmp_path, base):
    new = stored(tmp_path, new=TABLE + 1.0)["new"]
    alone = Update("table.weight", Form.REPLACED, (new,), replacement=new)
    assert np.array_equal(low_rank_adapter(holding(alone)).replaced["table.weight"], TABLE + 1.0)
    # With factors on top the table is what both make of it.
    small = change(RNG, (7, 3), 1)
    both = Update("table.weight", Form.LORA, (new,), lambda: small, (7, 3), replacement=new)
    for given in (None, base):
        found = low_rank_adapter(holding(both), given)
        assert not found.factors
        assert np.allclose(found.replaced["table.weight"], TABLE + 1.0 + dense(small), atol=1e-6)


def test_a_saved_copy_of_the_bases_table_is_no_change(tmp_path, base):
    copy = stored(tmp_path, copy=TABLE)["copy"]
    small = change(RNG, (7, 3), 1)
    both = Update("table.weight", Form.LORA, (copy,), lambda: small, (7, 3), replacement=copy)
    found = low_rank_adapter(holding(both), base)
    assert not found.replaced
    assert found.factors["table.weight"].change is small


def test_trained_rows_need_the_base(tmp_path, base):
    rows = stored(tmp_path, rows=np.full((2, 3), 9.0, np.float32))["rows"]
    given = Update("table.weight", Form.ROWS, (rows,), replacement=rows, rows=(1, 4))
    expected = TABLE.copy()
    expected[[1, 4]] = 9.0
    found = low_rank_adapter(holding(given), base)
    assert np.array_equal(found.replaced["table.weight"], expected)
    with pytest.raises(CompatibilityError, match=r"replaces some rows .* name the base"):
        low_rank_adapter(holding(given))


@pytest.mark.parametrize("by_column", [False, True])
def test_a_dora_is_what_it_makes_of_the_base_less_the_base(tmp_path, base, by_column):
    axis = 0 if by_column else 1
    lengths = RNG.uniform(0.5, 2.0, W.shape[1 - axis]).astype(np.float32)
    magnitude = stored(tmp_path, g=lengths)["g"]
    small = change(RNG, scale=0.5)
    given = update(small, magnitude=magnitude, by_column=by_column)
    changed = W + dense(small)
    gain = lengths / np.linalg.norm(changed, axis=axis)
    expected = changed * np.expand_dims(gain, axis) - W
    found = low_rank_adapter(holding(given), base).factors["w.weight"].change
    assert np.allclose(dense(found), expected, rtol=0, atol=1e-12)
    with pytest.raises(CompatibilityError, match="DoRA, which divides by norms"):
        low_rank_adapter(holding(given))


def test_a_dora_of_rows_of_zeros_stays_finite(tmp_path):
    save_file({"w.weight": np.zeros((12, 10), np.float32)}, tmp_path / "zeros.safetensors")
    magnitude = stored(tmp_path, g=np.ones(12, np.float32))["g"]
    zero = LowRankChange(np.zeros((12, 2)), np.ones((2, 10)))
    given = update(zero, magnitude=magnitude)
    found = low_rank_adapter(holding(given), open_checkpoint(tmp_path / "zeros.safetensors"))
    assert not dense(found.factors["w.weight"].change).any()


def test_a_base_without_the_tensor_or_of_another_shape_is_refused(tmp_path, base):
    magnitude = stored(tmp_path, g=np.ones(12, np.float32))["g"]
    with pytest.raises(CompatibilityError, match=r"no tensor 'other\.weight'"):
        low_rank_adapter(
            holding(update(change(RNG), target="other.weight", magnitude=magnitude)), base
        )
    with pytest.raises(CompatibilityError, match="changes 12 x 10 elements"):
        low_rank_adapter(
            holding(update(change(RNG), target="table.weight", magnitude=magnitude)), base
        )
