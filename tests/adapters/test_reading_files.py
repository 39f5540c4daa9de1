"""Single files of kohya, LyCORIS and diffusers, against their formulas in explicit loops; and what is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.adapters.adapter import Form
from weightsmith.adapters.adapter_reading import is_adapter, open_adapter
from weightsmith.adapters.attaching import attach
from weightsmith.checkpoints import open_checkpoint
from weightsmith.deltas.changed import read_elements
from weightsmith.errors import CheckpointError, CompatibilityError, NonFiniteError, WeightsmithError

SHAPES = {
    "down_blocks.0.attn1.to_q.weight": (6, 4),
    "down_blocks.0.attn1.to_out.0.weight": (6, 6),
    "down_blocks.0.conv_in.weight": (6, 4, 3, 3),
    "down_blocks.0.conv_in.bias": (6,),
    "down_blocks.0.proj_in.weight": (6, 4, 1, 1),
    "down_blocks.0.norm.weight": (6,),
    "down_blocks.0.norm.bias": (6,),
}
QUERY, CONV, PROJ = "down_blocks_0_attn1_to_q", "down_blocks_0_conv_in", "down_blocks_0_proj_in"


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


@pytest.fixture
def base(tmp_path) -> Path:
    file = tmp_path / "unet.safetensors"
    save_file({name: random(*shape, seed=9) for name, shape in SHAPES.items()}, file)
    return file


def written(tmp_path, tensors, metadata=None, name="adapter.safetensors") -> Path:
    save_file({n: np.asarray(t) for n, t in tensors.items()}, tmp_path / name, metadata=metadata)
    return tmp_path / name


def values(tensor) -> np.ndarray:
    return read_elements(tensor, 0, tensor.numel).reshape(tensor.shape)


def changes(base: Path, file: Path, strength=1.0, **how) -> dict[str, np.ndarray]:
    """W' - W of every tensor that is changed."""
    before = open_checkpoint(base)
    after = attach(before, [(open_adapter(file), strength)], **how)
    found = {n: values(after.tensors[n]) - values(before.tensors[n]) for n in before.tensors}
    return {name: change for name, change in found.items() if change.any()}


