"""Which keys of a configuration change what a network computes from the same tensors, and how much that matters."""

from __future__ import annotations

import enum
import re


class Consequence(enum.Enum):
    """What follows where two checkpoints that are combined differ in a key."""

    # The numbers of one mean something else in the other: heads, activations, strides, labels.
    MEANING = "meaning"
    # The numbers mean the same and are calculated with otherwise: rotary frequencies, windows, scales.
    CALCULATION = "calculation"
    # Nobody here knows.
    UNKNOWN = "unknown"
    # Nothing: bookkeeping, training, generation, and sizes, which the shapes of tensors tell.
    NONE = "none"


_WORDS = {
    Consequence.NONE: (
        # Bookkeeping and how it is run.
        r"^_|^\d+$|^transformers_version$|^(?:architectures|model_type|auto_map|dtype|torch_dtype)$|version$|_dtype$"
        r"|name_or_path$|_implementation$|_plan$|^return_|^output_(?:hidden|attent|router|scores|past|loading)"
        r"|^(?:use_cache|use_return_dict|torchscript|problem_type|finetuning_task|task_specific_params|label2id)$"
        r"|^(?:tokenizer_class|prefix|language|license|license_name|tie_.*|pruned_heads|pretraining_tp|is_composition)$"
        r"|^(?:chunk_size_feed_forward|keys_to_ignore.*|custom_pipelines|use_(?:mamba_)?kernels|disable_custom_kernels)$"
        r"|^(?:is_encoder_decoder|qk_head_dim|reorder_and_upcast_attn|use_associative_scan|slow_but_exact)$"
        r"|^(?:deterministic_flash_attn|use_flash_attn.*|use_bfloat16|fp16|fp32|bf16|cross_attention_hidden_size)$"
        # Tokens, which vocabularies answer for.
        r"|_token_(?:ids?|index)$|(?:^|_)(?:bos|eos|pad|sep|unk|mask|cls|eod|blank|ignore)(?:_.*)?_(?:id|index|ids)$"
        r"|^(?:tokenizer_(?:padding_side|model_max_length)|model_max_length|tokenizer_.*|vocab_file)$"
        # Training.
        r"|dropout|_pdrop$|drop_path|layerdrop|drop(?:_connect)?_rate$|^init_|_init(?:_|$)|initializer|jitter|noise"
        r"|loss|_coef(?:ficient)?$|_cost$|^mask_(?:time|feature)_|spec_augment|matcher|focal|label_smoothing|momentum"
        r"|^(?:dice|mask|class|no_object)_weight$|denoising|oversample|importance_sample|_negatives$|^gradient_"
        r"|^(?:freeze|tune|train|unfreeze|lora|unsloth)|_lr$|learning_rate|rescale_prenorm_residual|^init_std$|^time_step_(?:min|max|floor)$"
        # Generation.
        r"|^(?:temperature|top_k|top_p|typical_p|repetition_penalty|length_penalty|no_repeat_ngram_size|num_beams)$"
        r"|^(?:num_beam_groups|diversity_penalty|num_return_sequences|do_sample|early_stopping|max_length|min_length)$"
        r"|^(?:bad_words_ids|forced_.*|(?:begin_)?suppress_tokens|remove_invalid_values|use_mambapy)$"
        r"|^(?:exponential_decay_length_penalty|encoder_no_repeat_ngram_size|num_logits_to_keep|max_new_tokens)$"
        # The length that a model was trained for; rotary frequencies that follow from it are compared as such.
        r"|max_position_embeddings$|^(?:n_positions|n_ctx|seq_length|max_sequence_length|max_seq_len)$"
    ),
    Consequence.MEANING: (
        r"heads?$|heads_|head_dim|^d_head$|multi_query|num_kv|_act$|_act_fn$|activation|is_gated_act|feed_forward_proj"
        r"|norm_(?:type|before)|normali[sz]e_before|pre_norm|post_norm$|parallel_(?:residual|attn)|alibi"
        r"|position_embeddings?_type|rope_interleave|patch_size|strides?$|dilat|tubelet|padding$|^id2label$|groups$"
        r"|new_decoder_architecture|feat_extract_norm|do_stable_layer_norm"
    ),
    Consequence.CALCULATION: (
        r"rope|rotary|eps(?:ilon)?$|softcap|window|experts_per_tok|top_?k|moe_k$|alpha|pool|image_size|multiplier|scal(?:e|ing)"
        r"|pattern|interval|types?$|step$|period|bidirectional|is_decoder|causal|scor(?:e|ing)|_group$|query_pre_attn"
        r"|qk_norm|clip|limit|chunk|block_size|first_k|feature_(?:layer|select)|merge|qk_layernorm|truncate"
        r"|^attention_type$|^local_attention$|layers_block_type|no_rope|max_distance$|residual_connection"
    ),
}
# Told by the shapes of tensors, which are compared themselves.
_SIZES = (
    r"^(?:vocab_size|.*vocab_size.*|.*hidden_sizes?|.*_dims?|.*_width|.*intermediate_size|d_model|d_ff|d_kv|d_inner|n_embd"
    r"|n_inner|ffn_hidden.*|embed_dim.*|embedding_size|.*_channels?|channels|depths?|(?:num_|n_)?.*layers?|.*_layers"
    r"|num_(?:hidden_)?blocks|(?:num_|n_).*experts|moe_num_.*|.*_rank|.*num_labels|num_classes|codebook_size"
    r"|projection_size|.*d_state|.*_?expand|mlp_ratio|relative_attention_num_buckets|num_mel_bins|num_filters|.*bias"
    r"|.*kernel_sizes?|.*_d_conv|ssm_.*_size|state_size|share_.*|type_vocab_size)$"
)
_PATTERNS = {consequence: re.compile(words) for consequence, words in _WORDS.items()}
_TOLD_BY_SHAPES = re.compile(_SIZES)

# Lists of what other keys say by a period or a threshold; older configurations have these alone.
DERIVED = frozenset(
    {
        "layer_types",
        "mlp_layer_types",
        "layers_block_type",
        "no_rope_layers",
        "moe_layers",
        "indexer_types",
        "sliding_window_pattern",
        "first_k_dense_replace",
        "mlp_only_layers",
        "decoder_sparse_step",
        "max_window_layers",
        "stage_names",
    }
)


def consequence_of(key: str) -> Consequence:
    """What follows where two checkpoints differ in the key of this name, wherever in a configuration it stands."""
    for consequence in (Consequence.NONE, Consequence.MEANING, Consequence.CALCULATION):
        if _PATTERNS[consequence].search(key):
            return consequence
    return Consequence.NONE if _TOLD_BY_SHAPES.search(key) else Consequence.UNKNOWN
