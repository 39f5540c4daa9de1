import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from weightsmith.adapters.adapter_reading import open_adapter
from weightsmith.adapters.attaching import attach
from weightsmith.checkpoints import open_checkpoint
from weightsmith.deltas.changed import read_matrix
from weightsmith.errors import (
    CheckpointError,
    CompatibilityError,
    OutputError,
    UsageError,
)
from weightsmith.lora.converting import convert
from weightsmith.tensors.dtypes import DType

SHAPES = {
    "model.layers.0.self_attn.q_proj": (8, 6),
    "model.layers.0.mlp.up_proj": (10, 6),
    "model.conv": (5, 4, 3, 3),
    "model.point": (4, 5, 1, 1),
}


@pytest.fixture
def base(tmp_path):
    rng = np.random.default_rng(7)
    tensors = {f"{n}.weight": rng.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()}
    for name in ("model.conv", "model.point"):
        tensors[f"{name}.bias"] = rng.standard_normal(SHAPES[name][0]).astype(np.float32)
    tensors["model.norm.weight"] = rng.standard_normal(6).astype(np.float32)
    save_file(tensors, tmp_path / "base.safetensors")
    return open_checkpoint(tmp_path / "base.safetensors")


def _save(tensors, path, dtype="float32", metadata=None):
    """Saved by torch, which knows bfloat16."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save

    kind = getattr(torch, dtype)
    save({n: torch.from_numpy(v).to(kind) for n, v in tensors.items()}, path, metadata)


def _peft(folder, *, ranks=(2, 2, 3, 1), alpha=None, dtype="float32", dora=False, **config):
    """An adapter in PEFT's layout for all of SHAPES."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    tensors = {}
    for (name, shape), rank in zip(SHAPES.items(), ranks, strict=True):
        path = f"base_model.model.{name}"
        tensors[f"{path}.lora_A.weight"] = rng.standard_normal((rank, *shape[1:]))
        ones = (1,) * (len(shape) - 2)
        tensors[f"{path}.lora_B.weight"] = rng.standard_normal((shape[0], rank, *ones))
        if dora:
            size = (1, shape[0], *ones) if ones else (shape[0],)
            tensors[f"{path}.lora_magnitude_vector"] = 1 + rng.random(size)
    _save(
        {n: v.astype(np.float32) for n, v in tensors.items()},
        folder / "adapter_model.safetensors",
        dtype,
    )
    content = {
        "peft_type": "LORA",
        "r": ranks[0],
        "lora_alpha": ranks[0] if alpha is None else alpha,
        "rank_pattern": {n: r for n, r in zip(SHAPES, ranks, strict=True) if r != ranks[0]},
        "target_modules": list(SHAPES),
        "use_dora": dora,
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder


def _changed(base, path, **options):
    """Every tensor of the base with the adapter."""
    found = attach(base, [(open_adapter(path), 1.0)], **options)
    return {name: read_matrix(tensor) for name, tensor in found.tensors.items()}


def _assert_same(base, one, other, rtol=1e-6):
    before, after = _changed(base, one), _changed(base, other)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_allclose(after[name], before[name], rtol=rtol, atol=rtol, err_msg=name)


def _factors(path):
    """All changes of an adapter, dense."""
    updates = open_adapter(path).updates.values()
    return {
        u.target.replace(".", "_"): u.load().rows(0, u.load().shape[0])
        for u in updates
        if u.load is not None
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rslora", [False, True])
def test_peft_to_kohya_and_back_keeps_every_change_and_the_dtype(tmp_path, base, dtype, rslora):
    source = _peft(tmp_path / "peft", alpha=5, dtype=dtype, use_rslora=rslora)
    there = convert(source, tmp_path / "k.safetensors", "kohya")
    back = convert(tmp_path / "k.safetensors", tmp_path / "back", "peft", base=base)
    assert there.dtype is back.dtype is DType.parse(dtype)
    assert there.error == back.error == 0.0
    first, last = _factors(source), _factors(tmp_path / "back")
    assert first.keys() == last.keys()
    for name, change in first.items():
        # The factors are the same bits; alpha is float32 in a kohya file.
        np.testing.assert_allclose(last[name], change, rtol=1e-7)
    _assert_same(base, source, tmp_path / "back")
    names = {f"{n}.lora_{f}.weight" for n in SHAPES for f in "AB"}
    with safe_open(tmp_path / "back/adapter_model.safetensors", "np") as file:
        found = list(file.keys())
    assert {n.removeprefix("base_model.model.") for n in found} == names


def test_a_kohya_file_has_a_scalar_alpha_for_each_module_and_the_metadata_of_trainers(tmp_path):
    convert(_peft(tmp_path / "peft", alpha=5), tmp_path / "k.safetensors", "kohya")
    tensors = load_file(tmp_path / "k.safetensors")
    alphas = {n: t for n, t in tensors.items() if n.endswith(".alpha")}
    assert {a.shape for a in alphas.values()} == {()}
    assert float(alphas["lora_unet_model_conv.alpha"]) == 5.0
    assert tensors["lora_unet_model_conv.lora_down.weight"].shape == (3, 4, 3, 3)
    assert tensors["lora_unet_model_conv.lora_up.weight"].shape == (5, 3, 1, 1)
    with safe_open(tmp_path / "k.safetensors", "np") as file:
        metadata = file.metadata()
    assert metadata["ss_network_dim"] == "2"
    assert metadata["ss_network_alpha"] == "5"
    assert metadata["ss_network_module"] == "networks.lora"
    assert json.loads(metadata["ss_network_args"]) == {"conv_alpha": "5", "conv_dim": "1"}


def test_a_kohya_file_without_alpha_has_scale_one(tmp_path, base):
    rng = np.random.default_rng(0)
    up, down = rng.standard_normal((8, 3)), rng.standard_normal((3, 6))
    name = "lora_te_model_layers_0_self_attn_q_proj"
    tensors = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
    save_file({n: t.astype(np.float32) for n, t in tensors.items()}, tmp_path / "k.safetensors")
    convert(tmp_path / "k.safetensors", tmp_path / "out", "peft", base=base)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 3)
    (found,) = _factors(tmp_path / "out").values()
    np.testing.assert_allclose(found, up @ down, rtol=1e-5, atol=1e-6)


def test_magnitudes_go_to_kohya_and_back(tmp_path, base):
    source = _peft(tmp_path / "peft", alpha=1, dora=True)
    convert(source, tmp_path / "k.safetensors", "kohya")
    scales = load_file(tmp_path / "k.safetensors")
    assert scales["lora_unet_model_conv.dora_scale"].shape == (5, 1, 1, 1)
    assert scales["lora_unet_model_layers_0_self_attn_q_proj.dora_scale"].shape == (8, 1)
    _assert_same(base, source, tmp_path / "k.safetensors")
    convert(tmp_path / "k.safetensors", tmp_path / "back", "peft", base=base)
    one, other = (load_file(p / "adapter_model.safetensors") for p in (source, tmp_path / "back"))
    assert {n: t.shape for n, t in one.items()} == {n: t.shape for n, t in other.items()}
    _assert_same(base, source, tmp_path / "back")


def test_a_magnitude_by_input_stays_in_kohya_and_is_refused_by_peft(tmp_path, base):
    rng = np.random.default_rng(0)
    name = "lora_unet_model_layers_0_self_attn_q_proj"
    tensors = {
        f"{name}.lora_up.weight": rng.standard_normal((8, 2)),
        f"{name}.lora_down.weight": rng.standard_normal((2, 6)),
        f"{name}.dora_scale": 1 + rng.random((1, 6)),
    }
    save_file({n: t.astype(np.float32) for n, t in tensors.items()}, tmp_path / "k.safetensors")
    convert(tmp_path / "k.safetensors", tmp_path / "again.safetensors", "kohya", base=base)
    assert load_file(tmp_path / "again.safetensors")[f"{name}.dora_scale"].shape == (1, 6)
    _assert_same(base, tmp_path / "k.safetensors", tmp_path / "again.safetensors")
    with pytest.raises(CompatibilityError, match="one for each input"):
        convert(tmp_path / "k.safetensors", tmp_path / "out", "peft", base=base)
    assert not (tmp_path / "out").exists()


def _lycoris(path):
    rng = np.random.default_rng(3)
    numbers = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    loha, lokr = "lora_unet_model_layers_0_mlp_up_proj", "lora_unet_model_layers_0_self_attn_q_proj"
    tensors = {
        f"{loha}.hada_w1_a": numbers(10, 2),
        f"{loha}.hada_w1_b": numbers(2, 6),
        f"{loha}.hada_w2_a": numbers(10, 2),
        f"{loha}.hada_w2_b": numbers(2, 6),
        f"{loha}.alpha": np.array(1.0, np.float32),
        f"{lokr}.lokr_w1": numbers(2, 3),
        f"{lokr}.lokr_w2_a": numbers(4, 1),
        f"{lokr}.lokr_w2_b": numbers(1, 2),
        f"{lokr}.alpha": np.array(0.5, np.float32),
    }
    save_file(tensors, path)
    hada = [tensors[f"{loha}.hada_w{i}"].astype(float) for i in ("1_a", "1_b", "2_a", "2_b")]
    first = 0.5 * (hada[0] @ hada[1]) * (hada[2] @ hada[3])
    kron = [tensors[f"{lokr}.lokr_{p}"].astype(float) for p in ("w1", "w2_a", "w2_b")]
    return first, 0.5 * np.kron(kron[0], kron[1] @ kron[2])


def test_loha_and_lokr_become_lora_of_the_rank_that_they_have(tmp_path, base):
    expected = _lycoris(tmp_path / "l.safetensors")
    done = convert(tmp_path / "l.safetensors", tmp_path / "out", "peft", base=base)
    assert [(t.form.value, t.rank) for t in done.tensors] == [("loha", 4), ("lokr", 2)]
    assert done.error < 1e-6
    found = _factors(tmp_path / "out")
    names = "model_layers_0_mlp_up_proj_weight", "model_layers_0_self_attn_q_proj_weight"
    for name, change in zip(names, expected, strict=True):
        np.testing.assert_allclose(found[name], change, rtol=1e-5, atol=1e-5)


def test_loha_is_cut_to_a_rank_and_the_error_is_that_of_the_best_approximation(tmp_path, base):
    first, second = _lycoris(tmp_path / "l.safetensors")
    done = convert(tmp_path / "l.safetensors", tmp_path / "out", "peft", base=base, rank=1)
    for tensor, change in zip(done.tensors, (first, second), strict=True):
        values = np.linalg.svd(change, compute_uv=False)
        assert tensor.rank == 1
        assert tensor.error == pytest.approx(
            np.linalg.norm(values[1:]) / np.linalg.norm(values), rel=1e-5
        )


def test_bounds_with_nothing_to_cut_are_refused(tmp_path):
    with pytest.raises(UsageError, match="resize"):
        convert(_peft(tmp_path / "peft"), tmp_path / "out", "peft", rank=1)


def test_changes_of_biases_and_norms_survive_kohya(tmp_path, base):
    source = _peft(tmp_path / "peft")
    tensors = load_file(source / "adapter_model.safetensors")
    tensors["base_model.model.model.conv.bias"] = np.arange(5, dtype=np.float32)
    tensors["base_model.model.model.norm.weight"] = np.arange(6, dtype=np.float32)
    save_file(tensors, source / "adapter_model.safetensors")
    convert(source, tmp_path / "k.safetensors", "kohya", base=base)
    names = load_file(tmp_path / "k.safetensors")
    assert "lora_unet_model_conv.diff_b" in names
    assert "lora_unet_model_norm.w_norm" in names
    _assert_same(base, source, tmp_path / "k.safetensors")
    convert(tmp_path / "k.safetensors", tmp_path / "back", "peft", base=base)
    _assert_same(base, source, tmp_path / "back")
    with pytest.raises(CompatibilityError, match="--base"):
        convert(source, tmp_path / "x.safetensors", "kohya")


def test_the_task_of_an_adapter_is_kept(tmp_path):
    source = _peft(tmp_path / "peft", task_type="SEQ_2_SEQ_LM")
    convert(source, tmp_path / "out", "peft")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM"


def test_flat_names_need_the_base(tmp_path):
    convert(_peft(tmp_path / "peft"), tmp_path / "k.safetensors", "kohya")
    with pytest.raises(CompatibilityError, match="--base"):
        convert(tmp_path / "k.safetensors", tmp_path / "out", "peft")


def test_names_of_the_adapter_are_kept_where_the_base_is_stored_under_others(tmp_path, base):
    stored = {
        n.removeprefix("model."): read_matrix(t).astype(np.float32) for n, t in base.tensors.items()
    }
    save_file(stored, tmp_path / "body.safetensors")
    source = _peft(tmp_path / "peft")
    body = open_checkpoint(tmp_path / "body.safetensors")
    convert(source, tmp_path / "out", "peft", base=body)
    one, other = (load_file(p / "adapter_model.safetensors") for p in (source, tmp_path / "out"))
    assert one.keys() == other.keys()


def test_the_initial_adapter_is_taken_out(tmp_path):
    final = _peft(tmp_path / "final", alpha=3, init_lora_weights="pissa")
    initial = _peft(tmp_path / "initial", alpha=3, init_lora_weights="pissa")
    tensors = load_file(initial / "adapter_model.safetensors")
    save_file(
        {n: (t * 0.5).astype(np.float32) for n, t in tensors.items()},
        initial / "adapter_model.safetensors",
    )
    with pytest.raises(CompatibilityError, match="pissa"):
        convert(final, tmp_path / "out", "peft")
    convert(final, tmp_path / "out", "peft", initial=initial)
    # s B A - s (B / 2) (A / 2)
    plain = _factors(_peft(tmp_path / "plain", alpha=3))
    for name, change in _factors(tmp_path / "out").items():
        np.testing.assert_allclose(change, 0.75 * plain[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("damage", ["cut", "shape", "partner", "key", "config"])
def test_damaged_adapters_leave_nothing(tmp_path, damage):
    source = _peft(tmp_path / "peft")
    file = source / "adapter_model.safetensors"
    tensors = load_file(file)
    first = "base_model.model.model.conv.lora_A.weight"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "shape":
        save_file({**tensors, first: tensors[first][:2].copy()}, file)
    elif damage == "partner":
        save_file({n: t for n, t in tensors.items() if n != first}, file)
    elif damage == "key":
        save_file({**tensors, f"{first}.odd": tensors[first]}, file)
    else:
        (source / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError):
        convert(source, tmp_path / "k.safetensors", "kohya")
    assert [p.name for p in tmp_path.iterdir()] == ["peft"]


def test_the_output_may_not_be_the_input(tmp_path):
    source = _peft(tmp_path / "peft")
    for out in (source, source / "k.safetensors", tmp_path):
        with pytest.raises(OutputError, match="input"):
            convert(source, out, "peft", force=True)


def test_a_narrower_dtype_is_stored_and_its_rounding_reported(tmp_path):
    source = _peft(tmp_path / "peft")
    done = convert(source, tmp_path / "out", "peft", dtype=DType.BFLOAT16)
    first, last = _factors(source), _factors(tmp_path / "out")
    for tensor in done.tensors:
        name = tensor.target.replace(".", "_")
        lost = np.linalg.norm(first[name] - last[name]) / np.linalg.norm(first[name])
        assert tensor.error == pytest.approx(lost, rel=1e-4)
        assert 1e-4 < tensor.error < 1e-2


def test_components_are_kept_apart(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {}
    for prefix in (
        "unet.down_blocks.0.attentions.0.to_q",
        "text_encoder.text_model.encoder.q_proj",
    ):
        tensors[f"{prefix}.lora_A.weight"] = rng.standard_normal((2, 4)).astype(np.float32)
        tensors[f"{prefix}.lora_B.weight"] = rng.standard_normal((3, 2)).astype(np.float32)
    (tmp_path / "in").mkdir()
    save_file(tensors, tmp_path / "in/pytorch_lora_weights.safetensors")
    convert(tmp_path / "in", tmp_path / "k.safetensors", "kohya")
    assert {n.partition(".")[0] for n in load_file(tmp_path / "k.safetensors")} == {
        "lora_unet_down_blocks_0_attentions_0_to_q",
        "lora_te_text_model_encoder_q_proj",
    }
    convert(tmp_path / "in", tmp_path / "again", "diffusers")
    again = load_file(tmp_path / "again/pytorch_lora_weights.safetensors")
    assert {n: t.tolist() for n, t in again.items()} == {n: t.tolist() for n, t in tensors.items()}
    with pytest.raises(CompatibilityError, match="component"):
        convert(tmp_path / "in", tmp_path / "out", "peft")
    convert(tmp_path / "in", tmp_path / "out", "peft", component="text_encoder")
    assert list(_factors(tmp_path / "out")) == ["text_model_encoder_q_proj_weight"]


def test_biases_take_nothing_from_the_dtype_of_the_factors(tmp_path):
    source = _peft(tmp_path / "peft", dtype="bfloat16", ranks=(2, 2, 2, 2))
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file as save

    tensors = load(source / "adapter_model.safetensors")
    for name, shape in SHAPES.items():
        tensors[f"base_model.model.{name}.lora_B.bias"] = torch.ones(shape[0], dtype=torch.bfloat16)
    save(tensors, source / "adapter_model.safetensors")
    config = json.loads((source / "adapter_config.json").read_text())
    (source / "adapter_config.json").write_text(json.dumps({**config, "lora_bias": True}))
    done = convert(source, tmp_path / "out", "peft")
    assert done.dtype is DType.BFLOAT16
    assert done.whole == tuple(sorted(f"{name}.bias" for name in SHAPES))
    again = load(tmp_path / "out/adapter_model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_full_changes_stay_full_in_kohya_and_become_factors_elsewhere(tmp_path, base):
    rng = np.random.default_rng(0)
    change = rng.standard_normal((8, 6)).astype(np.float16)
    name = "lora_unet_model_layers_0_self_attn_q_proj"
    save_file({f"{name}.diff": change}, tmp_path / "k.safetensors")
    done = convert(tmp_path / "k.safetensors", tmp_path / "again.safetensors", "kohya")
    assert (done.tensors, done.dtype) == ((), DType.FLOAT16)
    assert load_file(tmp_path / "again.safetensors")[f"{name}.diff"].tolist() == change.tolist()
    done = convert(tmp_path / "k.safetensors", tmp_path / "out", "peft", base=base)
    assert done.tensors[0].rank == 6
    (found,) = _factors(tmp_path / "out").values()
    np.testing.assert_allclose(found, change.astype(float), rtol=1e-4, atol=1e-5)
