"""What is run, in order: batches of items, with the scalar whose gradient is taken, and how a model is asked for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightsmith.errors import CompatibilityError, NonFiniteError, UsageError
from weightsmith.live import LiveModel
from weightsmith.statistics.log_probabilities import LogProbabilities
from weightsmith.statistics.losses import ItemScalar, scalars_of
from weightsmith.statistics.samples import SampleBatch, Samples, batched, counted_labels
from weightsmith.statistics.wanted import Wanted

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A batch that is run; a gradient is taken of `scalar`; `is_seen` tells whether it passes for the first time."""

    batch: SampleBatch
    scalar: ItemScalar | None
    is_seen: bool

    @property
    def predictions(self) -> int:
        """How many predictions of the batch count."""
        return counted_labels(self.batch.labels)


def grouped_steps(
    samples: Samples, wanted: Wanted, batch_size: int, device: str
) -> Iterator[list[Step]]:
    """The steps of one forward after another; items go alone where gradients of single ones are wanted."""
    if not wanted.backward:
        for batch in batched(samples.items, batch_size, device):
            yield [Step(batch, None, True)]
        return
    for number, sample in enumerate(samples.items):
        (alone,) = batched([sample], 1, device)
        batch = SampleBatch((number,), alone.inputs, alone.labels)
        scalars = scalars_of(wanted, sample, number)
        yield [Step(batch, scalar, i == 0) for i, scalar in enumerate(scalars)]


@dataclass(frozen=True, slots=True, eq=False)
class Asking:
    """A model that is asked for what the steps over some samples need."""

    model: LiveModel
    samples: Samples

    def __call__(self, step: Step) -> Tensor:
        """The scalar of a step, [], or where it has none any number that the network gives, [1]."""
        if step.scalar is None:
            return self._forward(step).reshape(-1)[:1]
        return self.scalar(step, self.log_probabilities(step))

    def log_probabilities(self, step: Step) -> LogProbabilities:
        """Of the classes at every prediction of the one item of a step, [P, C]."""
        assert self.samples.predictions is not None
        logits = self._checked(self.samples.predictions(self.model, step.batch.inputs), step)
        # Not by its number, whose gradient would be a copy.
        return LogProbabilities(logits.squeeze(0))

    def scalar(self, step: Step, logs: LogProbabilities) -> Tensor:
        """The scalar of a step; raises NonFiniteError where it is NaN or infinite."""
        assert step.scalar is not None
        assert step.batch.labels is not None
        value = step.scalar.of(logs, step.batch.labels[0])
        if not bool(value.isfinite()):
            raise NonFiniteError(
                f"The loss of {self.model.name!r} on item {step.batch.items[0] + 1} of {self.samples.name} is NaN or "
                "infinite; its weights are broken, or the item is no data of its kind. What was finished is kept."
            )
        return value

    def _forward(self, step: Step) -> Tensor:
        try:
            if self.samples.predictions is None:
                return self.model.features(step.batch.inputs)
            return self.samples.predictions(self.model, step.batch.inputs)
        except CompatibilityError as error:
            raise CompatibilityError(
                f"{self.model.name!r} cannot be run on item {step.batch.items[0] + 1} of {self.samples.name}: {error}"
            ) from error

    def _checked(self, logits: Tensor, step: Step) -> Tensor:
        labels = step.batch.labels
        assert labels is not None
        if logits.shape[:2] != labels.shape or int(labels.max()) >= logits.shape[-1]:
            raise UsageError(
                f"{self.samples.name} has labels {list(labels.shape)} up to {int(labels.max())} for logits "
                f"{list(logits.shape)} of {self.model.name!r}; give data made for it."
            )
        return logits