def agree(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert sorted(found) == sorted(expected)
    for name, change in expected.items():
        np.testing.assert_allclose(found[name], change, rtol=0, atol=2e-6, err_msg=name)


def product(up, down, s):
    """s * up @ down, one element at a time."""
    out = np.zeros((len(up), down.shape[1]))
    for i, j in np.ndindex(out.shape):
        out[i, j] = s * sum(float(up[i, k]) * float(down[k, j]) for k in range(len(down)))
    return out


@pytest.mark.parametrize(
    ("alpha", "scale"),
    [(None, 1.0), (np.float32(6.0), 2.0), (np.full(1, 1.5, np.float16), 0.5), (np.int64(3), 1.0)],
)
def test_kohyas_alpha_may_be_a_number_a_vector_or_absent(tmp_path, base, alpha, scale):
    down, up = random(3, 4), random(6, 3)
    tensors = {f"lora_unet_{QUERY}.lora_down.weight": down, f"lora_unet_{QUERY}.lora_up.weight": up}
    if alpha is not None:
        tensors[f"lora_unet_{QUERY}.alpha"] = alpha
    file = written(tmp_path, tensors)
    agree(changes(base, file), {"down_blocks.0.attn1.to_q.weight": product(up, down, scale)})
    update = next(iter(open_adapter(file).updates.values()))
    assert (update.rank, update.scale) == (3, scale)
    assert open_adapter(file).dialect == "kohya"


def test_convolutions_against_explicit_loops(tmp_path, base):
    down, up = random(2, 4, 3, 3), random(6, 2, 1, 1)
    start = f"lora_unet_{CONV}"
    file = written(
        tmp_path,
        {
            f"{start}.lora_down.weight": down,
            f"{start}.lora_up.weight": up,
            f"{start}.alpha": np.float32(1),
        },
    )
    expected = np.zeros((6, 4, 3, 3))
    for o, i, y, x in np.ndindex(expected.shape):
        expected[o, i, y, x] = 0.5 * sum(
            float(up[o, r, 0, 0]) * float(down[r, i, y, x]) for r in range(2)
        )
    agree(changes(base, file), {"down_blocks.0.conv_in.weight": expected})


def test_matrices_may_be_written_as_convolutions_and_the_other_way_round(tmp_path, base):
    down, up = random(3, 4), random(6, 3)
    tensors = {
        f"lora_unet_{QUERY}.lora_down.weight": down[:, :, None, None],
        f"lora_unet_{QUERY}.lora_up.weight": up[:, :, None, None],
        f"lora_unet_{PROJ}.lora_down.weight": down,
        f"lora_unet_{PROJ}.lora_up.weight": up,
    }
    expected = product(up, down, 1.0)
    agree(
        changes(base, written(tmp_path, tensors)),
        {
            "down_blocks.0.attn1.to_q.weight": expected,
            "down_blocks.0.proj_in.weight": expected[:, :, None, None],
        },
    )


def test_locon_has_its_kernel_in_a_core(tmp_path, base):
    down, core, up = random(2, 4, 1, 1), random(2, 2, 3, 3), random(6, 2, 1, 1)
    start = f"lora_unet_{CONV}"
    parts = {
        "lora_down.weight": down,
        "lora_mid.weight": core,
        "lora_up.weight": up,
        "alpha": np.float32(4),
    }
    file = written(tmp_path, {f"{start}.{part}": t for part, t in parts.items()})
    expected = np.zeros((6, 4, 3, 3))
    for p, q, y, x in np.ndindex(expected.shape):
        expected[p, q, y, x] = 2.0 * sum(
            float(core[i, j, y, x]) * float(up[p, i, 0, 0]) * float(down[j, q, 0, 0])
            for i, j in itertools.product(range(2), repeat=2)
        )
    agree(changes(base, file), {"down_blocks.0.conv_in.weight": expected})
    assert open_adapter(file).dialect == "lycoris"


def test_loha_is_a_product_by_element(tmp_path, base):
    parts = {f"hada_w{n}_a": random(6, 2, seed=n) for n in (1, 2)}
    parts |= {f"hada_w{n}_b": random(2, 4, seed=n) for n in (1, 2)}
    tensors = {f"lora_unet_{QUERY}.{part}": t for part, t in parts.items()}
    file = written(tmp_path, {**tensors, f"lora_unet_{QUERY}.alpha": np.float32(3)})
    one = product(parts["hada_w1_a"], parts["hada_w1_b"], 1.0)
    two = product(parts["hada_w2_a"], parts["hada_w2_b"], 1.0)
    agree(changes(base, file), {"down_blocks.0.attn1.to_q.weight": 1.5 * one * two})
    assert next(iter(open_adapter(file).updates.values())).form is Form.LOHA


def tucker(t, a, b):
    out = np.zeros((a.shape[1], b.shape[1], *t.shape[2:]))
    for p, r, y, x in np.ndindex(out.shape):
        out[p, r, y, x] = sum(
            float(t[i, j, y, x]) * float(a[i, p]) * float(b[j, r])
            for i, j in itertools.product(range(len(a)), range(len(b)))
        )
    return out


def test_loha_of_a_convolution_with_cores(tmp_path, base):
    parts = {f"hada_w{n}_a": random(2, 6, seed=n) for n in (1, 2)}
    parts |= {f"hada_w{n}_b": random(2, 4, seed=n) for n in (1, 2)}
    parts |= {f"hada_t{n}": random(2, 2, 3, 3, seed=n) for n in (1, 2)}
    file = written(tmp_path, {f"lora_unet_{CONV}.{part}": t for part, t in parts.items()})
    one, two = (
        tucker(parts[f"hada_t{n}"], parts[f"hada_w{n}_a"], parts[f"hada_w{n}_b"]) for n in (1, 2)
    )
    agree(changes(base, file), {"down_blocks.0.conv_in.weight": one * two})


def test_loha_of_a_convolution_without_cores_has_its_kernel_in_the_columns(tmp_path, base):
    parts = {f"hada_w{n}_a": random(6, 2, seed=n) for n in (1, 2)}
    parts |= {f"hada_w{n}_b": random(2, 36, seed=n) for n in (1, 2)}
    file = written(tmp_path, {f"lora_unet_{CONV}.{part}": t for part, t in parts.items()})
    one, two = (product(parts[f"hada_w{n}_a"], parts[f"hada_w{n}_b"], 1.0) for n in (1, 2))
    agree(changes(base, file), {"down_blocks.0.conv_in.weight": (one * two).reshape(6, 4, 3, 3)})


def kron(left, right):
    out = np.zeros(
        (left.shape[0] * right.shape[0], left.shape[1] * right.shape[1], *right.shape[2:])
    )
    (a, b), (c, d) = left.shape, right.shape[:2]
    for i, j, k, m in itertools.product(range(a), range(b), range(c), range(d)):
        out[i * c + k, j * d + m] = float(left[i, j]) * right[k, m].astype(np.float64)
    return out


@pytest.mark.parametrize("split", ["none", "left", "right", "both"])
def test_lokr_is_scaled_only_where_a_factor_is_a_product(tmp_path, base, split):
    w1a, w1b, w2a, w2b = random(2, 2), random(2, 2, seed=1), random(3, 2), random(2, 2, seed=2)
    parts = (
        {"lokr_w1": random(2, 2, seed=3)}
        if split in ("none", "right")
        else {"lokr_w1_a": w1a, "lokr_w1_b": w1b}
    )
    parts |= (
        {"lokr_w2": random(3, 2, seed=4)}
        if split in ("none", "left")
        else {"lokr_w2_a": w2a, "lokr_w2_b": w2b}
    )
    left = parts["lokr_w1"] if "lokr_w1" in parts else product(w1a, w1b, 1.0)
    right = parts["lokr_w2"] if "lokr_w2" in parts else product(w2a, w2b, 1.0)
    tensors = {f"lora_unet_{QUERY}.{part}": t for part, t in parts.items()}
    file = written(tmp_path, {**tensors, f"lora_unet_{QUERY}.alpha": np.float32(1)})
    scale = 1.0 if split == "none" else 0.5
    agree(changes(base, file), {"down_blocks.0.attn1.to_q.weight": scale * kron(left, right)})


@pytest.mark.parametrize("with_core", [False, True])
def test_lokr_of_a_convolution(tmp_path, base, with_core):
    parts = {"lokr_w1": random(3, 2)}
    if with_core:
        parts |= {
            "lokr_w2_a": random(2, 2),
            "lokr_w2_b": random(2, 2, seed=1),
            "lokr_t2": random(2, 2, 3, 3),
        }
        right = tucker(parts["lokr_t2"], parts["lokr_w2_a"], parts["lokr_w2_b"])
    else:
        parts["lokr_w2"] = right = random(2, 2, 3, 3, seed=1)
    file = written(tmp_path, {f"lora_unet_{CONV}.{part}": t for part, t in parts.items()})
    agree(changes(base, file), {"down_blocks.0.conv_in.weight": kron(parts["lokr_w1"], right)})


def test_whole_changes_of_weights_norms_and_biases(tmp_path, base):
    norm = "lora_unet_down_blocks_0_norm"
    tensors = {
        f"lora_unet_{CONV}.diff": random(6, 4, 3, 3),
        f"lora_unet_{CONV}.diff_b": random(6),
        f"{norm}.w_norm": random(6, seed=1),
        f"{norm}.b_norm": random(6, seed=2),
    }
    file = written(tmp_path, tensors)
    expected = {
        "down_blocks.0.conv_in.weight": tensors[f"lora_unet_{CONV}.diff"],
        "down_blocks.0.conv_in.bias": tensors[f"lora_unet_{CONV}.diff_b"],
        "down_blocks.0.norm.weight": tensors[f"{norm}.w_norm"],
        "down_blocks.0.norm.bias": tensors[f"{norm}.b_norm"],
    }
    agree(changes(base, file), expected)
    assert is_adapter(file)


@pytest.mark.parametrize("by_input", [False, True])
@pytest.mark.parametrize("module", [QUERY, CONV])
def test_dora_scale_is_by_output_or_by_input(tmp_path, base, by_input, module):
    name = {QUERY: "down_blocks.0.attn1.to_q.weight", CONV: "down_blocks.0.conv_in.weight"}[module]
    kernel = SHAPES[name][2:]
    down, up = random(2, 4, *kernel), random(6, 2, *(1 for _ in kernel))
    ones = (1,) * len(kernel)
    magnitude = np.abs(random(*((1, 4) if by_input else (6, 1)), *ones)) + 1.0
    start = f"lora_unet_{module}"
    file = written(
        tmp_path,
        {
            f"{start}.lora_down.weight": down,
            f"{start}.lora_up.weight": up,
            f"{start}.dora_scale": magnitude,
        },
    )
    weight = random(*SHAPES[name], seed=9).astype(np.float64)
    moved = weight + product(up.reshape(6, 2), down.reshape(2, -1), 1.0).reshape(weight.shape)
    expected = np.empty_like(moved)
    for at in range(4 if by_input else 6):
        part = (slice(None), at) if by_input else (at,)
        expected[part] = (
            float(magnitude.reshape(-1)[at]) * moved[part] / np.sqrt(np.square(moved[part]).sum())
        )
    found = {name: change + weight for name, change in changes(base, file).items()}
    agree(found, {name: expected})


def test_flat_names_are_told_by_the_bases_names_alone(tmp_path):
    # `a_b.c` and `a.b_c` have one flat name each, `a.b_c` of another stack has not.
    tensors = {"a_b.c.weight": random(6, 4), "a.d.weight": random(6, 4)}
    base = written(tmp_path, tensors, name="base.safetensors")
    pair = {"lora_down.weight": random(2, 4), "lora_up.weight": random(6, 2)}
    file = written(tmp_path, {f"lora_unet_a_b_c.{part}": t for part, t in pair.items()})
    assert list(changes(base, file)) == ["a_b.c.weight"]
    base = written(tmp_path, {**tensors, "a.b_c.weight": random(6, 4)}, name="base.safetensors")
    with pytest.raises(
        CompatibilityError, match=r"flat name of 'a.b_c.weight' and of 'a_b.c.weight'|flat name of"
    ):
        changes(base, file)


@pytest.mark.parametrize("prefix", ["model.diffusion_model", "second_stage"])
def test_a_base_may_keep_the_component_below_a_prefix(tmp_path, prefix):
    names = [f"{prefix}.input_blocks.1.to_q", f"{prefix}.out", "first_stage.out"]
    base = written(tmp_path, {f"{n}.weight": random(6, 4) for n in names}, name="base.safetensors")
    pair = {"lora_down.weight": random(2, 4), "lora_up.weight": random(6, 2)}
    flat = ["lora_unet_input_blocks_1_to_q", "lora_unet_out"]
    file = written(tmp_path, {f"{f}.{part}": t for f in flat for part, t in pair.items()})
    assert sorted(changes(base, file)) == sorted(f"{n}.weight" for n in names[:2])
    file = written(tmp_path, {f"{flat[1]}.{part}": t for part, t in pair.items()})
    if prefix == "model.diffusion_model":  # where single files of diffusion models have their U-Net
        assert list(changes(base, file)) == [f"{prefix}.out.weight"]
        return
    with pytest.raises(CompatibilityError, match=r"fit .* below '(second|first)"):
        changes(base, file)


FORMS = {
    "peft": ("unet.down_blocks.0.attn1.to_q.lora_A.weight", "unet.down_blocks.0.attn1.to_q.lora_B.weight"),
    "lora": ("unet.down_blocks.0.attn1.to_q.lora.down.weight", "unet.down_blocks.0.attn1.to_q.lora.up.weight"),
    "processor": (
        "unet.down_blocks.0.attn1.processor.to_q_lora.down.weight",
        "unet.down_blocks.0.attn1.processor.to_q_lora.up.weight",
    ),
    "linear layer": (
        "unet.down_blocks.0.attn1.to_q.lora_linear_layer.down.weight",
        "unet.down_blocks.0.attn1.to_q.lora_linear_layer.up.weight",
    ),
    "unet alone": (
        "down_blocks.0.attn1.processor.to_q_lora.down.weight",
        "down_blocks.0.attn1.processor.to_q_lora.up.weight",
    ),
    "comfy": (
        "diffusion_model.down_blocks.0.attn1.to_q.lora_A.weight",
        "diffusion_model.down_blocks.0.attn1.to_q.lora_B.weight",
    ),
    "dotted kohya": (
        "unet.down_blocks.0.attn1.to_q.lora_down.weight",
        "unet.down_blocks.0.attn1.to_q.lora_up.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("keys", FORMS.values(), ids=FORMS)
def test_every_spelling_of_diffusers_without_alpha_is_unscaled(tmp_path, base, keys):
    down, up = random(3, 4), random(6, 3)
    file = written(tmp_path, dict(zip(keys, (down, up), strict=True)))
    agree(changes(base, file), {"down_blocks.0.attn1.to_q.weight": product(up, down, 1.0)})
    assert open_adapter(file).dialect == "diffusers"
    assert is_adapter(file)


def test_diffusers_output_projection_and_its_folder(tmp_path, base):
    down, up = random(3, 6), random(6, 3)
    start = "unet.down_blocks.0.attn1.processor.to_out_lora"
    folder = tmp_path / "lora"
    folder.mkdir()
    written(
        folder,
        {f"{start}.down.weight": down, f"{start}.up.weight": up},
        name="pytorch_lora_weights.safetensors",
    )
    agree(changes(base, folder), {"down_blocks.0.attn1.to_out.0.weight": product(up, down, 1.0)})
    assert is_adapter(folder)


def test_old_text_encoders_call_their_projections_otherwise(tmp_path):
    names = [f"text_model.encoder.layers.0.self_attn.{p}_proj.weight" for p in ("q", "out")]
    base = written(tmp_path, {n: random(6, 6, seed=9) for n in names}, name="base.safetensors")
    start = "text_encoder.text_model.encoder.layers.0.self_attn"
    tensors = {}
    for leaf in ("to_q", "to_out"):
        tensors[f"{start}.{leaf}_lora.down.weight"] = random(2, 6)
        tensors[f"{start}.{leaf}_lora.up.weight"] = random(6, 2)
    assert sorted(changes(base, written(tmp_path, tensors))) == sorted(names)


def test_the_configuration_in_a_files_metadata_counts(tmp_path, base):
    down, up = random(3, 4), random(6, 3)
    keys = FORMS["peft"]
    config = {
        "unet.r": 8,
        "unet.lora_alpha": 9,
        "unet.rank_pattern": {"attn1.to_q": 3},
        "text_encoder.r": 5,
    }
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    file = written(tmp_path, dict(zip(keys, (down, up), strict=True)), metadata)
    agree(changes(base, file), {"down_blocks.0.attn1.to_q.weight": product(up, down, 3.0)})
    file = written(
        tmp_path,
        {f"base_model.model.{k[5:]}": t for k, t in zip(keys, (down, up), strict=True)},
        metadata,
    )
    with pytest.raises(WeightsmithError, match=r"unet\.r"):
        open_adapter(file)
    metadata = {"lora_adapter_metadata": json.dumps({"r": 3, "lora_alpha": 6})}
    file = written(
        tmp_path,
        {f"base_model.model.{k[5:]}": t for k, t in zip(keys, (down, up), strict=True)},
        metadata,
    )
    agree(changes(base, file), {"down_blocks.0.attn1.to_q.weight": product(up, down, 2.0)})


def test_the_configurations_scale_counts_for_a_core_too(tmp_path, base):
    down, core, up = random(2, 4, 1, 1), random(2, 2, 3, 3), random(6, 2, 1, 1)
    start = "unet.down_blocks.0.conv_in"
    parts = {"lora_down.weight": down, "lora_mid.weight": core, "lora_up.weight": up}
    config = {"unet.r": 2, "unet.lora_alpha": 6}
    file = written(
        tmp_path,
        {f"{start}.{part}": values for part, values in parts.items()},
        {"lora_adapter_metadata": json.dumps(config)},
    )
    expected = 3.0 * np.einsum("or,rsyx,si->oiyx", up[..., 0, 0], core, down[..., 0, 0])
    agree(changes(base, file), {"down_blocks.0.conv_in.weight": expected})


def test_other_components_are_an_error_unless_one_is_named(tmp_path, base):
    down, up = random(3, 4), random(6, 3)
    both = ["lora_unet_down_blocks_0_attn1_to_q", "lora_te_text_model_layers_0_q_proj"]
    file = written(
        tmp_path,
        {
            f"{m}.{p}": t
            for m in both
            for p, t in (("lora_down.weight", down), ("lora_up.weight", up))
        },
    )
    with pytest.raises(CompatibilityError, match=r"also changes 'text_encoder' .*'unet' alone"):
        changes(base, file)
    assert list(changes(base, file, component="unet")) == ["down_blocks.0.attn1.to_q.weight"]
    with pytest.raises(CompatibilityError, match="nothing for 'vae'"):
        changes(base, file, component="vae")
    with pytest.raises(CompatibilityError, match="text_model_layers_0_q_proj"):
        changes(base, file, component="text_encoder")


PAIR = {"lora_down.weight": random(2, 4), "lora_up.weight": random(6, 2)}
BROKEN = {
    "no partner": ({"lora_down.weight": random(2, 4)}, "no partner 'lora_up'"),
    "no other partner": ({"lora_up.weight": random(6, 2)}, "no partner 'lora_down'"),
    "an alpha alone": ({"alpha": np.float32(1)}, "stands beside no factors"),
    "ranks that differ": ({**PAIR, "lora_up.weight": random(6, 3)}, "cannot be multiplied"),
    "a vector": ({**PAIR, "lora_up.weight": random(6)}, "which no factor of a matrix has"),
    "no rows": ({**PAIR, "lora_down.weight": random(0, 4)}, "which no factor of a matrix has"),
    "two alphas": ({**PAIR, "alpha": np.ones(2, np.float32)}, "an alpha is one number"),
    "an alpha of nothing": ({**PAIR, "alpha": np.float32(0)}, "is 0"),
    "an alpha of NaN": ({**PAIR, "alpha": np.float32("nan")}, "holds NaN"),
    "an unknown part": ({**PAIR, "lora_extra.weight": random(1)}, "lora_extra"),
    "two kinds at once": ({"hada_w1_a": random(6, 2), "lokr_w1": random(2, 2)}, "do not go together"),
    "ia3": ({"weight": random(6), "on_input": np.float32(1)}, "weight|IA3"),
    "oft": ({"oft_blocks": random(2, 3, 3)}, "OFT"),
    "glora": ({"a1.weight": random(2, 3)}, "GLoRA"),
    "a magnitude of another length": ({**PAIR, "dora_scale": random(5, 1)}, "6 outputs and 4 inputs"),
}  # fmt: skip


@pytest.mark.parametrize(("parts", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_and_foreign_files_are_refused_by_name(tmp_path, parts, message):
    file = written(tmp_path, {f"lora_unet_{QUERY}.{part}": t for part, t in parts.items()})
    with pytest.raises(WeightsmithError, match=message) as caught:
        open_adapter(file)
    assert QUERY in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_models_file_is_no_adapter(base):
    with pytest.raises(CheckpointError, match="holds no adapter"):
        open_adapter(base)


def test_unknown_keys_of_dotted_files_are_refused(tmp_path):
    tensors = {
        **dict(zip(FORMS["peft"], (random(3, 4), random(6, 3)), strict=True)),
        "unet.extra": random(2),
    }
    with pytest.raises(CheckpointError, match=r"unet\.extra"):
        open_adapter(written(tmp_path, tensors))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_factors_that_are_not_finite_are_refused_when_they_are_read(tmp_path, base, value):
    parts = {**PAIR, "lora_up.weight": PAIR["lora_up.weight"].copy()}
    parts["lora_up.weight"][1, 1] = value
    file = written(tmp_path, {f"lora_unet_{QUERY}.{part}": t for part, t in parts.items()})
    with pytest.raises(NonFiniteError, match=r"lora_up\.weight"):
        changes(base, file)


def test_quantised_factors_are_refused(tmp_path, base):
    parts = {**PAIR, "lora_up.weight": np.ones((6, 2), np.int8)}
    file = written(tmp_path, {f"lora_unet_{QUERY}.{part}": t for part, t in parts.items()})
    with pytest.raises(CheckpointError, match="int8"):
        changes(base, file)


def test_truncated_files_are_refused(tmp_path):
    file = written(tmp_path, {f"lora_unet_{QUERY}.{part}": t for part, t in PAIR.items()})
    data = file.read_bytes()
    for size in (0, 4, 20, len(data) - 1):
        file.write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            open_adapter(file)
        assert not is_adapter(file)


def test_a_whole_weight_beside_factors_of_another_shape_is_refused(tmp_path):
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{module}.lora_A.weight": np.ones((2, 16), np.float32),
        f"{module}.lora_B.weight": np.ones((16, 2), np.float32),
        f"{module}.weight": np.ones((4, 4), np.float32),
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"\[4, 4\] lies beside factors of .*\[16, 16\]"):
        open_adapter(tmp_path)


def test_factors_of_whole_numbers_are_refused_from_their_header(tmp_path):
    tensors = {
        "lora_unet_x.lora_down.weight": np.ones((2, 16), np.int8),
        "lora_unet_x.lora_up.weight": np.ones((16, 2), np.int8),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="holds int8, but factors are floats"):
        open_adapter(tmp_path / "x.safetensors")
