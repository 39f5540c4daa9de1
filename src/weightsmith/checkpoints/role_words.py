"""The words that tensor names use for the parts of a network: the small table behind the roles.

Fields are compared in lower case. A word means its role only in the context that
`weightsmith.checkpoints.roles` asks for (in attention, in a feed-forward part, outside a stack).
"""

from __future__ import annotations

NORM = frozenset(
    "norm layernorm rmsnorm batchnorm groupnorm ln bn lnf lnpre lnpost normalization".split()
)
POSITION = frozenset("pos position positions positional".split())
POSITION_LEAF = frozenset(
    """wpe relative_attention_bias relative_position_bias_table rel_pos_h rel_pos_w
    relative_attention_embedding rel_embeddings""".split()
)
EMBED = frozenset("embed embedding embeddings emb embeds".split())
EMBED_LEAF = frozenset("wte shared embed_in".split())
# Lookup tables that are not indexed by the vocabulary.
TYPE_EMBED = frozenset("type types segment segments modality".split())
NOT_VOCABULARY = frozenset(
    """patch patches time timestep label class query task speaker proj projection project
    mapping""".split()
)

HEAD = frozenset("head heads classifier classification predictions logits lmhead".split())
HEAD_LEAF = frozenset(
    """embed_out qa_outputs score output_projection vocab_projector vocab_transform output_layer
    proj_out seq_relationship""".split()
)
# Whole names of modules that are heads only at the very top of a checkpoint.
HEAD_TOP = frozenset("output fc".split())

BUFFER = frozenset(
    """inv_freq rotary_emb rotary_pos_emb masked_bias position_ids token_type_ids attn_mask
    relative_position_index freqs_cis rope rope_freqs weight_integer""".split()
)
ROUTER_LEAF = frozenset("router shared_expert_gate shared_experts_gate moe_gate wg".split())

# From a text tower to the space that it shares with another one: CLIP's matrix, however it is stored.
TEXT_PROJECTION = frozenset(("text_projection",))

ATTENTION = frozenset(
    """attn attention att selfattention encdecattention crossattention attentions mha
    selfattn""".split()
)
QUERY = frozenset(
    "q q_proj query q_lin to_q wq q_a_proj q_b_proj query_proj q_attn wq_a wq_b linear_q".split()
)
KEY = frozenset("k k_proj key k_lin to_k wk key_proj linear_k".split())
VALUE = frozenset("v v_proj value v_lin to_v wv value_proj linear_v".split())
KEY_VALUE = frozenset("kv kv_proj kv_a_proj_with_mqa kv_a_proj kv_b_proj to_kv wkv_a wkv_b".split())
QKV = frozenset(
    """qkv qkv_proj query_key_value c_attn wqkv in_proj att_proj in_proj_qkvz attn_qkv
    qkv_lin""".split()
)
OUT = frozenset(
    "o o_proj out_proj c_proj dense out_lin wo to_out proj attn_out linear_out out".split()
)
# Projection names that need no attention around them to be understood.
PLAIN_PROJECTIONS = frozenset(
    "q_proj k_proj v_proj qkv_proj query_key_value wq wk wv wqkv q_lin k_lin v_lin".split()
)

EXPERTS = frozenset("experts expert moe".split())
FEED_FORWARD = frozenset("mlp ffn feedforward densereludense ff".split()) | EXPERTS
GATE = frozenset("gate_proj wi_0 w1 w_gate gate".split())
UP = frozenset(
    """up_proj fc1 c_fc dense_h_to_4h lin1 wi wi_1 linear1 intermediate_dense fc_in w3 v1 linear_fc1
    linear_1 linear_v""".split()
)
DOWN = frozenset(
    """down_proj fc2 c_proj dense_4h_to_h lin2 wo w2 linear2 output_dense fc_out output_linear
    linear_fc2 linear_2""".split()
)
FUSED = frozenset("gate_up_proj up_gate_proj w12 input_linear".split())
