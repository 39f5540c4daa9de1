"""What libraries call the output head of an embedding: needed where a head that is not stored is to be written.

A table of facts that is tested against transformers where it is installed; nothing here imports it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# The first pattern that matches the embedding's name counts; `model_type` comes before all of them.
_OF_FAMILY = {
    "whisper": "proj_out.weight",
    "moonshine": "proj_out.weight",
    "moonshine_streaming": "proj_out.weight",
    "canary": "proj_out.weight",
    "cohere_asr": "proj_out.weight",
    "bert-generation": "lm_head.decoder.weight",
    "ultrabert": "head.decoder.weight",
    "fsmt": "decoder.output_projection.weight",
    "git": "output.weight",
    "neomme": "lm_head.weight",
    "squeezebert": "cls.predictions.decoder.weight",
    "gpt_neox": "embed_out.weight",
    "gpt_neox_japanese": "embed_out.weight",
    "rwkv": "head.weight",
    "t5gemma": "lm_head.out_proj.weight",
    "t5gemma2": "lm_head.out_proj.weight",
    "biogpt": "output_projection.weight",
    "trocr": "output_projection.weight",
}
_BERTS = (
    "bert|ernie|roc_bert|deberta|fnet|mobilebert|roformer|visual_bert|nomic_bert|layoutlm|mra|nystromformer|tapas|yoso"
    "|lxmert"
)
_WORDS = r"\.embeddings\.word_embeddings\.weight$"
_BODIES = "model|transformer|backbone|gpt_neox|led|prophetnet"
_TABLES = r"embed_tokens|shared|wte|embeddings|word_embeddings|w|tokens_embed|embed_in|embeddings\.tok_embeddings"
_PATTERNS = tuple(
    (re.compile(pattern), head)
    for pattern, head in (
        (
            rf"^(?:{_BERTS}){_WORDS}",
            "cls.predictions.decoder.weight",
        ),
        (
            rf"^(?:roberta|roberta_prelayernorm|longformer|esm|mpnet|ibert|gte){_WORDS}",
            "lm_head.decoder.weight",
        ),
        (rf"^albert{_WORDS}", "predictions.decoder.weight"),
        (
            rf"^(?:electra|convbert){_WORDS}",
            "generator_lm_head.weight",
        ),
        (rf"^distilbert{_WORDS}", "vocab_projector.weight"),
        (rf"^funnel{_WORDS}", "lm_head.weight"),
        (r"^model\.embeddings\.tok_embeddings\.weight$", "decoder.weight"),
        (r"^transformer\.word_embedding\.weight$", "lm_loss.weight"),
        (r"^transformer\.embeddings\.weight$", "pred_layer.proj.weight"),
        # A language model as a part of a larger one, as it was written before transformers 4.52.
        (r"^(language_model|text_model|llm)\.model\.embed_tokens\.weight$", r"\1.lm_head.weight"),
        (
            rf"^(?:(?:{_BODIES})\.)?(?:(?:language_model|text_model|decoder)\.)?(?:{_TABLES})\.weight$",
            "lm_head.weight",
        ),
    )
)
# They multiply what a tied head scores, and only a tied one, with hidden_size^-0.5.
_SCALED = frozenset(
    {"t5", "umt5", "longt5", "switch_transformers", "pop2piano", "udop", "pix2struct"}
)


def head_name(embedding: str, config: Mapping[str, Any] | None) -> str | None:
    """The name of the head that belongs to a stored embedding, or None where it is not known."""
    family = str((config or {}).get("model_type"))
    if family in _OF_FAMILY:
        return _OF_FAMILY[family]
    for pattern, head in _PATTERNS:
        found = pattern.match(embedding)
        if found is not None:
            return found.expand(head)
    return None


def scales_tied_heads(config: Mapping[str, Any] | None) -> bool:
    """Whether the network computes otherwise with a tied head than with an equal one of its own."""
    return (config or {}).get("model_type") in _SCALED
