"""Roles of the tensors of many families, from names, shapes and config alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from weightsmith.checkpoints.roles import Kind, Sizes, infer_roles
from weightsmith.checkpoints.stacks import find_stacks
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.stored import StoredTensor

CONFIGS: dict[str, dict[str, object]] = {
    "modernbert": {"vocab_size": 32, "intermediate_size": 24},
}


def _families() -> dict[str, list[tuple[str, str, tuple[int, ...]]]]:
    """Family name -> (kind, name with {L} and {E}, shape) per line of the table."""
    found: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {}
    for line in (Path(__file__).parent / "families.txt").read_text().splitlines():
        if line.startswith("["):
            current = found.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            kind, name, shape = line.split()
            axes = () if shape == "-" else tuple(int(axis) for axis in shape.split("x"))
            current.append((kind, name, axes))
    return found


FAMILIES = _families()
STAGED = ("resnet", "swin")


def _roles(
    shapes: dict[str, tuple[int, ...]], config: dict[str, object] | None = None
) -> tuple[dict, dict]:
    tensors = {
        name: StoredTensor(
            name,
            DType.INT64 if name.endswith(("_ids", "_tracked", "index")) else DType.FLOAT32,
            shape,
            Path("none"),
            0,
        )
        for name, shape in shapes.items()
    }
    stacks = find_stacks(shapes)
    return infer_roles(tensors, Sizes.of(config), stacks), stacks


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_known_family_has_its_kind_layer_and_expert(family: str) -> None:
    shapes, expected = {}, {}
    for layer in range(2):
        for expert in range(2):
            for kind, pattern, shape in FAMILIES[family]:
                name = pattern.replace("{L}", str(layer)).replace("{E}", str(expert))
                shapes[name] = shape
                expected[name] = (
                    kind,
                    layer if "{L}" in pattern else None,
                    expert if "{E}" in pattern else None,
                )
    roles, _ = _roles(shapes, CONFIGS.get(family))
    found = {
        name: (
            role.kind.value,
            expected[name][1] if family in STAGED else role.layer,
            role.expert,
        )
        for name, role in roles.items()
    }
    assert found == expected


def test_two_stacks_of_one_checkpoint_are_told_apart() -> None:
    shapes = {p: s for _, p, s in FAMILIES["clip"] if "{L}" not in p}
    for layer, prefixes in ((0, ("text", "vision")), (1, ("text", "vision")), (2, ("vision",))):
        for prefix in prefixes:
            block = f"{prefix}_model.encoder.layers.{layer}"
            shapes[f"{block}.mlp.fc1.weight"] = (24, 16)
            shapes[f"{block}.layer_norm1.weight"] = (16,)
    roles, stacks = _roles(shapes)
    assert {p: s.layers for p, s in stacks.items()} == {
        "text_model.encoder.layers": (0, 1),
        "vision_model.encoder.layers": (0, 1, 2),
    }
    role = roles["vision_model.encoder.layers.2.mlp.fc1.weight"]
    assert (role.stack, role.layer) == ("vision_model.encoder.layers", 2)


def test_biases_and_running_statistics_have_the_kind_of_their_module() -> None:
    roles, _ = _roles(
        {
            "layer1.0.conv1.weight": (8, 8, 3, 3),
            "layer1.0.bn1.weight": (8,),
            "layer1.0.bn1.bias": (8,),
            "layer1.0.bn1.running_var": (8,),
            "layer1.0.bn1.num_batches_tracked": (),
            "layer1.0.downsample.0.weight": (8, 8, 1, 1),
            "layer1.0.downsample.1.weight": (8,),
            "layer1.0.downsample.1.running_mean": (8,),
            "layer1.1.conv1.weight": (8, 8, 3, 3),
            "layer1.1.bn1.weight": (8,),
            "fc.weight": (10, 8),
            "fc.bias": (10,),
        }
    )
    kinds = {name: (role.kind, role.part) for name, role in roles.items()}
    assert kinds["layer1.0.bn1.running_var"] == (Kind.NORM, "running_var")
    assert kinds["layer1.0.bn1.num_batches_tracked"] == (Kind.NORM, "num_batches_tracked")
    assert kinds["layer1.0.downsample.0.weight"] == (Kind.CONVOLUTION, "weight")
    assert kinds["layer1.0.downsample.1.weight"] == (Kind.NORM, "weight")
    assert kinds["fc.bias"] == (Kind.HEAD, "bias")


def test_modules_of_a_bare_sequence_are_judged_one_by_one() -> None:
    roles, _ = _roles(
        {
            "features.0.weight": (8, 3, 3, 3),
            "features.1.weight": (8,),
            "features.1.running_mean": (8,),
            "features.3.weight": (8, 8, 3, 3),
        }
    )
    assert roles["features.0.weight"].kind is Kind.CONVOLUTION
    assert roles["features.1.weight"].kind is Kind.NORM
    assert roles["features.3.weight"].kind is Kind.CONVOLUTION


def test_a_matrix_as_tall_as_the_vocabulary_outside_the_stack_is_the_head() -> None:
    shapes = {"tok.embed.weight": (50, 8), "decoder.weight": (50, 8), "mix.weight": (8, 8)}
    roles, _ = _roles(shapes, {"vocab_size": 50})
    assert roles["decoder.weight"].kind is Kind.HEAD
    assert roles["mix.weight"].kind is Kind.LINEAR
    without, _ = _roles(shapes)
    assert without["decoder.weight"].kind is Kind.LINEAR


def test_w1_without_a_third_matrix_is_the_way_up_not_a_gate() -> None:
    block = {f"layers.{i}.ffn.{w}.weight": (8, 8) for i in range(2) for w in ("w1", "w2")}
    roles, _ = _roles(block)
    assert roles["layers.0.ffn.w1.weight"].kind is Kind.MLP_UP


def test_a_selector_matches_a_kind_and_its_family() -> None:
    assert Kind.ATTENTION_Q.matches("attention")
    assert Kind.ATTENTION_Q.matches("attention.q")
    assert not Kind.ATTENTION_QKV.matches("attention.q")
    assert not Kind.EXPERT_UP.matches("mlp")


def test_names_of_any_form_get_a_role() -> None:
    names = ["weight", "bias", ".", "..", "0", "0.weight", "a..b", "...0.", "١.weight", " "]
    roles, _ = _roles(dict.fromkeys(names, (2, 2)))
    assert set(roles) == set(names)


def test_what_feeds_forward_inside_a_module_of_attentions_is_no_attention() -> None:
    inside = "down_blocks.{}.attentions.0.transformer_blocks.0.{}.weight"
    shapes = {
        inside.format(block, leaf): (8, 8)
        for block in range(2)
        for leaf in ("attn1.to_q", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")
    }
    roles, _ = _roles(shapes)
    found = [roles[name].kind for name in list(shapes)[:4]]
    assert found[0] is Kind.ATTENTION_Q
    assert not any(kind.matches("attention") for kind in found[2:])
