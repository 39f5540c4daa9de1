"""Small models of four shapes for oracles: a base, four experts, and what is known of each tensor.

The numbers are drawn so that every difference expert - base is exact in the work precision, and so that no expert has
two elements of equal magnitude besides its zeros: what an oracle leaves to chance, nobody decides. ("coarse" numbers
are the exception, for those oracles that know which of equals count.) A tenth of each expert's elements, and all of
one norm of the second expert, are the base's own.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

Tensors = dict[str, np.ndarray]
EXPERTS = 4
UNCHANGED = 0.1


@dataclass(frozen=True)
class Place:
    """What a rule may know of a tensor: its shape, its purpose, and where it lies.

    `layer` counts within the stack of `layers` blocks whose names begin with `stack`; outside of stacks it is None,
    with 0 layers and the stack "". `input_first`: a matrix stored as (inputs, outputs).
    """

    name: str
    shape: tuple[int, ...]
    role: str
    layer: int | None = None
    layers: int = 0
    input_first: bool = False
    stack: str = ""


@dataclass(frozen=True)
class Family:
    """A base and its experts in float64, with the place of each tensor.

    `labels` are the experts' names, which random masks depend on. `statistics` has, for each expert, what was
    measured on it: an array per tensor, or a list of arrays where a kind has one per sample.
    """

    name: str
    base: Tensors
    experts: list[Tensors]
    places: dict[str, Place]
    seed: int = 0
    labels: tuple[str, ...] = ()
    statistics: list[dict[str, np.ndarray | list[np.ndarray]]] = field(default_factory=list)

    def only(self, names: Collection[str]) -> Family:
        """The family of some tensors alone, as one merge of a recipe sees it."""
        kept = [n for n in self.places if n in names]
        return replace(
            self,
            base={n: self.base[n] for n in kept},
            experts=[{n: e[n] for n in kept} for e in self.experts],
            places={n: self.places[n] for n in kept},
            statistics=[{n: s[n] for n in kept if n in s} for s in self.statistics],
        )

    def first(self, count: int) -> Family:
        """The family of the first experts alone."""
        return self.of(self.experts[:count], self.labels[:count], self.statistics[:count])

    def of(
        self,
        experts: Sequence[Tensors],
        labels: Sequence[str] = (),
        statistics: Sequence[dict[str, np.ndarray | list[np.ndarray]]] = (),
    ) -> Family:
        """The same base and places with other experts."""
        return replace(
            self, experts=list(experts), labels=tuple(labels), statistics=list(statistics)
        )

    def deltas(self, name: str) -> list[np.ndarray]:
        """The task vectors of a tensor."""
        return [e[name] - self.base[name] for e in self.experts]

    def label(self, expert: int) -> str:
        """The name that an expert's random numbers go by."""
        return self.labels[expert] if expert < len(self.labels) else f"expert-{expert}"


# Shapes ---------------------------------------------------------------------------------------------------------------


