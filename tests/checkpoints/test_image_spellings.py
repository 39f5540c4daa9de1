"""The tables of image models' spellings against diffusers: what its own converters make of single files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weightsmith.checkpoints import open_checkpoint, respelled
from weightsmith.tensors import read_bytes

pytest.importorskip("diffusers.loaders.single_file_utils")
pytestmark = pytest.mark.filterwarnings("ignore")

from diffusers.loaders import single_file_utils as converters  # noqa: E402
from tests.checkpoints import image_files  # noqa: E402
from tests.checkpoints.image_files import as_components, write_pipeline, write_single  # noqa: E402


def _values(checkpoint):
    found = {}
    for name, tensor in checkpoint.tensors.items():
        if tensor.dtype.is_float:
            data = np.frombuffer(read_bytes(tensor, 0, tensor.numel), np.float32)
            found[name] = torch.from_numpy(data.reshape(tensor.shape).copy())
    return found


def _same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("xl", [False, True], ids=["1", "xl"])
def test_a_single_file_of_stable_diffusion_is_read_as_diffusers_converts_it(tmp_path, xl):
    single = image_files.single_file(0, xl=xl)
    components = as_components(single, xl=xl)
    # What the converters give is all that the networks have.
    assert components["unet"].keys() == image_files.unet(xl=xl).state_dict().keys()
    assert components["vae"].keys() == image_files.vae().state_dict().keys()
    file = open_checkpoint(write_single(tmp_path / "one.safetensors", single))
    folder = open_checkpoint(write_pipeline(tmp_path / "folder", components))
    _same(_values(respelled(file, folder)), _values(folder))
    floats = {name: tensor for name, tensor in single.items() if tensor.is_floating_point()}
    _same(_values(respelled(folder, file)), floats)


def test_names_of_text_encoders_and_attentions_of_other_versions_are_known_too(tmp_path):
    single = image_files.single_file(0, xl=False)
    components = as_components(single, xl=False)
    components["text_encoder"] = {
        name.removeprefix("text_model."): tensor
        for name, tensor in components["text_encoder"].items()
    }
    earlier = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, old in earlier.items():
        components["vae"] = {
            name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): tensor
            for name, tensor in components["vae"].items()
        }
    folder = open_checkpoint(write_pipeline(tmp_path / "folder", components))
    file = open_checkpoint(write_single(tmp_path / "one.safetensors", single))
    floats = {name: tensor for name, tensor in single.items() if tensor.is_floating_point()}
    _same(_values(respelled(folder, file)), floats)


def test_the_last_layer_of_openclip_that_nobody_uses_stays_that_of_the_single_file(tmp_path):
    single = image_files.single_file(0, xl=False)
    start = "cond_stage_model."
    single = {name: t for name, t in single.items() if not name.startswith(start)}
    layers = {
        f"{start}model.{name}": torch.randn(shape)
        for name, shape in image_files.openclip_shapes().items()
    }
    last = {
        name.replace("resblocks.1.", "resblocks.23."): tensor * 2
        for name, tensor in layers.items()
        if "resblocks.1." in name
    }
    single |= layers | last
    encoder = converters.convert_open_clip_checkpoint(
        image_files.SimpleNamespace(config=image_files.SimpleNamespace(hidden_size=8)), dict(single)
    )
    assert not any("layers.23." in name for name in encoder)
    rest = single | {
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.zeros(1)
    }
    components = as_components(rest, xl=False) | {"text_encoder": encoder}
    file = open_checkpoint(write_single(tmp_path / "one.safetensors", single))
    folder = open_checkpoint(write_pipeline(tmp_path / "folder", components))
    _same(_values(respelled(folder, file)), single)
    _same(_values(respelled(file, folder)), _values(folder))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_flux_of_its_authors_is_read_as_diffusers_converts_it(tmp_path, prefix):
    single = image_files.flux_file(0)
    converted = converters.convert_flux_transformer_checkpoint_to_diffusers(dict(single))
    _checked(tmp_path, {prefix + name: tensor for name, tensor in single.items()}, converted)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_wan_of_its_authors_is_read_as_diffusers_converts_it(tmp_path, prefix):
    single = image_files.wan_file(0)
    converted = converters.convert_wan_transformer_to_diffusers(dict(single))
    _checked(tmp_path, {prefix + name: tensor for name, tensor in single.items()}, converted)


def test_names_of_flux_and_wan_are_those_of_diffusers_networks():
    import diffusers

    flux = diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=4,
        pooled_projection_dim=4,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    converted = converters.convert_flux_transformer_checkpoint_to_diffusers(
        image_files.flux_file(0)
    )
    assert converted.keys() == flux.state_dict().keys()
    wan = diffusers.WanTransformer3DModel(
        num_layers=2,
        num_attention_heads=1,
        attention_head_dim=12,
        in_channels=3,
        text_dim=4,
        freq_dim=4,
        ffn_dim=4,
        image_dim=4,
        added_kv_proj_dim=12,
    )
    converted = converters.convert_wan_transformer_to_diffusers(image_files.wan_file(0))
    assert converted.keys() == wan.state_dict().keys()


def _checked(root, single, converted):
    file = open_checkpoint(write_single(root / "authors.safetensors", single))
    bare = open_checkpoint(write_single(root / "diffusers.safetensors", converted))
    folder = open_checkpoint(write_pipeline(root / "folder", {"transformer": converted}))
    for other in (bare, folder):
        _same(_values(respelled(file, other)), _values(other))
        _same(_values(respelled(other, file)), single)


def test_parts_beside_language_models_are_no_image_model():
    from weightsmith.checkpoints.spelling.image_spellings import image_spelling_of

    assert image_spelling_of(["model.layers.0.mlp.up_proj.weight", "lm_head.weight"]) is None
    assert image_spelling_of(["a.weight", "2_Dense/model.safetensors/linear.weight"]) is None
