"""How families of models name their tensors in files, and what the networks of transformers 5 call them: plain facts.

A family has its types (`model_type` of the configuration or of a part of it), a mark by which names without a
configuration give it away, and renamings, done one after the other, the first place that fits in a name each. They take
every name that files of the family have had to the one in memory, and leave that one as it is.
`tests/checkpoints/test_spelling_facts.py` holds the table against transformers' own mapping.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Renamings = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class NamedAlike:
    """Types of models whose files name their tensors alike: a family."""

    types: frozenset[str]
    renamings: Renamings
    mark: str = ""


def _family(types: str, *renamings: tuple[str, str], mark: str = "") -> NamedAlike:
    return NamedAlike(frozenset(types.split()), renamings, mark)


# What trainers put around a model, and the names that norms and weight norms once had in every family.
EVERYWHERE: Renamings = (
    (r"^(?:(?:module|_orig_mod|_fsdp_wrapped_module|_forward_module)\.)+", ""),
    (r"\.(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)", ""),
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
)

_TOWERS = "language_model|vision_tower|image_tower|video_tower|vision_model|audio_tower"
# The language model was a whole one, with a head of its own, until transformers 4.52.
_IN_ONE_BODY: Renamings = (
    (r"^(?:model\.)?language_model\.lm_head\.", "lm_head."),
    (r"^(?:model\.)?language_model\.(?:model\.)+", "model.language_model."),
    (
        rf"^(?=(?:{_TOWERS}|multi_modal_projector|image_newline|vision_embed_tokens)(?:\.|$))",
        "model.",
    ),
    (r"^(model\.(?:vision|image|video)_tower)\.vision_model\.", r"\1."),
)
_VIT: Renamings = (
    (r"encoder\.layer\.", "layers."),
    (r"attention\.attention\.query\.", "attention.q_proj."),
    (r"attention\.attention\.key\.", "attention.k_proj."),
    (r"attention\.attention\.value\.", "attention.v_proj."),
    (r"attention\.output\.dense\.", "attention.o_proj."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"output\.dense\.", "mlp.fc2."),
)
_MIXTRAL: Renamings = (
    (r"\.block_sparse_moe\.", ".mlp."),
    (r"(\.experts\.\d+)\.w1\.", r"\1.gate_proj."),
    (r"(\.experts\.\d+)\.w2\.", r"\1.down_proj."),
    (r"(\.experts\.\d+)\.w3\.", r"\1.up_proj."),
)

FAMILIES: tuple[NamedAlike, ...] = (
    _family(
        "llava llava_next llava_next_video llava_onevision vipllava video_llava paligemma gemma3 mistral3 aya_vision "
        "internvl got_ocr2 fuyu mllama qwen2_audio",
        *_IN_ONE_BODY,
        mark=r"^language_model\.model\.layers\.",
    ),
    _family(
        "aria",
        *_IN_ONE_BODY,
        (r"mlp\.experts\.fc1\.weight$", "mlp.experts.gate_up_proj"),
        (r"mlp\.experts\.fc2\.weight$", "mlp.experts.down_proj"),
    ),
    _family(
        "qwen2_vl qwen2_5_vl",
        (r"^visual\.", "model.visual."),
        (r"^model\.(?!language_model\.|visual\.)", "model.language_model."),
        mark=r"^visual\.blocks\.",
    ),
    _family("gemma3n_text qwen3_5_text qwen3_5_moe_text", (r"^model\.language_model\.", "model.")),
    _family("clip_vision_model siglip_vision_model", (r"^vision_model\.", "")),
    _family("clip_text_model siglip_text_model", (r"^text_model\.", "")),
    _family(
        "vit deit vit_mae ijepa audio-spectrogram-transformer vivit",
        *_VIT,
        mark=r"^(?:vit|deit)\.encoder\.layer\.",
    ),
    _family("vit_msn", (r"^encoder\.", "vit.encoder."), *_VIT),
    _family(
        "beit",
        *_VIT,
        (r"encoder\.relative_position_bias\.", "shared_position_bias."),
        (r"attention\.attention\.relative_position_bias\.", "relative_position_bias."),
    ),
    _family(
        "dinov2 dinov2_with_registers",
        *_VIT[1:5],
        (r"mlp\.weights_in\.", "mlp.gate_up_proj."),
        (r"mlp\.weights_out\.", "mlp.down_proj."),
    ),
    _family(
        "swin",
        (r"attention\.self\.query\.", "attention.q_proj."),
        (r"attention\.self\.key\.", "attention.k_proj."),
        (r"attention\.self\.value\.", "attention.v_proj."),
        (
            r"attention\.self\.(relative_position_bias_table)$",
            r"attention.relative_position_bias.\1",
        ),
        *_VIT[4:],
    ),
    _family(
        "segformer",
        (r"encoder\.patch_embeddings\.(\d+)\.", r"stages.\1.patch_embeddings."),
        (r"encoder\.block\.(\d+)\.", r"stages.\1.blocks."),
        (r"encoder\.layer_norm\.(\d+)\.", r"stages.\1.layer_norm."),
        (r"attention\.self\.query\.", "attention.q_proj."),
        (r"attention\.self\.key\.", "attention.k_proj."),
        (r"attention\.self\.value\.", "attention.v_proj."),
        (r"attention\.self\.sr\.", "attention.sequence_reduction.sequence_reduction."),
        (r"attention\.self\.layer_norm\.", "attention.sequence_reduction.layer_norm."),
        (r"attention\.output\.dense\.", "attention.o_proj."),
        (r"mlp\.dense1\.", "mlp.fc1."),
        (r"mlp\.dense2\.", "mlp.fc2."),
        (r"\.layer_norm_1\.", ".layernorm_before."),
        (r"\.layer_norm_2\.", ".layernorm_after."),
        (r"^decode_head\.linear_c\.", "decode_head.linear_projections."),
    ),
    _family("gpt_neox", (r"^embed_out\.", "lm_head."), mark=r"^embed_out\."),
    _family(
        "granitemoe granitemoeshared granitemoehybrid",
        (r"block_sparse_moe\.input_linear\.weight$", "block_sparse_moe.experts.gate_up_proj"),
        (r"block_sparse_moe\.output_linear\.weight$", "block_sparse_moe.experts.down_proj"),
        (r"block_sparse_moe\.router\.layer\.", "block_sparse_moe.router."),
        mark=r"block_sparse_moe\.input_linear\.",
    ),
    _family("mixtral minimax minimax_m2", *_MIXTRAL, mark=r"block_sparse_moe\.experts\.\d+\.w1\."),
    _family("phimoe", *_MIXTRAL, (r"\.mlp\.gate\.weight$", ".mlp.router.weight")),
    _family("lfm2_moe", *_MIXTRAL[1:]),
    _family("ernie4_5_moe", (r"\.mlp\.moe_statics\.", ".mlp.gate.moe_statics.")),
    _family("nemotron_h", (r"^backbone\.", "model."), mark=r"^backbone\.layers\.\d+\.mixer\."),
)

# Families whose checkpoints were also published from the body alone, although their configuration names a class with a
# head: what that class calls the body.
BODIES: Mapping[str, str] = {
    "audio-spectrogram-transformer": "audio_spectrogram_transformer.",
    "beit": "beit.",
    "bert": "bert.",
    "bloom": "transformer.",
    "deit": "deit.",
    "distilbert": "distilbert.",
    "gpt2": "transformer.",
    "llama": "model.",
    "mistral": "model.",
    "openai-gpt": "transformer.",
    "opt": "model.",
    "qwen2": "model.",
    "qwen3": "model.",
    "roberta": "roberta.",
    "vit": "vit.",
    "vit_msn": "vit.",
    "xlm-roberta": "roberta.",
}
HEADS = ("lm_head.", "score.", "classifier.", "qa_outputs.", "cls.", "embed_out.")

# Tensors that some files have in one and others apart: the end of the whole's name, and those of its parts, in their
# order in the whole; `{}` is the number of an expert, of which a whole has all, one after the other.
STACKED: Mapping[str, tuple[str, ...]] = {
    "experts.gate_up_proj": ("experts.{}.gate_proj.weight", "experts.{}.up_proj.weight"),
    "experts.gate_up_proj_bias": ("experts.{}.gate_proj.bias", "experts.{}.up_proj.bias"),
    "experts.gate_proj": ("experts.{}.gate_proj.weight",),
    "experts.up_proj": ("experts.{}.up_proj.weight",),
    "experts.down_proj": ("experts.{}.down_proj.weight",),
    "experts.down_proj_bias": ("experts.{}.down_proj.bias",),
}
# Experts that are taken apart while gate and up stay one matrix, as unsloth does with gpt-oss to quantise them.
FUSED_APART: Mapping[str, tuple[str, ...]] = {
    "experts.gate_up_proj": ("experts.gate_up_projs.{}.weight",),
    "experts.gate_up_proj_bias": ("experts.gate_up_projs.{}.bias",),
    "experts.down_proj": ("experts.down_projs.{}.weight",),
    "experts.down_proj_bias": ("experts.down_projs.{}.bias",),
}
JOINED: Mapping[str, tuple[str, ...]] = {
    f"{whole}.{leaf}": tuple(f"{part}.{leaf}" for part in parts)
    for leaf in ("weight", "bias")
    for whole, parts in {
        "qkv_proj": ("q_proj", "k_proj", "v_proj"),
        "gate_up_proj": ("gate_proj", "up_proj"),
    }.items()
}
# Families whose fused experts are stored as experts x inputs x outputs: no expert's matrix is a stretch of them.
INPUT_FIRST_EXPERTS = frozenset(
    "gpt_oss llama4 llama4_text aria aria_text openai_privacy_filter qwen3_vl_moe qwen3_vl_moe_text".split()
)
# Those of them in which gate and up have alternate columns.
ALTERNATING_EXPERTS = frozenset({"gpt_oss"})
# Those whose files were so once and are as in memory, experts x outputs x inputs, since transformers 5: shapes tell,
# and where they do not, the library takes a file as it takes memory.
EITHER_WAY_EXPERTS = frozenset({"qwen3_vl_moe", "qwen3_vl_moe_text"})
# Families whose experts are one array each in memory, although their files store them one by one.
STACKED_IN_MEMORY = frozenset(
    """afmoe axk1 bailing_hybrid beam cohere2_moe deepseek_v2 deepseek_v3 deepseek_v32 dots1 ernie4_5_moe exaone_moe
    flex_olmo flint glm4_moe glm4_moe_lite glm4v_moe glm_moe_dsa hunyuan_v1_moe hy_v3 jamba kolibri1 laguna lfm2_moe
    longcat_flash mellum mimo_v2_flash minimax minimax_m2 mixtral nemotron_h olmoe phimoe qwen2_moe qwen3_5_moe_text
    qwen3_moe qwen3_next qwen3_omni_moe_text solar_open""".split()
)
# Families whose routers are parameters of a module that is no linear layer, beside most of these.
ROUTERS_APART = (STACKED_IN_MEMORY - {"phimoe"}) | frozenset(
    "granitemoe granitemoeshared granitemoehybrid gpt_oss aria aria_text".split()
)
