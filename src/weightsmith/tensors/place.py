"""Where a tensor stands in its network, and what it is for there: one record, from the checkpoint to the method."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from weightsmith.tensors.fast_records import record


class Kind(enum.Enum):
    """What a tensor is for; the part before the dot is its family."""

    EMBEDDING = "embedding"
    POSITION_EMBEDDING = "position_embedding"
    TYPE_EMBEDDING = "type_embedding"
    HEAD = "head"
    NORM = "norm"
    ATTENTION_Q = "attention.q"
    ATTENTION_K = "attention.k"
    ATTENTION_V = "attention.v"
    ATTENTION_KV = "attention.kv"
    ATTENTION_QKV = "attention.qkv"
    ATTENTION_O = "attention.o"
    MLP_GATE = "mlp.gate"
    MLP_UP = "mlp.up"
    MLP_DOWN = "mlp.down"
    MLP_FUSED = "mlp.fused"
    ROUTER = "router"
    EXPERT_GATE = "expert.gate"
    EXPERT_UP = "expert.up"
    EXPERT_DOWN = "expert.down"
    EXPERT_FUSED = "expert.fused"
    CONVOLUTION = "convolution"
    LINEAR = "linear"
    TEXT_PROJECTION = "linear.text_projection"
    BUFFER = "buffer"
    OTHER = "other"

    # As in `DType`.
    __hash__ = object.__hash__

    def matches(self, selector: str) -> bool:
        """Whether a selector names this kind or its family: `attention` matches `attention.q`."""
        return self.value == selector or self.value.startswith(selector + ".")


@record
@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's name, purpose and position in its network.

    `layer` is the number of its block in the stack with the name prefix `stack`, of `layers` blocks, and `depth` the
    position of that block in [0, 1]; None and 0 outside the stacks. `input_first`: a matrix stored as (inputs,
    outputs), as GPT-2's Conv1D does. `expert` is the number of the expert where experts are stored apart (None where
    they are fused in one tensor); `part` the piece of its module: `weight`, `bias`, `running_mean`, ...
    """

    name: str
    kind: Kind = Kind.OTHER
    layer: int | None = None
    layers: int = 0
    stack: str | None = None
    depth: float = 0.0
    input_first: bool = False
    expert: int | None = None
    part: str = "weight"

    @property
    def role(self) -> str:
        """The kind as recipes write it: `attention.q`."""
        return self.kind.value

    @property
    def rest(self) -> str:
        """The name after the layer's number; the whole name outside the stacks."""
        if self.layer is None:
            return self.name
        start = len(self.stack) + 1 if self.stack else 0
        return self.name[start:].partition(".")[2]


def depth_of(position: int, count: int) -> float:
    """The depth of one of `count` blocks in [0, 1]; a single block is at 1, as in mergekit."""
    return position / (count - 1) if count > 1 else 1.0
