"""One run over the items of some data, whole or block by block, in which everything that is wanted is summed up.

Whole and block by block give the same sums to the bit: every tensor's sum is taken batch by batch in one order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightsmith.errors import UsageError
from weightsmith.live import (
    Block,
    BlockGradients,
    BlockRun,
    LiveModel,
    PartGradients,
    Passage,
    count_parts,
    requiring_gradients,
)
from weightsmith.progress import Progress
from weightsmith.statistics.data_steps import Asking, Step, grouped_steps
from weightsmith.statistics.forward_sums import ChannelSums, ForwardSums, GramSums
from weightsmith.statistics.gradient_sums import GradientSums, SquareSums
from weightsmith.statistics.kept_parts import KeptParts
from weightsmith.statistics.routing_sums import RoutingSums
from weightsmith.statistics.samples import Samples, counted_labels
from weightsmith.statistics.wanted import Wanted

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

FORWARD_SUMS: Mapping[str, Callable[[LiveModel], ForwardSums]] = {
    "gram": GramSums,
    "channels": ChannelSums,
    "routing": RoutingSums,
}
# The place of what was measured on the whole network at once.
_WHOLE = 0
Sums = Mapping[str, ForwardSums]


@dataclass(frozen=True, slots=True, eq=False)
class DataRun:
    """A run of a model over samples; what is finished is put into `parts`, and what is there is not measured again.

    `progress` hears of every batch, once for each block that it goes through.
    """

    model: LiveModel
    samples: Samples
    wanted: Wanted
    parts: KeptParts
    batch_size: int
    memory_bytes: int
    progress: Progress

    def whole(self) -> None:
        """Run the whole network on one batch after the other."""
        sums = self._forward_sums()
        gradients = BackwardSums(self.wanted, self.wanted.backward, self.samples)
        weights = self._theta(self._parameters())
        groups = list(self._groups())
        stage = self.progress.begin("collecting", len(groups), "batch")
        trained = self._parameters().values() if self.wanted.backward else ()
        with self._watching(sums), requiring_gradients(trained):
            for steps in groups:
                for own in sums.values():
                    own.begin()
                for step, found in self._run_whole(steps):
                    gradients.add(step, found, weights)
                stage.advance(1)
        stage.end()
        for kind, own in sums.items():
            self.parts.put(kind, _WHOLE, own.take(""))
        gradients.keep(self.parts, _WHOLE, weights)

    def by_blocks(self) -> None:
        """Run one block after the other on all batches, and back through them if gradients are wanted."""
        steps = [step for group in self._groups() for step in group]
        with BlockRun(
            self.model,
            Asking(self.model, self.samples),
            steps,
            memory_bytes=self.memory_bytes,
            folder=self.parts.activations,
            with_gradients=bool(self.wanted.backward),
        ) as run:
            self._through(run, steps)
            if self.wanted.backward:
                self._back_through(run, steps)

    def _groups(self) -> Iterator[list[Step]]:
        return grouped_steps(self.samples, self.wanted, self.batch_size, self.model.device)

    def _forward_sums(self) -> dict[str, ForwardSums]:
        return {kind: FORWARD_SUMS[kind](self.model) for kind in self.wanted.forward}

    # Whole.

    def _run_whole(self, steps: Sequence[Step]) -> Iterator[tuple[Step, dict[str, Tensor]]]:
        """Run one batch; the steps that have a scalar, with its gradients by stored names."""
        import torch

        asking = Asking(self.model, self.samples)
        if steps[0].scalar is None:
            with torch.no_grad():
                asking(steps[0])
            return
        logs = asking.log_probabilities(steps[0])
        parameters = self._parameters()
        for i, step in enumerate(steps):
            found = torch.autograd.grad(
                asking.scalar(step, logs),
                list(parameters.values()),
                retain_graph=i + 1 < len(steps),
                allow_unused=True,
            )
            given = zip(parameters, found, strict=True)
            yield step, self._stored({n: g for n, g in given if g is not None})

    @contextmanager
    def _watching(self, sums: Sums) -> Iterator[None]:
        with ExitStack() as stack:
            if sums:
                forwarding = _Forwarding(sums)
                stack.enter_context(
                    self.model.watching(list(self.model.source.tensors), forwarding)
                )
            yield

    def _parameters(self) -> dict[str, Parameter]:
        """The weights that are in memory, by the names of their owners."""
        return dict(sorted(self.model.parameters(self.model.residency.placed).items()))

    def _theta(self, owners: Collection[str]) -> dict[str, Tensor]:
        """Weights by the names of the files, if anything is made of them."""
        if "gradients" not in self.wanted.kinds:
            return {}
        return self._stored({n: t for n, t in self._parameters().items() if n in owners})

    def _stored(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights, or gradients of them, by the names of the files."""
        return self.model.names.to_files({n: t.detach() for n, t in tensors.items()})

    # Block by block.

    def _through(self, run: BlockRun, steps: Sequence[Step]) -> None:
        seen: set[str] = set()
        stage = self._begin("forward", steps)
        for place, block in enumerate(run.blocks()):
            wanted = [kind for kind in self.wanted.forward if not self.parts.has(kind, place)]
            if wanted and block.path in seen:
                raise UsageError(
                    f"{self.model.name!r} runs {block.path} more than once, so it cannot be measured block by block; "
                    "give more --memory, so that it is run whole."
                )
            seen.add(block.path)
            sums = {kind: own for kind, own in self._forward_sums().items() if kind in wanted}
            self._through_block(block, steps, sums, stage)
            for kind, own in sums.items():
                self.parts.put(kind, place, own.take(block.path))
        stage.end()

    def _begin(self, name: str, steps: Sequence[Step]) -> Progress:
        return self.progress.begin(name, len(steps) * count_parts(self.model.module), "batch")

    def _through_block(
        self, block: Block, steps: Sequence[Step], sums: Sums, stage: Progress
    ) -> None:
        forwarding = _Forwarding(sums)
        with block.watching(forwarding):
            forwarding.begin(steps[0])
            for i in block.batches():
                stage.advance(1, block.path)
                if i + 1 < len(steps):
                    forwarding.begin(steps[i + 1])

    def _back_through(self, run: BlockRun, steps: Sequence[Step]) -> None:
        stage = self._begin("backward", steps)
        for place, part in enumerate(BlockGradients(run).parts()):
            self._back(place, part, steps, stage)
        stage.end()

    def _back(
        self, place: int, part: PartGradients, steps: Sequence[Step], stage: Progress
    ) -> None:
        left = [kind for kind in self.wanted.backward if not self.parts.has(kind, place)]
        sums = BackwardSums(self.wanted, left, self.samples)
        weights: dict[str, Tensor] = {}
        for i, gradients in part.batches():
            if part.path:
                stage.advance(1, part.path)
            if left:
                weights = weights or self._theta(gradients)
                sums.add(steps[i], self._stored(gradients), weights)
            # Those of a large embedding would lie beside the next ones.
            del gradients
        sums.keep(self.parts, place, weights)


