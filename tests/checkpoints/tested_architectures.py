"""The smallest networks of transformers, diffusers and sentence-transformers that `make architectures` tries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

# By their `model_type`; sizes and classes are those of `tiny_models`.
TRANSFORMERS = """
llama gpt2 bert t5 mixtral vit whisper gemma3 qwen2_vl mamba resnet clip
siglip qwen2_5_vl qwen3_vl nemotron_h aria ernie4_5_moe granitemoe gpt_oss llama4_text qwen3_moe deepseek_v3 roberta
modernbert bart gpt_neox rwkv dinov2 swin convnext wav2vec2 mistral qwen2 qwen3 phi3 gemma2 gemma3_text opt
deberta-v2 albert distilbert mt5 llava qwen2_moe falcon bloom olmo2 granite cohere smollm3 jamba lfm2 glm4 beit
hubert electra xlm-roberta ernie4_5 phi stablelm starcoder2 falcon_mamba
""".split()
_CHANNELS = {"block_out_channels": (32, 32), "norm_num_groups": 8}
_FLUX = {"in_channels": 4, "num_layers": 6, "num_single_layers": 6, "attention_head_dim": 8}
_FLUX |= {"num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 16}
_SD3 = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 6, "patch_size": 2}
_SD3 |= {"attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 16}
_SD3 |= {"caption_projection_dim": 16, "pooled_projection_dim": 16, "pos_embed_max_size": 8}
_WAN = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4}
_WAN |= {"text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "num_layers": 6, "rope_max_seq_len": 32}
_BLOCKS = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": 16}
_BLOCKS |= {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 2}
_ENCODER = {"down_block_types": ("DownEncoderBlock2D",) * 2, "latent_channels": 4}
_ENCODER |= {"up_block_types": ("UpDecoderBlock2D",) * 2}
DIFFUSERS: Mapping[str, Mapping[str, Any]] = {
    "UNet2DConditionModel": {**_CHANNELS, **_BLOCKS, "layers_per_block": 1, "sample_size": 8},
    "AutoencoderKL": {**_CHANNELS, **_ENCODER, "layers_per_block": 1},
    "FluxTransformer2DModel": {**_FLUX, "axes_dims_rope": (2, 2, 4)},
    "SD3Transformer2DModel": _SD3,
    "WanTransformer3DModel": {**_WAN, "patch_size": (1, 2, 2)},
}
SENTENCES = "sentence-transformers"
# What the usual sizes leave in contradiction in a forward pass.
_OF_FAMILY: Mapping[str, Mapping[str, Any]] = {
    "deepseek_v3": {"head_dim": 4, "num_key_value_heads": 4},
    "convnext": {"image_size": 64},
    "nemotron_h": {"n_groups": 1},
    "swin": {"num_heads": [2, 4, 8, 16], "image_size": 64, "patch_size": 2, "window_size": 4},
}
# The images of these stand beside the text, and both go through the network.
_TEXT_AND_IMAGE = ("clip", "siglip")


@dataclass(frozen=True)
class Architecture:
    """How a network is made, opened with what its library misses or does not know, and what it is run on."""

    make: Callable[[], Any]
    open: Callable[[Path], tuple[Any, list[str]]]
    batch: Callable[[Any], dict[str, Any]]
    # What of it PEFT makes adapters for.
    body: Callable[[Any], Any] = lambda network: network


def _open(kind: Any) -> Callable[[Path], tuple[Any, list[str]]]:
    def opened(folder: Path) -> tuple[Any, list[str]]:
        network, found = kind.from_pretrained(folder, output_loading_info=True)
        kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
        return network.eval(), sorted(str(name) for key in kinds for name in found.get(key) or ())

    return opened


def _drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(6))


def _tokens(rows: int = 2, length: int = 7) -> torch.Tensor:
    return torch.randint(3, 40, (rows, length), generator=torch.Generator().manual_seed(5))


def _side(config: Any) -> int:
    side = getattr(config, "image_size", None) or 32
    return side if isinstance(side, int) else int(side[0])


def _inputs(network: Any) -> dict[str, Any]:
    """What a network of transformers takes: texts, images, sounds."""
    config, main = network.config, network.main_input_name
    batch: dict[str, Any] = {}
    if config.model_type in _TEXT_AND_IMAGE:
        side = _side(config.vision_config)
        batch = {"input_ids": _tokens(), "pixel_values": _drawn(2, 3, side, side)}
    elif main == "pixel_values":
        side = _side(config)
        batch = {main: _drawn(2, config.num_channels, side, side)}
    elif main == "input_features":
        batch = {main: _drawn(2, config.num_mel_bins, 2 * config.max_source_positions)}
    elif main == "input_values":
        batch = {main: _drawn(2, 2000)}
    else:
        batch = {"input_ids": _tokens()}
    if getattr(config, "is_encoder_decoder", False):
        batch["decoder_input_ids"] = _tokens(2, 4)
    return batch


def _image_inputs(network: Any) -> dict[str, Any]:
    """What a network of diffusers takes: noise, a time, texts."""
    step = torch.tensor([3.0])
    text = {"encoder_hidden_states": _drawn(1, 3, 16), "timestep": step}
    pooled = {"pooled_projections": _drawn(1, 16)}
    places = {"img_ids": torch.ones(4, 3), "txt_ids": torch.zeros(3, 3)}
    by_kind: dict[str, dict[str, Any]] = {
        "UNet2DConditionModel": {"sample": _drawn(1, 4, 8, 8), **text},
        "AutoencoderKL": {"sample": _drawn(1, 3, 16, 16)},
        "FluxTransformer2DModel": {"hidden_states": _drawn(1, 4, 4), **text, **pooled, **places},
        "SD3Transformer2DModel": {"hidden_states": _drawn(1, 4, 8, 8), **text, **pooled},
        "WanTransformer3DModel": {"hidden_states": _drawn(1, 4, 1, 8, 8), **text},
    }
    return by_kind[type(network).__name__]


def _of_transformers(family: str) -> Architecture:
    from transformers import CONFIG_MAPPING

    from .tiny_models import network_class, tiny_config

    kind = network_class(family)

    def made() -> Any:
        config = tiny_config(CONFIG_MAPPING[family])
        if family.endswith("_vl"):
            config.get_text_config().rope_parameters["mrope_section"] = [1, 1, 2]
        for key, value in _OF_FAMILY.get(family, {}).items():
            setattr(config, key, value)
        return kind(config)

    return Architecture(made, _open(kind), _inputs)


def _of_diffusers(name: str) -> Architecture:
    import diffusers

    kind = getattr(diffusers, name)
    return Architecture(lambda: kind(**DIFFUSERS[name]), _open(kind), _image_inputs)


def _sentences() -> Any:
    """A BERT with pooling and a dense module behind it."""
    from sentence_transformers import SentenceTransformer, models
    from transformers import BertConfig, BertModel, BertTokenizerFast

    from .tiny_models import tiny_config

    with TemporaryDirectory() as folder:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
        vocabulary = Path(folder, "vocab.txt")
        vocabulary.write_text("\n".join(words))
        BertTokenizerFast(vocab_file=str(vocabulary)).save_pretrained(folder)
        BertModel(tiny_config(BertConfig)).save_pretrained(folder)
        body = models.Transformer(folder)
    dense = models.Dense(32, 16)
    return SentenceTransformer(modules=[body, models.Pooling(32), dense], device="cpu")


def _of_sentence_transformers() -> Architecture:
    from sentence_transformers import SentenceTransformer

    def opened(folder: Path) -> tuple[Any, list[str]]:
        # It says nothing of tensors that it misses; that they are compared one by one says it.
        return SentenceTransformer(str(folder), device="cpu").eval(), []

    def batch(_: Any) -> dict[str, Any]:
        mask = torch.ones(2, 7, dtype=torch.int64)
        return {"input": {"input_ids": _tokens() % 13, "attention_mask": mask}}

    return Architecture(_sentences, opened, batch, lambda network: network[0].model)


def names() -> list[str]:
    """All that can be tried with what is installed."""
    found = [*TRANSFORMERS]
    if find_spec("diffusers"):
        found += DIFFUSERS
    return [*found, SENTENCES] if find_spec("sentence_transformers") else found


def architecture(name: str) -> Architecture:
    """An architecture by its `model_type` or, of diffusers, by its class."""
    if name == SENTENCES:
        return _of_sentence_transformers()
    return _of_diffusers(name) if name in DIFFUSERS else _of_transformers(name)
