"""Rotary positions of a configuration in one form, however a version of a library spells them.

Older configurations say `rope_theta`, `rope_scaling` and `partial_rotary_factor`, newer ones `rope_parameters`, flat or
for each kind of attention layer; GPT-NeoX says `rotary_emb_base` and `rotary_pct`, Gemma 3 `rope_local_base_freq`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightsmith.checkpoints.library_defaults import default_of

_THETA = ("rope_theta", "rotary_emb_base", "rotary_embedding_base", "global_rope_theta")
_LOCAL_THETA = ("rope_local_base_freq", "local_rope_theta")
_PARTIAL = ("partial_rotary_factor", "rotary_pct", "rope_pct")
_SCALING = ("rope_scaling", "rope_parameters")
# All keys that are said by the rotary facts.
ROTARY_KEYS = frozenset(
    (*_THETA, *_LOCAL_THETA, *_PARTIAL, *_SCALING, "original_max_position_embeddings")
)
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
# Names that one computation had in turn.
_SAME_TYPE = {"su": "longrope", "mrope": "default"}
# Their frequencies depend on the longest sequence.
_BY_LENGTH = frozenset({"dynamic", "longrope", "yarn"})


def rotary_facts(section: Mapping[str, Any], family: str | None) -> dict[str, Any]:
    """The facts by name, `rope_theta` or `full_attention.rope_theta`; empty where a section says nothing of them."""
    if not any(section.get(key) is not None for key in ROTARY_KEYS):
        return {}
    given = _first(section, _SCALING)
    given = given if isinstance(given, Mapping) else {}
    theta = _first(section, _THETA)
    local = _first(section, _LOCAL_THETA)
    nested = {k: v for k, v in given.items() if isinstance(v, Mapping)}
    if nested:
        kinds = {name: _facts(own, section, theta, family) for name, own in nested.items()}
    elif local is not None:
        kinds = {
            _GLOBAL: _facts(given, section, theta, family),
            _LOCAL: _facts({}, section, local, family),
        }
    else:
        return _facts(given, section, theta, family)
    return {f"{name}.{key}": value for name, own in kinds.items() for key, value in own.items()}


def spread(facts: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Facts for all layers alike as those for each kind of layer, where `other` are for each kind."""
    if any("." in key for key in facts) or not facts:
        return dict(facts)
    kinds = dict.fromkeys(key.partition(".")[0] for key in other if "." in key)
    if not kinds:
        return dict(facts)
    return {f"{kind}.{key}": value for kind in kinds for key, value in facts.items()}


def _facts(
    given: Mapping[str, Any], section: Mapping[str, Any], theta: Any, family: str | None
) -> dict[str, Any]:
    facts = {k: v for k, v in given.items() if v is not None and k not in ("type", "finetuned")}
    kind = given.get("rope_type") or given.get("type") or "default"
    facts["rope_type"] = _SAME_TYPE.get(kind, kind)
    if facts.get("rope_theta") is None:
        facts["rope_theta"] = theta if theta is not None else default_of("rope_theta", family)[1]
    if facts.get("partial_rotary_factor") is None:
        own = _first(section, _PARTIAL)
        fallback = default_of("partial_rotary_factor", family)[1]
        facts["partial_rotary_factor"] = own if own is not None else fallback
    if facts["rope_type"] in _BY_LENGTH:
        facts.setdefault(
            "original_max_position_embeddings", section.get("original_max_position_embeddings")
        )
        facts["max_position_embeddings"] = section.get("max_position_embeddings")
    return {key: value for key, value in facts.items() if value is not None}


def _first(section: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((section[key] for key in keys if section.get(key) is not None), None)
