"""How image and video models name their tensors in files of their authors, and what diffusers calls them: plain facts.

`tests/checkpoints/test_image_spellings.py` holds the tables against diffusers' own converters. Renamings are done one
after the other, the first place that fits in a name each.
"""

from __future__ import annotations

from collections.abc import Mapping

from weightsmith.checkpoints.spelling.spelling_facts import Renamings

# The components of a pipeline that have weights of their own.
UNET, TRANSFORMER, VAE, TEXT, SECOND_TEXT = (
    "unet",
    "transformer",
    "vae",
    "text_encoder",
    "text_encoder_2",
)
# The folders of components in a pipeline of diffusers, several of a kind with numbers.
FOLDERS = r"(?:unet|transformer|vae|text_encoder|image_encoder|safety_checker|controlnet)(?:_\d)?"
# What stands before the names of a component in a single file: Stable Diffusion 1 and 2, XL and its refiner, and files
# of ComfyUI. OpenCLIP's encoders lie below `model.`, and CLIP's below `transformer.`.
DENOISER = "model.diffusion_model."
PREFIXES: Mapping[str, str] = {
    "first_stage_model.": VAE,
    "vae.": VAE,
    "cond_stage_model.transformer.": TEXT,
    "cond_stage_model.model.": TEXT,
    "conditioner.embedders.0.transformer.": TEXT,
    "conditioner.embedders.0.model.": SECOND_TEXT,
    "conditioner.embedders.1.model.": SECOND_TEXT,
    "text_encoders.clip_l.transformer.": TEXT,
}

FLUX: Renamings = (
    (r"^img_in\.", "x_embedder."),
    (r"^txt_in\.", "context_embedder."),
    (r"^time_in\.", "time_text_embed.timestep_embedder."),
    (r"^vector_in\.", "time_text_embed.text_embedder."),
    (r"^guidance_in\.", "time_text_embed.guidance_embedder."),
    (r"_embedder\.in_layer\.", "_embedder.linear_1."),
    (r"_embedder\.out_layer\.", "_embedder.linear_2."),
    (r"^double_blocks\.", "transformer_blocks."),
    (r"^single_blocks\.", "single_transformer_blocks."),
    (r"\.img_mod\.lin\.", ".norm1.linear."),
    (r"\.txt_mod\.lin\.", ".norm1_context.linear."),
    (r"\.modulation\.lin\.", ".norm.linear."),
    (r"\.img_attn\.qkv\.", ".attn.to_qkv."),
    (r"\.txt_attn\.qkv\.", ".attn.to_added_qkv."),
    (r"\.img_attn\.norm\.query_norm\.(?:scale|weight)$", ".attn.norm_q.weight"),
    (r"\.img_attn\.norm\.key_norm\.(?:scale|weight)$", ".attn.norm_k.weight"),
    (r"\.txt_attn\.norm\.query_norm\.(?:scale|weight)$", ".attn.norm_added_q.weight"),
    (r"\.txt_attn\.norm\.key_norm\.(?:scale|weight)$", ".attn.norm_added_k.weight"),
    (r"\.norm\.query_norm\.(?:scale|weight)$", ".attn.norm_q.weight"),
    (r"\.norm\.key_norm\.(?:scale|weight)$", ".attn.norm_k.weight"),
    (r"\.img_attn\.proj\.", ".attn.to_out.0."),
    (r"\.txt_attn\.proj\.", ".attn.to_add_out."),
    (r"\.img_mlp\.0\.", ".ff.net.0.proj."),
    (r"\.img_mlp\.2\.", ".ff.net.2."),
    (r"\.txt_mlp\.0\.", ".ff_context.net.0.proj."),
    (r"\.txt_mlp\.2\.", ".ff_context.net.2."),
    (r"\.linear1\.", ".attn.to_qkv_mlp_proj."),
    (r"\.linear2\.", ".proj_out."),
    (r"^final_layer\.linear\.", "proj_out."),
    (r"^final_layer\.adaLN_modulation\.1\.", "norm_out.linear_shift_first."),
)
WAN: Renamings = (
    (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
    (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"^img_emb\.proj\.0\.", "condition_embedder.image_embedder.norm1."),
    (r"^img_emb\.proj\.1\.", "condition_embedder.image_embedder.ff.net.0.proj."),
    (r"^img_emb\.proj\.3\.", "condition_embedder.image_embedder.ff.net.2."),
    (r"^img_emb\.proj\.4\.", "condition_embedder.image_embedder.norm2."),
    (r"^head\.head\.", "proj_out."),
    (r"(^|\.)(?:head\.)?modulation$", r"\1scale_shift_table"),
    (r"\.self_attn\.", ".attn1."),
    (r"\.cross_attn\.", ".attn2."),
    (r"(\.attn\d)\.([qkv])\.", r"\1.to_\2."),
    (r"(\.attn\d)\.o\.", r"\1.to_out.0."),
    (r"(\.attn\d)\.([kv])_img\.", r"\1.add_\2_proj."),
    (r"\.norm_k_img\.", ".norm_added_k."),
    (r"\.ffn\.0\.", ".ffn.net.0.proj."),
    (r"\.ffn\.2\.", ".ffn.net.2."),
    # The second norm of a block is the third in the authors' files, and the other way round.
    (r"^((?:vace_)?blocks\.\d+)\.norm2\.", r"\1.norm_of_mlp."),
    (r"^((?:vace_)?blocks\.\d+)\.norm3\.", r"\1.norm2."),
    (r"^((?:vace_)?blocks\.\d+)\.norm_of_mlp\.", r"\1.norm3."),
    (r"\.before_proj\.", ".proj_in."),
    (r"\.after_proj\.", ".proj_out."),
)
# Wholes that diffusers has apart, by the end of their names; the rows of the parts lie one below the other.
JOINED: Mapping[str, tuple[str, ...]] = {
    f"{whole}.{leaf}": tuple(f"{part}.{leaf}" for part in parts)
    for leaf in ("weight", "bias")
    for whole, parts in {
        "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attn.to_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "attn.to_added_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "attn.to_qkv_mlp_proj": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    }.items()
}
# What single files have beside the weights of a network: the schedule of noise, constant tables, marks of a kind, and
# what the last layer of OpenCLIP in Stable Diffusion 2 would be, whose output nobody uses.
BESIDE_WEIGHTS = (
    r"^(?:betas|alphas_cumprod(?:_prev)?|(?:sqrt|log)_[a-z0-9_]+|posterior_[a-z0-9_]+|lvlb_weights|denoiser\.sigmas"
    r"|v_pred|ztsnr|.+\.position_ids|.+\.logit_scale"
    r"|cond_stage_model\.model\.(?:transformer\.resblocks\.23\..+|text_projection))$"
)
