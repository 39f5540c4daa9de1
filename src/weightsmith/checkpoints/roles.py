"""What each tensor is for, inferred from names, shapes and config, with no table of architectures.

The checkpoint is first cut into stacks of repeated blocks; then each module (a tensor's name
without its part, block number and expert number) is classified once from the words of its name,
the shapes of its parts, and the modules beside it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from weightsmith.checkpoints import role_words as words
from weightsmith.checkpoints.nested_config import sections, vocabulary_size_of
from weightsmith.checkpoints.spelling.spelling_facts import INPUT_FIRST_EXPERTS
from weightsmith.checkpoints.stacks import Stack, depths, place
from weightsmith.naming import is_number, parse_name, split_name
from weightsmith.tensors import DType, Kind, Place, depth_of


class Described(Protocol):
    """What a role is inferred from, besides the name."""

    @property
    def dtype(self) -> DType:
        """Type of the elements."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        ...


_PARTS = re.compile(
    r"^(?:weight|bias|running_mean|running_var|num_batches_tracked|gamma|beta|weight_[gv]"
    r"|weight_scale(?:_inv)?|input_scale|scales?|e_score_correction_bias)$"
)
_JOINED_PART = re.compile(r"^(.*_proj)_(weight|bias)$")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_TRAILING_DIGITS = re.compile(r"\d+$")


# A module's stack prefix (None outside stacks) and the fields of its name there.
_Key = tuple[str | None, tuple[str, ...]]


@dataclass(slots=True)
class _Module:
    """One distinct module: its name's fields, and the ranks and types of its parts."""

    fields: tuple[str, ...]
    in_block: bool
    # A parameter that sits in its parent without a module of its own: `cls_token`, `A_log`.
    direct: bool
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    all_float: bool = True


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a configuration declares: rows of the vocabulary (None where unknown), and inner widths of MLPs.

    `turned_experts` tells that stacks of experts are stored as experts x inputs x outputs.
    """

    vocabulary: int | None = None
    intermediate: frozenset[int] = frozenset()
    turned_experts: bool = False

    @classmethod
    def of(cls, config: dict[str, Any] | None) -> Sizes:
        """Those of a configuration."""
        turned = stores_experts_input_first(config)
        return cls(vocabulary_size_of(config), _intermediate_sizes(config), turned)


def infer_roles(
    tensors: Mapping[str, Described], sizes: Sizes, stacks: Mapping[str, Stack]
) -> dict[str, Place]:
    """The place of every tensor, in the order of `tensors`.

    A tensor that nothing is known about is `linear` where it is a matrix, else `other`; tensors
    of integers and booleans are `buffer` unless they belong to a normalisation layer.
    """
    modules: dict[_Key, _Module] = {}
    keys: dict[str, tuple[_Key, str, int | None, int | None]] = {}
    # The blocks of a stack have the same names inside, each of which is taken apart once.
    known: dict[tuple[str | None, str], _Inside] = {}
    for name, tensor in tensors.items():
        block, layer = place(name, stacks)
        head = "" if block is None else f"{block}.{layer}." if block else f"{layer}."
        alike = (block, name.removeprefix(head)) if name.startswith(head) else (None, name)
        inside = known.get(alike)
        if inside is None:
            inside = known[alike] = _inside(name, block)
        # Elements of a bare sequence have nothing but their number to tell them apart.
        key = (block, inside.fields or (str(layer),))
        module = modules.get(key)
        if module is None:
            module = modules[key] = _Module(inside.fields, block is not None, inside.direct)
        module.shapes.setdefault(inside.part, tensor.shape)
        module.all_float &= tensor.dtype.is_float
        keys[name] = (key, inside.part, layer, inside.expert)
    siblings = _siblings(modules)
    classifier = _Classifier(sizes)
    kinds = {
        key: classifier.classify(module, siblings[key[0], key[1][:-1]])
        for key, module in modules.items()
    }
    turned = _input_first_blocks(modules, kinds)
    positions = {
        block: (layers, depth_of(position, layers))
        for block, (position, layers) in depths(stacks.values()).items()
    }
    places = {}
    for name, (key, part, layer, expert) in keys.items():
        kind, tensor = kinds[key], tensors[name]
        layers, depth = positions[key[0] or "", layer] if layer is not None else (0, 0.0)
        is_turned = key[0] in turned and kind in _PROJECTIONS and len(tensor.shape) == 2
        if sizes.turned_experts and len(tensor.shape) == 3:
            is_turned = kind in _EXPERT_KINDS.values()
        kind = _of_part(kind, part, tensor)
        places[name] = Place(name, kind, layer, layers, key[0], depth, is_turned, expert, part)
    return places


_PROJECTIONS = frozenset(
    {
        Kind.ATTENTION_Q,
        Kind.ATTENTION_KV,
        Kind.ATTENTION_QKV,
        Kind.ATTENTION_O,
        Kind.MLP_UP,
        Kind.MLP_DOWN,
    }
)


def _input_first_blocks(
    modules: Mapping[_Key, _Module], kinds: Mapping[_Key, Kind]
) -> frozenset[str | None]:
    """The stacks whose matrices are stored as (inputs, outputs): a fused q, k, v of shape (d, 3 d) gives them away."""
    fused = {
        key[0]: module.shapes.get("weight", ())
        for key, module in modules.items()
        if kinds[key] is Kind.ATTENTION_QKV
    }
    return frozenset(
        block for block, shape in fused.items() if len(shape) == 2 and shape[1] == 3 * shape[0]
    )


@dataclass(frozen=True, slots=True)
class _Inside:
    """A tensor's name in its block: the fields of its module, its part there, its expert; `direct` as in `_Module`."""

    fields: tuple[str, ...]
    part: str
    expert: int | None
    direct: bool


