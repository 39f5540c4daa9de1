"""Keep every key of a configuration that speaks of single layers true when layers move.

`sources[j]` is the old layer that becomes layer j. A configuration describes layers in nine ways: a list (or a
string) with one entry per layer; a list of layer numbers; a mapping from them; a threshold ("the first k layers are
dense"); a range with a start and an end; a count from the end; a period ("every sixth layer"); a packed pattern; and
the names of stages whose outputs are taken. Each way is carried over exactly, written out as a list where the new order
has no such period, or refused.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from weightsmith.errors import CompatibilityError

_INDEX_LIST = re.compile(r"(?:layers|layer_ids?|idxs|indices|indexes|layer_idx)$")
# Named like lists of numbers, but flags for every layer.
_FLAG_LISTS = frozenset({"no_rope_layers"})
# Lists that may be as long as there are layers without speaking of layers.
_NOT_PER_LAYER = re.compile(
    r"_token_ids?$|^architectures$|^out_|^stage_names$|^depths$|^hidden_sizes$|_section$|_tokens$|^summary_idxs$"
    r"|^target_layer|^mtp_|^keys_to_ignore|labels?$|^auto_map$|_range$|_limit$|_std$|_mean$"
)
_PER_LAYER_TEXT = frozenset({"hybrid_override_pattern"})
# A list that networks repeat as often as there are layers to fill.
_REPEATED = frozenset({"block_types"})
# Lists that tell the number of layers where no number does.
COUNTING_LISTS = ("layers_block_type", "layer_types")
# What single layers have otherwise than the rest, by their numbers; other keys name kinds of layers.
_BY_NUMBER = frozenset({"per_layer_config"})
# Every layer points at another one.
_POINTERS = frozenset({"kv_source_layers"})

# Layers below the number are one kind and the rest another; with the list that overrides it.
_THRESHOLDS = {
    "first_k_dense_replace": "mlp_layer_types",
    "num_dense_layers": "mlp_layer_types",
    "max_window_layers": "layer_types",
}
# Layers whose outputs are taken, each by tensors of its own.
_TAKEN = re.compile(r"^deepstack|hidden_state_ind")
# Tables outside of the layers that have a part for each of them.
_TABLES_OF_LAYERS = frozenset({"hidden_size_per_layer_input"})
_FAMILIES_OF_TABLES = frozenset({"yolos"})
# Their number of layers also counts what is no layer of that stack: an encoder's, or what an MLP is made of.
_COUNTING_MORE = frozenset(
    {
        "fastspeech2_conformer",
        "sam3_tracker_mask_decoder",
        "sam3_tracker_video_mask_decoder",
    }
)
# How many layers of a kind a network cannot be without: the list, the kind, the number.
_NEEDED = {
    "olmo_hybrid": ("layer_types", "full_attention", 1),
    "zamba": ("layers_block_type", "hybrid", 2),
}
# Layers of this kind share their tensors, of which each uses a part by its turn among them.
_SHARING_IN_TURN = {"zamba2": "hybrid"}
# Layers between two numbers, the second included, are one kind; -1 is the last layer.
_RANGES = {"moe_layer_start_index": "moe_layer_end_index"}
# More than any model has; a configuration may state any number.
_MOST_LAYERS = 10_000
_FROM_THE_END = ("num_kv_shared_layers",)


def _last_of_period(layer: int, period: int) -> bool:
    return (layer + 1) % period == 0


def _first_of_period(layer: int, period: int) -> bool:
    return layer % period == 0


# Which layers of a period are the special ones; with the list that overrides it.
_PERIODS: dict[str, tuple[Callable[[int, int], bool], str]] = {
    "sliding_window_pattern": (_last_of_period, "layer_types"),
    "full_attention_interval": (_last_of_period, "layer_types"),
    "global_attn_every_n_layers": (_first_of_period, "layer_types"),
    "attn_layer_period": (_first_of_period, "layers_block_type"),
    "expert_layer_period": (_first_of_period, "mlp_layer_types"),
    "interleave_moe_layer_step": (_last_of_period, "moe_layers"),
    "no_rope_layer_interval": (_last_of_period, "no_rope_layers"),
    "decoder_sparse_step": (_last_of_period, "mlp_layer_types"),
    "encoder_sparse_step": (_last_of_period, "mlp_layer_types"),
    "cross_attention_frequency": (_first_of_period, "cross_attention_layers"),
    "moe_layer_freq": (_first_of_period, "mlp_layer_types"),
    "moe_layer_interval": (_last_of_period, "mlp_layer_types"),
}
# Periods that loaders also accept written out: the list's name, then its special and usual entries.
_WRITTEN_OUT = {
    "sliding_window_pattern": ("full_attention", "sliding_attention"),
    "full_attention_interval": ("full_attention", "linear_attention"),
}


def move_layers(section: dict[str, Any], count: int, sources: Sequence[int]) -> dict[str, Any]:
    """The section with all but the layer count adapted to the new order of its `count` layers.

    Raises CompatibilityError where the new order cannot be said in such a configuration, and where
    a source lies beyond `count` though the section describes single layers.
    """
    moved = dict(section)
    _refuse_tables(section)
    _refuse_other_turns(section, sources)
    for key, value in section.items():
        moved[key] = _moved_value(key, value, count, sources)
    for key, override in _THRESHOLDS.items():
        if _is_count(section.get(key)):
            moved[key] = _moved_threshold(key, section, override, count, sources)
    for key in _FROM_THE_END:
        if _is_count(section.get(key)):
            moved[key] = _moved_tail(key, section[key], count, sources)
    for key in _PERIODS:
        if section.get(key) is not None:
            moved |= _moved_period(key, section, sources)
    for key, end in _RANGES.items():
        if _is_count(section.get(key)):
            moved |= _moved_range(key, end, section, count, sources)
    if isinstance(section.get("stage_names"), list):
        moved |= _moved_stages(section, count, sources)
    _require_kinds(moved)
    return moved


def _refuse_tables(section: dict[str, Any]) -> None:
    key = next((key for key in _TABLES_OF_LAYERS if section.get(key)), None)
    if section.get("model_type") in _FAMILIES_OF_TABLES:
        key = "model_type"
    if key is not None:
        raise CompatibilityError(
            f"By the configuration's {key!r} tensors outside of the layers have a part for each of them, which cannot "
            "be moved with them: merge without slices."
        )


def refuse_shared_count(section: Mapping[str, Any], count: int, sources: Sequence[int]) -> None:
    """Raise CompatibilityError where another number of layers would also be that of other modules."""
    family = section.get("model_type")
    if family in _COUNTING_MORE and len(sources) != count:
        raise CompatibilityError(
            f"A network of {family!r} counts these layers and other modules with one number, so these alone cannot "
            "change: merge without slices, or keep as many layers."
        )


def _require_kinds(section: dict[str, Any]) -> None:
    family = section.get("model_type")
    key, kind, least = _NEEDED.get(str(family), ("", "", 0))
    found = section.get(key)
    if isinstance(found, list) and found.count(kind) < least:
        raise CompatibilityError(
            f"A network of {family!r} needs at least {least} of its layers to be {kind!r} (by {key!r}), and the new "
            f"order has {found.count(kind)}: choose slices that keep more of them."
        )


def _refuse_other_turns(section: dict[str, Any], sources: Sequence[int]) -> None:
    family = str(section.get("model_type"))
    kind = _SHARING_IN_TURN.get(family)
    kinds = next((section[key] for key in COUNTING_LISTS if section.get(key)), ())
    sharing = [layer for layer, own in enumerate(kinds) if own == kind]
    if kind is not None and [source for source in sources if source in sharing] != sharing:
        raise CompatibilityError(
            f"The {kind} layers {', '.join(map(str, sharing))} of {family!r} share tensors with a part for each of "
            "them by its turn, which cannot be moved with them: choose slices that keep all of them, once and in order."
        )


def layer_kinds(section: Mapping[str, Any], count: int) -> list[Hashable]:
    """All that a section says of each of its `count` layers: equal for layers that it does not tell apart."""
    said: list[list[str]] = [[] for _ in range(count)]
    for key, value in section.items():
        for layer, word in enumerate(_words_of(key, value, section, count)):
            said[layer].append(word)
    return [tuple(words) for words in said]


def _words_of(key: str, value: Any, section: Mapping[str, Any], count: int) -> list[str]:
    """What one key says of every layer; empty where it speaks of no single layers."""
    layers = range(count)
    if key in _PERIODS and _is_count(value) and value > 0:
        offset = section.get(key.replace("_period", "_offset"), 0) if "_period" in key else 0
        return [str(_PERIODS[key][0](layer - offset, value)) for layer in layers]
    if key in _THRESHOLDS and _is_count(value):
        return [str(layer < value) for layer in layers]
    if key in _RANGES and _is_count(value):
        first, last = _range(key, _RANGES[key], section, count)
        return [str(first <= layer <= last) for layer in layers]
    if key in _FROM_THE_END and _is_count(value):
        return [str(layer >= count - value) for layer in layers]
    if key == "attention_types" and isinstance(value, list):
        return list(map(str, _unpacked(key, value, count)))
    if key in _PER_LAYER_TEXT and isinstance(value, str) and len(value) == count:
        return list(value)
    if key in _BY_NUMBER and isinstance(value, Mapping):
        own = _numbered(value)
        return [str(own.get(layer)) for layer in layers]
    if not isinstance(value, list) or not value or _NOT_PER_LAYER.search(key):
        return []
    if key in _REPEATED:
        return list(map(str, _repeated(value, count)))
    if _is_index_list(key, value, count):
        return [str(layer in value) for layer in layers]
    return list(map(str, value)) if len(value) == count else []


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _moved_value(key: str, value: Any, count: int, sources: Sequence[int]) -> Any:
    if key in _PER_LAYER_TEXT and isinstance(value, str) and len(value) == count:
        return "".join(_pick(key, value, sources))
    if key in _BY_NUMBER and isinstance(value, Mapping):
        return _moved_mapping(value, sources)
    if not isinstance(value, list) or not value or _NOT_PER_LAYER.search(key):
        return value
    if key in _REPEATED:
        return _pick(key, _repeated(value, count), sources)
    if key in _POINTERS:
        return _moved_pointers(key, value, sources)
    if key == "attention_types":
        return [[_pick(key, _unpacked(key, value, count), sources), 1]]
    if _TAKEN.search(key) and all(map(_is_count, value)):
        return _moved_taken(key, value, count, sources)
    if _is_index_list(key, value, count):
        chosen = set(value)
        return [layer for layer, source in enumerate(sources) if source in chosen]
    return _pick(key, value, sources) if len(value) == count else value


def _numbered(value: Mapping[Any, Any]) -> dict[int, Any]:
    return {int(key): own for key, own in value.items() if str(key).isdecimal()}


def _moved_mapping(value: Mapping[Any, Any], sources: Sequence[int]) -> dict[str, Any]:
    """What single layers have, under their new numbers, behind what is said of kinds of layers."""
    own = _numbered(value)
    moved = {str(j): own[source] for j, source in enumerate(sources) if source in own}
    return {key: said for key, said in value.items() if not str(key).isdecimal()} | moved


def _is_index_list(key: str, value: list[Any], count: int) -> bool:
    if key in _FLAG_LISTS or not _INDEX_LIST.search(key):
        return False
    if not all(_is_count(entry) and entry >= 0 for entry in value) or value[0] >= count:
        return False
    return all(a < b for a, b in itertools.pairwise(value))


def _pick(key: str, entries: Sequence[Any], sources: Sequence[int]) -> list[Any]:
    beyond = next((source for source in sources if source >= len(entries)), None)
    if beyond is not None:
        raise CompatibilityError(
            f"The configuration's {key!r} describes {len(entries)} layers and says "
            f"nothing of layer {beyond}, which the recipe takes from a deeper model: choose that model as "
            "`donor`, whose configuration is taken."
        )
    return [entries[source] for source in sources]


def _unpacked(key: str, value: list[Any], count: int) -> list[Any]:
    """`[[["global", "local"], 12]]` as one entry per layer."""
    try:
        total = sum(len(pattern) * times for pattern, times in value)
        fits = total == count <= _MOST_LAYERS
        runs = value if fits else []
        entries = [entry for pattern, times in runs for _ in range(times) for entry in pattern]
    except (TypeError, ValueError):
        entries = []
    if len(entries) != count:
        raise CompatibilityError(
            f"The configuration's {key!r} does not describe its {count} layers: correct it first."
        )
    return entries


def _repeated(value: list[Any], count: int) -> list[Any]:
    return [value[layer % len(value)] for layer in range(count)]


def _moved_taken(key: str, value: list[int], count: int, sources: Sequence[int]) -> list[int]:
    """The new numbers of layers whose outputs are taken, all of which must be there once."""
    moved = [j for j, source in enumerate(sources) if source in value]
    if [sources[j] for j in moved] != [layer for layer in value if layer < count]:
        raise CompatibilityError(
            f"The configuration takes the outputs of layers {', '.join(map(str, value))} ({key!r}), which the new "
            "order of layers does not have once each: keep these layers."
        )
    return moved + [layer + len(sources) - count for layer in value if layer >= count]


def _moved_pointers(key: str, value: list[Any], sources: Sequence[int]) -> list[int]:
    if value == list(range(len(value))):
        return list(range(len(sources)))
    raise CompatibilityError(
        f"The configuration's {key!r} lets layers use each other's tensors, so its layers cannot "
        "be moved: keep them all in order."
    )


def _moved_threshold(
    key: str, section: dict[str, Any], override: str, count: int, sources: Sequence[int]
) -> int:
    threshold: int = section[key]
    below = [source < threshold for source in sources]
    if threshold >= count:
        return len(sources) + threshold - count
    is_prefix = all(below[: sum(below)])
    ignored = section.get(override) or (
        key == "max_window_layers" and not section.get("use_sliding_window")
    )
    if is_prefix or ignored:
        return sum(below)
    raise _inexpressible(key, f"the first {threshold} layers differ from the others")


def _range(key: str, end: str, section: Mapping[str, Any], count: int) -> tuple[int, int]:
    last = section.get(end)
    return section[key], last if isinstance(last, int) and last != -1 else count - 1


def _moved_range(
    key: str, end: str, section: dict[str, Any], count: int, sources: Sequence[int]
) -> dict[str, int]:
    first, last = _range(key, end, section, count)
    inside = [layer for layer, source in enumerate(sources) if first <= source <= last]
    if not inside:
        return {key: len(sources), end: len(sources)}
    if inside != list(range(inside[0], inside[-1] + 1)):
        raise _inexpressible(key, f"layers {first} to {last} differ from the others")
    return {key: inside[0], end: inside[-1]} if end in section else {key: inside[0]}


def _moved_stages(section: dict[str, Any], count: int, sources: Sequence[int]) -> dict[str, Any]:
    """The names of stages (`stem`, `stage1` ...), and those whose outputs are taken, where a stage is a layer."""
    names = section["stage_names"]
    if len(names) != count + 1:
        return {}
    moved: dict[str, Any] = {
        "stage_names": [names[0], *(f"stage{layer + 1}" for layer in range(len(sources)))]
    }
    taken = section.get("out_indices") or [
        names.index(name) for name in section.get("out_features") or () if name in names
    ]
    chosen = []
    for stage in taken:
        stage = stage if stage >= 0 else stage + len(names)
        if stage == count:
            chosen.append(len(sources))
            continue
        if stage and stage - 1 not in sources:
            raise CompatibilityError(
                f"The configuration takes the output of layer {stage - 1} ('out_indices'), which the new order of "
                "layers leaves out: keep that layer."
            )
        chosen.append(len(sources) - sources[::-1].index(stage - 1) if stage else 0)
    if chosen != sorted(set(chosen)):
        raise _inexpressible("out_indices", "outputs of single layers are taken in their order")
    if section.get("out_features") is not None:
        moved["out_features"] = [moved["stage_names"][stage] for stage in chosen]
    if section.get("out_indices") is not None:
        moved["out_indices"] = chosen
    return moved


def _moved_tail(key: str, length: int, count: int, sources: Sequence[int]) -> int:
    inside = [source >= count - length for source in sources]
    if all(inside[len(inside) - sum(inside) :]):
        return sum(inside)
    raise _inexpressible(key, f"the last {length} layers differ from the others")


def _moved_period(key: str, section: dict[str, Any], sources: Sequence[int]) -> dict[str, Any]:
    """The keys to change so that every layer keeps its kind; none if the period still holds."""
    is_special, override = _PERIODS[key]
    if section.get(override):
        return {}
    period = section[key]
    if isinstance(period, list) or period == 0:
        return {}
    if not _is_count(period) or period < 1:
        raise _inexpressible(key, "layers differ by a pattern")
    offset = section.get(key.replace("_period", "_offset"), 0) if "_period" in key else 0
    special = [is_special(source - offset, period) for source in sources]
    if special == [is_special(layer - offset, period) for layer in range(len(sources))]:
        return {}
    if key in _WRITTEN_OUT:
        yes, no = _WRITTEN_OUT[key]
        return {override: [yes if flag else no for flag in special]}
    if key == "decoder_sparse_step" and "mlp_only_layers" in section:
        dense = set(section["mlp_only_layers"] or ())
        flags = zip(sources, special, strict=True)
        sparse = [flag and source not in dense for source, flag in flags]
        only = [layer for layer, flag in enumerate(sparse) if not flag]
        return {"decoder_sparse_step": 1, "mlp_only_layers": only}
    raise _inexpressible(key, f"layers differ with a period of {period}")


def _inexpressible(key: str, fact: str) -> CompatibilityError:
    return CompatibilityError(
        f"By the configuration's {key!r} {fact}, which the new order of layers breaks and the "
        "configuration cannot express: choose slices that keep that pattern."
    )
