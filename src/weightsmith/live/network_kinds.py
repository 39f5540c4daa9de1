"""What kinds of networks there are, and what can be asked of each."""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING, Any

from weightsmith.live.running_model import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

_CLASSIFIER = re.compile(r"For\w*Classification")
_MASKED = re.compile(r"ForMaskedLM$|ForPreTraining$")


class NetworkKind(enum.Enum):
    """What comes out of a network."""

    CAUSAL = "a causal language model"
    SEQUENCE = "a sequence-to-sequence model"
    MASKED = "a masked language model"
    CLASSIFIER = "a classifier"
    ENCODER = "an encoder"

    @property
    def has_logits(self) -> bool:
        """Whether it predicts something."""
        return self is not NetworkKind.ENCODER

    @property
    def has_cache(self) -> bool:
        """Whether it keeps what it computed for earlier tokens unless told otherwise."""
        return self in (NetworkKind.CAUSAL, NetworkKind.SEQUENCE)


def kind_of(module: Any, *, plain: bool) -> NetworkKind:
    """The kind of a network, by its class."""
    name = type(module).__name__
    if plain or _CLASSIFIER.search(name):
        return NetworkKind.CLASSIFIER
    if module.can_generate():
        pairs = bool(getattr(module.config, "is_encoder_decoder", False))
        return NetworkKind.SEQUENCE if pairs else NetworkKind.CAUSAL
    return NetworkKind.MASKED if _MASKED.search(name) else NetworkKind.ENCODER


def cross_entropy(kind: NetworkKind, logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy of labels [...] under logits [..., C], in float32; labels of -100 do not count."""
    from torch.nn import functional

    if kind is NetworkKind.CAUSAL:
        logits, labels = logits[:, :-1], labels[:, 1:]
    flat = logits.float().reshape(-1, logits.shape[-1])
    return functional.cross_entropy(flat, labels.reshape(-1), ignore_index=IGNORED)
