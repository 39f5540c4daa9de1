import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.checkpoints import open_checkpoint
from weightsmith.deltas.changes import LowRankChange
from weightsmith.lora.adapter_facts import inspect_adapter
from weightsmith.lora.adapter_writing import write_adapter
from weightsmith.lora.low_rank_adapters import Factors, LowRankAdapter
from weightsmith.tensors.dtypes import DType


def _with_values(rng, values, rows, columns):
    """A change with these singular values."""
    left = np.linalg.qr(rng.standard_normal((rows, len(values))))[0]
    right = np.linalg.qr(rng.standard_normal((columns, len(values))))[0]
    return LowRankChange(left * np.array(values), right.T)


def test_figures_are_those_of_the_dense_change(tmp_path):
    rng = np.random.default_rng(0)
    values = [4.0, 2.0, 1.0, 1e-5]
    change = _with_values(rng, values, 9, 7)
    scaled = LowRankChange(change.left, change.right, 0.5)
    name = "m.a.weight"
    write_adapter(LowRankAdapter({name: Factors(name, scaled, (9, 7))}), tmp_path / "a")
    weight = rng.standard_normal((9, 7)).astype(np.float32)
    save_file({name: weight}, tmp_path / "base.safetensors")
    found = inspect_adapter(tmp_path / "a", open_checkpoint(tmp_path / "base.safetensors"))
    (tensor,) = found.tensors
    assert (tensor.target, tensor.rank, tensor.alpha, tensor.scale) == (name, 4, 2.0, 0.5)
    np.testing.assert_allclose(tensor.values[:3], [2.0, 1.0, 0.5], rtol=1e-6)
    assert tensor.norm == pytest.approx(np.sqrt(5.25), rel=1e-6)
    assert tensor.share == pytest.approx(tensor.norm / np.linalg.norm(weight), rel=1e-6)
    assert tensor.directions == 3
    shares = np.array(values) / sum(values)
    assert tensor.effective_rank == pytest.approx(
        np.exp(-(shares * np.log(shares)).sum()), rel=1e-4
    )
    assert (found.dialect, found.forms, found.ranks) == ("peft", {"lora": 1}, (4,))
    assert (found.parameters, found.nbytes) == (4 * (9 + 7), 4 * 4 * (9 + 7))
    assert tensor.dtypes == (DType.FLOAT32,)


def test_a_change_of_zero_has_no_directions(tmp_path):
    change = LowRankChange(np.zeros((3, 2)), np.ones((2, 4)))
    write_adapter(LowRankAdapter({"a.weight": Factors("a.weight", change, (3, 4))}), tmp_path / "a")
    (tensor,) = inspect_adapter(tmp_path / "a").tensors
    assert (tensor.norm, tensor.effective_rank, tensor.directions) == (0.0, 0.0, 0)


def test_products_of_other_forms_are_measured_as_what_they_are(tmp_path):
    rng = np.random.default_rng(1)
    numbers = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    parts = {"hada_w1_a": (6, 2), "hada_w1_b": (2, 5), "hada_w2_a": (6, 1), "hada_w2_b": (1, 5)}
    tensors = {f"lora_unet_a.{n}": numbers(*shape) for n, shape in parts.items()}
    tensors |= {"lora_unet_b.lokr_w1": numbers(2, 2), "lora_unet_b.lokr_w2": numbers(3, 2)}
    tensors["lora_unet_c.diff_b"] = numbers(5)
    save_file(tensors, tmp_path / "l.safetensors")
    found = inspect_adapter(tmp_path / "l.safetensors")
    wide = {n: t.astype(np.float64) for n, t in tensors.items()}
    loha = [wide[f"lora_unet_a.{n}"] for n in parts]
    lokr = np.kron(wide["lora_unet_b.lokr_w1"], wide["lora_unet_b.lokr_w2"])
    expected = [(loha[0] @ loha[1]) * (loha[2] @ loha[3]), lokr, wide["lora_unet_c.diff_b"]]
    for tensor, change in zip(found.tensors, expected, strict=True):
        assert tensor.norm == pytest.approx(np.linalg.norm(change), rel=1e-9)
        assert tensor.component == "unet"
        values = np.linalg.svd(np.atleast_2d(change), compute_uv=False)
        np.testing.assert_allclose(tensor.values, values[values > 1e-9], rtol=1e-9)
    assert found.dialect == "lycoris"
    assert found.forms == {"full": 1, "loha": 1, "lokr": 1}


def test_magnitudes_and_replaced_tensors_are_counted(tmp_path):
    rng = np.random.default_rng(2)
    folder = tmp_path / "a"
    folder.mkdir()
    numbers = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    path = "base_model.model.m"
    tensors = {
        f"{path}.q.lora_A.weight": numbers(2, 4),
        f"{path}.q.lora_B.weight": numbers(3, 2),
        f"{path}.q.lora_magnitude_vector": numbers(3),
        f"{path}.norm.weight": numbers(4),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "use_dora": True}
    config |= {"target_modules": ["q"], "modules_to_save": ["norm"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    base = {"m.q.weight": numbers(3, 4), "m.norm.weight": numbers(4)}
    save_file(base, tmp_path / "base.safetensors")
    found = inspect_adapter(folder, open_checkpoint(tmp_path / "base.safetensors"))
    norm, factors = found.tensors
    assert found.is_dora
    assert factors.is_dora
    assert found.parameters == 8 + 6 + 3 + 4
    step = tensors[f"{path}.norm.weight"].astype(float) - base["m.norm.weight"]
    assert norm.norm == pytest.approx(np.linalg.norm(step), rel=1e-12)
    assert inspect_adapter(folder).tensors[0].norm is None


def test_the_size_of_a_change_with_a_huge_scale_does_not_overflow(tmp_path):
    module = "base_model.model.model.layers.{}.self_attn.q_proj"
    tensors = {}
    for layer in (0, 1):
        tensors[f"{module.format(layer)}.lora_A.weight"] = np.eye(2, 4, dtype=np.float32)
        tensors[f"{module.format(layer)}.lora_B.weight"] = np.eye(4, 2, dtype=np.float32)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 1e306, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = inspect_adapter(tmp_path)
    # Two directions of alpha / r = 5e305 in each of two tensors.
    assert [t.norm for t in found.tensors] == pytest.approx([2**0.5 * 5e305] * 2)
    assert found.norm == pytest.approx(1e306)
    assert [t.effective_rank for t in found.tensors] == pytest.approx([2.0, 2.0])
