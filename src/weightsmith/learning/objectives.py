"""What is made small while a merge learns: losses of one batch of items, each item counting alike.

With z [P, C] the logits of an item's P predictions, p = softmax(z), y the labels, t the logits of a teacher, h_l and
g_l the outputs of block l of the model and of the teacher:

    entropy          mean over P of -sum_c p log p             no labels needed       AdaMerging, arXiv:2310.02575
    cross_entropy    mean over P of -log p(y)                  labels                 FW-Merging, arXiv:2503.12649
    kl               mean over P of T^2 KL(softmax(t/T) || softmax(z/T))              Expert Merging, arXiv:2509.25712
    hidden           mean over blocks and their elements of (h_l - g_l)^2             Expert Merging

Where items have labels, the predictions that count are those that have one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightsmith.errors import UsageError
from weightsmith.live import IGNORED
from weightsmith.naming import nearest
from weightsmith.wording import literal

if TYPE_CHECKING:
    from torch import Tensor

WITH_TEACHERS = ("kl", "hidden")
NAMES = ("entropy", "cross_entropy", *WITH_TEACHERS)


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What a model gives for a batch: logits [B, P, C], and the output [B, ...] of each of its blocks, if asked for."""

    logits: Tensor
    blocks: Sequence[Tensor] = ()


@dataclass(frozen=True, slots=True)
class Objective:
    """A weighted sum of losses, by their names; `temperature` is that of `kl`."""

    weights: Mapping[str, float]
    temperature: float = 1.0

    @property
    def text(self) -> str:
        """As it is written."""
        return ",".join(n if w == 1 else f"{n}:{w:g}" for n, w in self.weights.items())

    @property
    def has_teachers(self) -> bool:
        """Whether outputs of other models are compared with."""
        return any(name in WITH_TEACHERS for name in self.weights)

    @property
    def reads_blocks(self) -> bool:
        """Whether outputs of blocks are compared."""
        return "hidden" in self.weights

    @property
    def needs_labels(self) -> bool:
        """Whether an item without labels has no loss."""
        return "cross_entropy" in self.weights

    def of(self, found: Outputs, labels: Tensor | None, taught: Outputs | None) -> Tensor:
        """The losses [B] of the items of a batch, labels [B, P]."""
        counted = None if labels is None else labels != IGNORED
        total: Tensor | None = None
        for name, weight in self.weights.items():
            own = weight * self._one(name, found, labels, counted, taught)
            total = own if total is None else total + own
        assert total is not None
        return total

    def _one(
        self,
        name: str,
        found: Outputs,
        labels: Tensor | None,
        counted: Tensor | None,
        taught: Outputs | None,
    ) -> Tensor:
        if name == "hidden":
            assert taught is not None
            return _block_distance(found.blocks, taught.blocks)
        if name == "kl":
            assert taught is not None
            return _mean(_divergence(found.logits, taught.logits, self.temperature), counted)
        logs = found.logits.float().log_softmax(-1)
        if name == "entropy":
            return _mean(-(logs.exp() * logs).sum(-1), counted)
        assert labels is not None
        chosen = logs.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        return _mean(-chosen, counted)


def parse_objective(text: str, temperature: float = 1.0) -> Objective:
    """An objective as it is written: names with commas between, each with `:WEIGHT` or 1.

    Raises UsageError for another name, a weight that is no positive number, and a temperature that is none.
    """
    weights: dict[str, float] = {}
    for entry in text.split(","):
        name, _, weight = entry.strip().partition(":")
        if name not in NAMES:
            near = nearest(name, NAMES)
            hint = f"did you mean {near!r}?" if near else f"there are {', '.join(NAMES)}."
            raise UsageError(f"There is no objective {name!r}; {hint}")
        if name in weights:
            raise UsageError(
                f"The objective {name!r} is named twice; name it once, with its weight."
            )
        weights[name] = _positive(weight or "1", f"The weight of {name}")
    return Objective(weights, _positive(str(temperature), "The temperature"))


def _positive(text: str, what: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = float("nan")
    if not 0 < found < float("inf"):
        raise UsageError(f"{what} is a positive number, not {literal(text)}.")
    return found


def _mean(losses: Tensor, counted: Tensor | None) -> Tensor:
    """The mean over predictions [B, P] that count, [B]."""
    if counted is None:
        return losses.mean(1)
    kept = losses.masked_fill(~counted, 0.0).sum(1)
    found: Tensor = kept / counted.sum(1)
    return found


def _divergence(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    student = (logits.float() / temperature).log_softmax(-1)
    teacher = (taught.float() / temperature).log_softmax(-1)
    found: Tensor = temperature**2 * (teacher.exp() * (teacher - student)).sum(-1)
    return found


def _block_distance(found: Sequence[Tensor], taught: Sequence[Tensor]) -> Tensor:
    import torch

    pairs = zip(found, taught, strict=True)
    each = [(a.float() - b.float()).square().flatten(1).mean(1) for a, b in pairs]
    return torch.stack(each).mean(0)