def _inside(name: str, block: str | None) -> _Inside:
    pieces = parse_name(name, block)
    stem = split_name(pieces.stem)
    fields, part = _split_part(stem)
    return _Inside(fields, part, pieces.expert, fields == stem)


def _split_part(fields: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    last = fields[-1]
    if _PARTS.match(last):
        return fields[:-1], last
    joined = _JOINED_PART.match(last)
    return ((*fields[:-1], joined[1]), joined[2]) if joined else (fields, "weight")


def _siblings(modules: Mapping[_Key, _Module]) -> dict[_Key, set[str]]:
    """For each parent of modules, the names of everything directly in it."""
    found: dict[_Key, set[str]] = defaultdict(set)
    for block, fields in modules:
        for end in range(len(fields)):
            found[block, fields[:end]].add(fields[end].lower())
    return found


def _of_part(kind: Kind, part: str, tensor: Described) -> Kind:
    """The kind of one part: a causal mask saved as an attention module's 4-d `bias` is a buffer."""
    if kind is Kind.NORM:
        return kind
    if not tensor.dtype.is_float or (part == "bias" and len(tensor.shape) > 3):
        return Kind.BUFFER
    return kind


def _words_of(field_name: str) -> frozenset[str]:
    """The lower-case words of a field: `SelfAttention` and `self_attn_1` split, digits dropped."""
    pieces = _CAMEL.sub("_", field_name).replace("-", "_").lower().split("_")
    joined = field_name.lower().replace("_", "")
    return frozenset(
        {_TRAILING_DIGITS.sub("", piece) for piece in pieces} | {_TRAILING_DIGITS.sub("", joined)}
    )


@dataclass(frozen=True, slots=True)
class _Classifier:
    sizes: Sizes

    def classify(self, module: _Module, siblings: set[str]) -> Kind:
        """The kind of one module; `siblings` are the names beside it in its parent."""
        fields = tuple(f for f in module.fields if not is_number(f) and f != "*") or ("",)
        leaf = fields[-1].lower()
        shape = module.shapes.get("weight", ())
        every = [_words_of(f) for f in fields]
        lower = {f.lower() for f in fields}
        if lower & words.BUFFER:
            return Kind.BUFFER
        if _is_norm(every[-1], module):
            return Kind.NORM
        if leaf in words.POSITION_LEAF or (every[-1] & words.POSITION and every[-1] & words.EMBED):
            return Kind.POSITION_EMBEDDING
        if not module.all_float and "weight" not in module.shapes:
            return Kind.BUFFER
        if self._is_router(leaf, every, siblings):
            return Kind.ROUTER
        fused_experts = len(shape) == 3 and any("moe" in field_words for field_words in every)
        expert = fused_experts or any(_is_routed_experts(f) for f in lower)
        if not expert and len(shape) > 2:
            return Kind.OTHER if module.direct else Kind.CONVOLUTION
        inside = self._inside_block(fields, every, leaf, siblings, shape, module.in_block)
        if inside is not None:
            return _EXPERT_KINDS.get(inside, inside) if expert else inside
        outside = None if module.in_block else self._outside_block(fields, every, shape)
        if outside is not None:
            return outside
        if len(shape) == 2 and lower & words.TEXT_PROJECTION:
            return Kind.TEXT_PROJECTION
        return Kind.LINEAR if len(shape) == 2 and not module.direct else Kind.OTHER

    def _is_router(self, leaf: str, every: list[frozenset[str]], siblings: set[str]) -> bool:
        if any("router" in field_words for field_words in every) or leaf in words.ROUTER_LEAF:
            return True
        return leaf == "gate" and any("expert" in sibling for sibling in siblings)

    def _inside_block(
        self,
        fields: tuple[str, ...],
        every: list[frozenset[str]],
        leaf: str,
        siblings: set[str],
        shape: tuple[int, ...],
        in_block: bool,
    ) -> Kind | None:
        # Image models keep whole transformer blocks, `ff` among them, in modules called `attentions`; and JetMoE
        # experts in its attention.
        inner = words.ATTENTION | (words.FEED_FORWARD - words.EXPERTS)
        innermost = next((w for w in reversed(every) if w & inner), frozenset())
        in_attention = bool(innermost & words.ATTENTION)
        if in_attention or leaf in words.PLAIN_PROJECTIONS:
            return _attention_kind(leaf)
        if not in_block and not any(w & words.FEED_FORWARD for w in every[:-1]):
            return None
        parent = fields[-2].lower() if len(fields) > 1 else ""
        if leaf == "dense" and parent in ("intermediate", "output"):
            return Kind.MLP_UP if parent == "intermediate" else Kind.MLP_DOWN
        if leaf in words.FUSED or (leaf == "wi" and self._is_twice_wide(shape)):
            return Kind.MLP_FUSED
        if leaf in words.GATE:
            # Without a third matrix there is no gate: w1 is then the only way up.
            gated = leaf != "w1" or siblings & {"w3", "v1"}
            return Kind.MLP_GATE if gated else Kind.MLP_UP
        if leaf in words.UP:
            return Kind.MLP_UP
        return Kind.MLP_DOWN if leaf in words.DOWN else None

    def _is_twice_wide(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 2 and any(shape[0] == 2 * size for size in self.sizes.intermediate)

    def _outside_block(
        self, fields: tuple[str, ...], every: list[frozenset[str]], shape: tuple[int, ...]
    ) -> Kind | None:
        leaf = fields[-1].lower()
        if leaf in words.HEAD_LEAF or any(field_words & words.HEAD for field_words in every):
            return Kind.HEAD
        if len(fields) == 1 and leaf in words.HEAD_TOP:
            return Kind.HEAD
        if len(shape) != 2:
            return None
        if leaf in words.EMBED_LEAF or every[-1] & words.EMBED:
            if every[-1] & words.TYPE_EMBED:
                return Kind.TYPE_EMBEDDING
            return None if every[-1] & words.NOT_VOCABULARY else Kind.EMBEDDING
        vocabulary = self.sizes.vocabulary
        if vocabulary is not None and shape[0] == vocabulary != shape[1]:
            return Kind.HEAD
        return None


def _is_norm(leaf_words: frozenset[str], module: _Module) -> bool:
    named = any(w in words.NORM or w.endswith("norm") for w in leaf_words)
    return named or "running_mean" in module.shapes


def _is_routed_experts(field_name: str) -> bool:
    return "expert" in field_name and "shared" not in field_name


def _attention_kind(leaf: str) -> Kind | None:
    for kind, names in (
        (Kind.ATTENTION_Q, words.QUERY),
        (Kind.ATTENTION_K, words.KEY),
        (Kind.ATTENTION_V, words.VALUE),
        (Kind.ATTENTION_QKV, words.QKV),
        (Kind.ATTENTION_KV, words.KEY_VALUE),
        (Kind.ATTENTION_O, words.OUT),
    ):
        if leaf in names:
            return kind
    return None


_EXPERT_KINDS = {
    Kind.MLP_GATE: Kind.EXPERT_GATE,
    Kind.MLP_UP: Kind.EXPERT_UP,
    Kind.MLP_DOWN: Kind.EXPERT_DOWN,
    Kind.MLP_FUSED: Kind.EXPERT_FUSED,
}


def stores_experts_input_first(config: dict[str, Any] | None) -> bool:
    """Whether a family stores its stacks of experts as experts x inputs x outputs."""
    return any(str(s.get("model_type")) in INPUT_FIRST_EXPERTS for s in sections(config or {}))


def _intermediate_sizes(config: dict[str, Any] | None) -> frozenset[int]:
    if config is None:
        return frozenset()
    sizes = (section.get("intermediate_size") for section in sections(config))
    return frozenset(size for size in sizes if isinstance(size, int))