def _llama(tied: bool) -> list[Place]:
    width, inner, vocabulary, layers = 8, 12, 20, 4
    stack = "model.layers"
    found = [Place("model.embed_tokens.weight", (vocabulary, width), "embedding")]
    for layer in range(layers):

        def inside(name: str, shape: tuple[int, ...], role: str, layer: int = layer) -> Place:
            return Place(f"{stack}.{layer}.{name}.weight", shape, role, layer, layers, stack=stack)

        found += [
            inside("input_layernorm", (width,), "norm"),
            inside("self_attn.q_proj", (width, width), "attention.q"),
            inside("self_attn.k_proj", (width // 2, width), "attention.k"),
            inside("self_attn.v_proj", (width // 2, width), "attention.v"),
            inside("self_attn.o_proj", (width, width), "attention.o"),
            inside("post_attention_layernorm", (width,), "norm"),
            inside("mlp.gate_proj", (inner, width), "mlp.gate"),
            inside("mlp.up_proj", (inner, width), "mlp.up"),
            inside("mlp.down_proj", (width, inner), "mlp.down"),
        ]
    found.append(Place("model.norm.weight", (width,), "norm"))
    return found if tied else [*found, Place("lm_head.weight", (vocabulary, width), "head")]


def _tower(stack: str, width: int, layers: int) -> list[Place]:
    found = []
    parts = [
        *((f"self_attn.{x}_proj", (width, width), f"attention.{r}") for x, r in _CLIP_ATTENTION),
        ("layer_norm1", (width,), "norm"),
        ("mlp.fc1", (2 * width, width), "mlp.up"),
        ("mlp.fc2", (width, 2 * width), "mlp.down"),
        ("layer_norm2", (width,), "norm"),
    ]
    for layer in range(layers):
        for name, shape, role in parts:
            for part, of in (("weight", shape), ("bias", shape[:1])):
                full = f"{stack}.{layer}.{name}.{part}"
                found.append(Place(full, of, role, layer, layers, stack=stack))
    return found


_CLIP_ATTENTION = (("k", "k"), ("v", "v"), ("q", "q"), ("out", "o"))


def _clip() -> list[Place]:
    text, vision, shared = 6, 8, 5
    return [
        Place("logit_scale", (), "other"),
        Place("text_model.embeddings.token_embedding.weight", (16, text), "embedding"),
        Place("text_model.embeddings.position_embedding.weight", (7, text), "position_embedding"),
        *_tower("text_model.encoder.layers", text, 3),
        Place("text_model.final_layer_norm.weight", (text,), "norm"),
        Place("text_model.final_layer_norm.bias", (text,), "norm"),
        Place("vision_model.embeddings.class_embedding", (vision,), "other"),
        Place("vision_model.embeddings.patch_embedding.weight", (vision, 3, 2, 2), "convolution"),
        Place(
            "vision_model.embeddings.position_embedding.weight", (5, vision), "position_embedding"
        ),
        Place("vision_model.pre_layrnorm.weight", (vision,), "norm"),
        Place("vision_model.pre_layrnorm.bias", (vision,), "norm"),
        *_tower("vision_model.encoder.layers", vision, 2),
        Place("vision_model.post_layernorm.weight", (vision,), "norm"),
        Place("vision_model.post_layernorm.bias", (vision,), "norm"),
        Place("visual_projection.weight", (shared, vision), "linear"),
        Place("text_projection.weight", (shared, text), "linear.text_projection"),
    ]


def _gpt2() -> list[Place]:
    width, vocabulary, layers = 8, 20, 3
    found = [
        Place("transformer.wte.weight", (vocabulary, width), "embedding"),
        Place("transformer.wpe.weight", (10, width), "position_embedding"),
    ]
    stack = "transformer.h"
    for layer in range(layers):
        for name, shape, role in (
            ("ln_1", (width,), "norm"),
            ("attn.c_attn", (width, 3 * width), "attention.qkv"),
            ("attn.c_proj", (width, width), "attention.o"),
            ("ln_2", (width,), "norm"),
            ("mlp.c_fc", (width, 4 * width), "mlp.up"),
            ("mlp.c_proj", (4 * width, width), "mlp.down"),
        ):
            for part, of in (("weight", shape), ("bias", shape[-1:])):
                turned = len(of) == 2
                full = f"{stack}.{layer}.{name}.{part}"
                found.append(Place(full, of, role, layer, layers, turned, stack))
    return [
        *found,
        Place("transformer.ln_f.weight", (width,), "norm"),
        Place("transformer.ln_f.bias", (width,), "norm"),
    ]


def _mixture() -> list[Place]:
    width, inner, experts, vocabulary, layers = 8, 6, 3, 18, 3
    stack = "model.layers"
    found = [Place("model.embed_tokens.weight", (vocabulary, width), "embedding")]
    for layer in range(layers):
        for name, shape, role in (
            ("input_layernorm.weight", (width,), "norm"),
            ("self_attn.q_proj.weight", (width, width), "attention.q"),
            ("self_attn.k_proj.weight", (width // 2, width), "attention.k"),
            ("self_attn.v_proj.weight", (width // 2, width), "attention.v"),
            ("self_attn.o_proj.weight", (width, width), "attention.o"),
            ("post_attention_layernorm.weight", (width,), "norm"),
            ("mlp.gate.weight", (experts, width), "router"),
            ("mlp.experts.gate_up_proj", (experts, 2 * inner, width), "expert.fused"),
            ("mlp.experts.down_proj", (experts, width, inner), "expert.down"),
        ):
            found.append(Place(f"{stack}.{layer}.{name}", shape, role, layer, layers, stack=stack))
    return [
        *found,
        Place("model.norm.weight", (width,), "norm"),
        Place("lm_head.weight", (vocabulary, width), "head"),
    ]


# Numbers --------------------------------------------------------------------------------------------------------------

_Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, list[np.ndarray]]]


def _float64(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Full mantissas; the experts have a tenth of their change in common."""
    base = rng.normal(0, 0.3, size)
    common = rng.normal(0, 0.03, size)
    return base, [base + common + rng.normal(0, 0.05, size) for _ in range(EXPERTS)]


def _float32(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Multiples of 2^-20 below 8, whose differences are exact in float32."""
    base, experts = _float64(rng, size)
    grid = 2.0**20
    return np.round(base * grid) / grid, [np.round(e * grid) / grid for e in experts]


def _bfloat16(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """8 significant bits between 2^-10 and 1: differences are exact in float32 and rarely alike."""

    def draw() -> np.ndarray:
        exponent = rng.integers(-10, 0, size)
        return rng.choice([-1.0, 1.0], size) * rng.integers(128, 256, size) / 128.0 * 2.0**exponent

    return draw(), [draw() for _ in range(EXPERTS)]


def _coarse(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Multiples of 2^-7 that bfloat16 has, and of a dozen magnitudes."""
    base = rng.integers(-16, 17, size) / 2.0**5
    return base, [base + rng.integers(-12, 13, size) / 2.0**7 for _ in range(EXPERTS)]


_DRAWS: Mapping[str, _Draw] = {
    "float64": _float64,
    "float32": _float32,
    "bfloat16": _bfloat16,
    "coarse": _coarse,
}


def _drawn(
    places: Sequence[Place], dtype: str, seed: int, name: str
) -> tuple[Tensors, list[Tensors]]:
    """Tensors that were drawn as one vector, so that magnitudes are compared over the whole model."""
    sizes = [math.prod(p.shape) for p in places]
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    draw = _DRAWS[dtype]
    base, experts = draw(rng, sum(sizes))
    while dtype != "coarse" and (again := _alike(base, experts)).any():
        fresh, others = draw(rng, int(again.sum()))
        base[again] = fresh
        for expert, other in zip(experts, others, strict=True):
            expert[again] = other
    for expert in experts:
        kept = rng.random(len(base)) < UNCHANGED
        expert[kept] = base[kept]
    cuts = np.cumsum(sizes)[:-1]

    def shaped(flat: np.ndarray) -> Tensors:
        pieces = np.split(flat, cuts)
        return {p.name: x.reshape(p.shape) for p, x in zip(places, pieces, strict=True)}

    return shaped(base), [shaped(expert) for expert in experts]


def _alike(base: np.ndarray, experts: Sequence[np.ndarray]) -> np.ndarray:
    """Where an element has the magnitude of an earlier one: a task vector's, or a weight's."""
    found = np.zeros(len(base), bool)
    for vector in (expert - base for expert in experts):
        _, first = np.unique(np.abs(vector), return_index=True)
        repeated = np.ones(len(base), bool)
        repeated[first] = False
        found |= repeated | (vector == 0)
    return found


def _family(name: str, places: Sequence[Place], dtype: str, seed: int) -> Family:
    base, experts = _drawn(places, dtype, seed, name)
    unchanged = next(p.name for p in places if p.role == "norm")
    experts[1][unchanged] = base[unchanged].copy()
    return Family(name, base, experts, {p.name: p for p in places}, seed)


# Builders -------------------------------------------------------------------------------------------------------------


def llama(dtype: str = "float64", seed: int = 0, tied: bool = False) -> Family:
    """A decoder of four layers: matrices, norms, and a head of its own or none (tied to the embedding)."""
    return _family("llama-tied" if tied else "llama", _llama(tied), dtype, seed)


def clip(dtype: str = "float64", seed: int = 0) -> Family:
    """Two towers of different depth, a 4-d patch convolution and a scalar."""
    return _family("clip", _clip(), dtype, seed)


def gpt2(dtype: str = "float64", seed: int = 0) -> Family:
    """A decoder whose matrices are stored inputs first, with fused q, k, v and biases."""
    return _family("gpt2", _gpt2(), dtype, seed)


def mixture(dtype: str = "float64", seed: int = 0) -> Family:
    """A mixture of experts, fused into 3-d tensors."""
    return _family("mixture", _mixture(), dtype, seed)


BUILDERS: Mapping[str, Callable[..., Family]] = {
    "llama": llama,
    "clip": clip,
    "gpt2": gpt2,
    "mixture": mixture,
}
