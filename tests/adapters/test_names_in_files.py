import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.adapters.components import kohya_prefix, split
from weightsmith.checkpoints import open_checkpoint
from weightsmith.lora.names_in_memory import Renaming, between, in_memory, renamed_base


@pytest.mark.parametrize(
    ("module", "component", "path"),
    [
        ("unet.down_blocks.0.conv", "unet", "down_blocks.0.conv"),
        ("down_blocks.0.conv", "unet", "down_blocks.0.conv"),
        ("text_encoder_2.text_model.fc1", "text_encoder_2", "text_model.fc1"),
        ("text_model.encoder.fc1", "text_encoder", "text_model.encoder.fc1"),
        ("transformer.transformer_blocks.3.q", "transformer", "transformer_blocks.3.q"),
        ("single_transformer_blocks.3.q", "transformer", "single_transformer_blocks.3.q"),
        # A language model's own name for its body.
        ("transformer.h.0.attn", None, "transformer.h.0.attn"),
        ("model.layers.0.q_proj", None, "model.layers.0.q_proj"),
        ("unet", None, "unet"),
    ],
)
def test_a_module_is_in_the_component_that_its_name_or_place_tells(module, component, path):
    assert split(module) == (component, path)


def test_the_first_of_several_text_encoders_has_a_number():
    assert kohya_prefix("text_encoder", has_second=False) == "lora_te"
    assert kohya_prefix("text_encoder", has_second=True) == "lora_te1"
    assert kohya_prefix("text_encoder_3", has_second=True) == "lora_te3"
    assert kohya_prefix(None, has_second=False) == "lora_unet"


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (
            {"h.0.a": "transformer.h.0.a", "h.1.b": "transformer.h.1.b"},
            Renaming("", "transformer."),
        ),
        ({"model.a.b": "model.a.b"}, Renaming("", "")),
        ({"x.y.a": "z.a", "x.y.b": "z.b"}, Renaming("x.y.", "z.")),
        ({"wh.a": "h.a"}, Renaming("wh.", "h.")),
        ({"h.a": "t.h.a", "lm_head.w": "lm_head.w"}, None),
    ],
)
def test_names_are_exchanged_by_whole_fields(pairs, expected):
    assert between(pairs) == expected


def _stored(folder, architecture, names):
    folder.mkdir()
    save_file({n: np.zeros((2, 2), np.float32) for n in names}, folder / "model.safetensors")
    text = '{"model_type": "gpt2", "architectures": ["%s"]}' % architecture  # noqa: UP031
    (folder / "config.json").write_text(text)
    return open_checkpoint(folder)


def test_only_a_body_under_the_name_of_a_class_with_a_head_gets_a_name_in_front(tmp_path):
    body = _stored(tmp_path / "a", "GPT2LMHeadModel", ["h.0.mlp.c_fc.weight", "lm_head.weight"])
    renamed = renamed_base(body, in_memory(body))
    assert list(renamed.tensors) == ["transformer.h.0.mlp.c_fc.weight", "lm_head.weight"]
    whole = _stored(tmp_path / "b", "GPT2LMHeadModel", ["transformer.h.0.mlp.c_fc.weight"])
    alone = _stored(tmp_path / "c", "GPT2Model", ["h.0.mlp.c_fc.weight"])
    for unchanged in (whole, alone):
        assert renamed_base(unchanged, in_memory(unchanged)) is unchanged
    assert in_memory(None)("h.0.mlp.c_fc.weight") == "h.0.mlp.c_fc.weight"