class _Forwarding:
    """Tells sums of what passes, while it is to be seen."""

    def __init__(self, sums: Sums) -> None:
        self._sums, self._is_seen = sums, True

    def begin(self, step: Step) -> None:
        """A step begins."""
        self._is_seen = step.is_seen
        for own in self._sums.values():
            own.begin()

    def __call__(self, passage: Passage) -> None:
        if self._is_seen:
            for own in self._sums.values():
                own.see(passage)


class BackwardSums:
    """The sums over gradients of some of the kinds that are wanted."""

    def __init__(self, wanted: Wanted, kinds: Collection[str], samples: Samples) -> None:
        count = len(samples.items)
        if wanted.per == "token":
            count = sum(counted_labels(sample.labels) for sample in samples.items)
        self._squares = SquareSums(count) if "fisher" in kinds else None
        means = GradientSums(len(samples.items), wanted.singles)
        self._means = means if "gradients" in kinds else None

    def add(
        self, step: Step, gradients: Mapping[str, Tensor], weights: Mapping[str, Tensor]
    ) -> None:
        """Add the gradients of a step's scalar, by stored names."""
        assert step.scalar is not None
        if self._squares is not None and step.scalar.is_squared:
            self._squares.add(gradients)
        if self._means is not None and step.scalar.is_summed:
            # The loss of an item is the mean over its predictions.
            self._means.add(gradients, -1.0 / step.predictions, weights, step.batch.items[0])

    def keep(self, parts: KeptParts, place: int, weights: Mapping[str, Tensor]) -> None:
        """Put what was summed up where it is kept."""
        if self._squares is not None:
            parts.put("fisher", place, self._squares.take())
        if self._means is not None:
            parts.put("gradients", place, self._means.take(weights))
