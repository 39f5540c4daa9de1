"""One run over the items of some data, whole or block by block, in which everything that is wanted is summed up.

Whole and block by block give the same sums to the bit: every tensor's sum is taken batch by batch in one order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from weightsmith.errors import UsageError
from weightsmith.live import (
    ActivationStore,
    Block,
    BlockGradients,
    BlockRun,
    GradientCatcher,
    LiveModel,
    PartGradients,
    Passage,
    WeightGradient,
    count_parts,
    gradients_by_files,
    gradients_of,
)
from weightsmith.progress import Progress
from weightsmith.statistics.cross_sums import CrossSums
from weightsmith.statistics.data_steps import Asking, Step, grouped_steps
from weightsmith.statistics.factor_gradients import AdapterGradients
from weightsmith.statistics.forward_sums import ChannelSums, ForwardSums, GramSums
from weightsmith.statistics.gradient_sums import (
    GradientSums,
    GroupedSums,
    ScalarGradient,
    SquareSums,
)
from weightsmith.statistics.kept_parts import KeptParts
from weightsmith.statistics.resumption import BACKWARD, DONE, FORWARD, Resumption
from weightsmith.statistics.routing_sums import RoutingSums
from weightsmith.statistics.samples import Samples, counted_labels
from weightsmith.statistics.sum_space import SumSpace
from weightsmith.statistics.wanted import Wanted

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

_SUMS: Mapping[str, Callable[[LiveModel], ForwardSums]] = {
    "gram": GramSums,
    "channels": ChannelSums,
    "routing": RoutingSums,
}
# The place of what was measured on the whole network at once.
_WHOLE = 0
Sums = Mapping[str, ForwardSums]


def forward_sums(
    kind: str,
    model: LiveModel,
    other: LiveModel | None,
    store: ActivationStore | None = None,
) -> ForwardSums:
    """What sums up a kind of a model; `other` is that of cross, and `store` keeps the rows that wait for it."""
    if kind == "cross":
        assert other is not None
        return CrossSums(model, other, store or ActivationStore(0))
    return _SUMS[kind](model)


@dataclass(frozen=True, slots=True, eq=False)
class DataRun:
    """A run of a model over samples; what is finished is put into `parts`, and what is there is not measured again.

    `other` runs beside it on the same batches where cross is wanted; gradients are of what `adapter` stores if there is
    one. `progress` hears of every batch, once for each
    block that it goes through.
    """

    model: LiveModel
    samples: Samples
    wanted: Wanted
    parts: KeptParts
    batch_size: int
    memory_bytes: int
    progress: Progress
    other: LiveModel | None = None
    adapter: AdapterGradients | None = None

    def whole(self) -> None:
        """Run the whole network on one batch after the other."""
        with self._store() as store:
            self._whole(self._forward_sums(store))

    def _whole(self, sums: Sums) -> None:
        gradients = BackwardSums(self.wanted, self.wanted.backward, self.samples, SumSpace())
        weights = self._theta(self._parameters())
        catcher = GradientCatcher()
        groups = list(self._groups())
        stage = self.progress.begin("collecting", len(groups), "batch")
        trained = self._parameters() if self.wanted.backward else {}
        with self._watching(sums), catcher.training(trained):
            for steps in groups:
                for own in sums.values():
                    own.begin()
                for step, found in self._run_whole(steps, catcher):
                    gradients.add(step, found, weights)
                self._run_other(steps[0], sums)
                stage.advance(1)
        stage.end()
        for kind, own in sums.items():
            self.parts.put(kind, _WHOLE, own.take(""))
        gradients.keep(self.parts, _WHOLE, weights)

    def by_blocks(self) -> None:
        """Run one block after the other on all batches, and back through them if gradients are wanted.

        It begins behind the blocks that an earlier run of the same request finished.
        """
        steps = [step for group in self._groups() for step in group]
        name = "-".join(self.wanted.kinds)
        resumption = Resumption(self.parts, name)
        if resumption.stage == DONE:
            return
        with ExitStack() as stack:
            runs = [
                stack.enter_context(self._run_of(self.model, steps, self.parts.folder_of(name, 0)))
            ]
            if self.other is not None:
                seen = [Step(step.batch, None, True) for step in steps if step.is_seen]
                runs.append(
                    stack.enter_context(
                        self._run_of(self.other, seen, self.parts.folder_of(name, 1))
                    )
                )
            resumption.restore(runs)
            if resumption.stage == FORWARD:
                with self._store() as store:
                    self._through(runs, steps, resumption, store)
            if self.wanted.backward:
                self._back_through(runs, steps, resumption)
        resumption.end()

    def _run_of(self, model: LiveModel, steps: Sequence[Step], folder: Path) -> BlockRun:
        return BlockRun(
            model,
            Asking(model, self.samples),
            steps,
            memory_bytes=self._memory_of_one,
            folder=folder,
            with_gradients=model is self.model and bool(self.wanted.backward),
            lasting=True,
        )

    @property
    def _memory_of_one(self) -> int:
        """What each of those has that keep activations: one network, or two and what waits for the second."""
        return self.memory_bytes if self.other is None else self.memory_bytes // 3

    def _groups(self) -> Iterator[list[Step]]:
        return grouped_steps(self.samples, self.wanted, self.batch_size, self.model.device)

    def _forward_sums(self, store: ActivationStore) -> dict[str, ForwardSums]:
        return {
            kind: forward_sums(kind, self.model, self.other, store) for kind in self.wanted.forward
        }

    def _store(self) -> AbstractContextManager[ActivationStore]:
        """Where what the network gives waits for the other one."""
        return closing(ActivationStore(self._memory_of_one, self.parts.activations))

    # Whole.

    def _run_whole(
        self, steps: Sequence[Step], catcher: GradientCatcher
    ) -> Iterator[tuple[Step, dict[str, WeightGradient]]]:
        """Run one batch; the steps that have a scalar, with its gradients by stored names."""
        import torch

        asking = Asking(self.model, self.samples)
        if steps[0].scalar is None:
            with torch.no_grad():
                asking(steps[0])
            return
        with catcher:
            logs = asking.log_probabilities(steps[0])
        parameters = self._parameters()
        for i, step in enumerate(steps):
            found = torch.autograd.grad(
                asking.scalar(step, logs),
                list(parameters.values()),
                retain_graph=i + 1 < len(steps),
                allow_unused=True,
            )
            terms = {n: catcher.take(n, g) for n, g in zip(parameters, found, strict=True)}
            yield step, self._measured(gradients_of(terms, parameters))

    def _run_other(self, step: Step, sums: Sums) -> None:
        """Run the other network on a batch, if it is to be compared."""
        import torch

        cross = sums.get("cross")
        if self.other is None or not isinstance(cross, CrossSums):
            return
        tensors = list(self.other.source.tensors)
        with torch.no_grad(), self.other.watching(tensors, cross.see_other):
            Asking(self.other, self.samples)(Step(step.batch, None, True))

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
        """The weights that are in memory (only those that an adapter changes), by the names of their owners."""
        names: Collection[str] = self.model.residency.placed
        if self.adapter is not None:
            names = self.model.names.touched_by(self.adapter.changed)
        return dict(sorted(self.model.parameters(names).items()))

    def _theta(self, owners: Collection[str]) -> dict[str, Tensor]:
        """Weights by the names of the files, if anything is made of them."""
        if "gradients" not in self.wanted.kinds:
            return {}
        if self.adapter is not None:
            return dict(self.adapter.weights)
        own = {n: t.detach() for n, t in self._parameters().items() if n in owners}
        return self.model.names.to_files(own)

    def _measured(self, gradients: Mapping[str, WeightGradient]) -> dict[str, WeightGradient]:
        """Gradients of what is measured: weights by the names of the files, or an adapter's tensors."""
        found = gradients_by_files(self.model.names, gradients)
        return found if self.adapter is None else self.adapter.of(found)

    # Block by block.

    def _through(
        self,
        runs: Sequence[BlockRun],
        steps: Sequence[Step],
        resumption: Resumption,
        store: ActivationStore,
    ) -> None:
        seen = {part.path for part in runs[0].calls}
        stage = self._begin("forward", steps, resumption.finished)
        for place, (block, other) in enumerate(self._blocks(runs), resumption.finished):
            resumption.keep(runs, FORWARD, place)
            wanted = [kind for kind in self.wanted.forward if not self.parts.has(kind, place)]
            if wanted and block.path in seen:
                raise UsageError(
                    f"{self.model.name!r} runs {block.path} more than once, so it cannot be measured block by block; "
                    "give more --memory, so that it is run whole."
                )
            seen.add(block.path)
            sums = {k: own for k, own in self._forward_sums(store).items() if k in wanted}
            self._through_block(block, other, steps, sums, stage)
            for kind, own in sums.items():
                self.parts.put(kind, place, own.take(block.path))
        stage.end()
        if self.wanted.backward:
            resumption.keep(runs, BACKWARD, 0)

    def _blocks(self, runs: Sequence[BlockRun]) -> Iterator[tuple[Block, Block | None]]:
        """The blocks of the network, each with the other network's in its place."""
        if len(runs) == 1:
            yield from ((block, None) for block in runs[0].blocks())
            return
        for block, other in zip_longest(*(run.blocks() for run in runs)):
            if block is None or other is None or block.path != other.path:
                raise UsageError(
                    f"{self.model.name!r} and {runs[1].model.name!r} have different blocks, so they cannot be compared "
                    "block by block; give more --memory, so that they are run whole."
                )
            yield block, other

    def _begin(self, name: str, steps: Sequence[Step], finished: int) -> Progress:
        left = max(count_parts(self.model.module) - finished, 0)
        return self.progress.begin(name, len(steps) * left, "batch")

    def _through_block(
        self,
        block: Block,
        other: Block | None,
        steps: Sequence[Step],
        sums: Sums,
        stage: Progress,
    ) -> None:
        forwarding = _Forwarding(sums)
        with ExitStack() as stack:
            stack.enter_context(block.watching(forwarding))
            cross = sums.get("cross")
            if other is not None and isinstance(cross, CrossSums):
                stack.enter_context(other.watching(cross.see_other))
            others = iter(()) if other is None else other.batches()
            forwarding.begin(steps[0])
            for i in block.batches():
                if steps[i].is_seen:
                    next(others, None)
                stage.advance(1, block.path)
                if i + 1 < len(steps):
                    forwarding.begin(steps[i + 1])

    def _back_through(
        self, runs: Sequence[BlockRun], steps: Sequence[Step], resumption: Resumption
    ) -> None:
        first = resumption.finished
        stage = self._begin("backward", steps, first)
        for place, part in enumerate(BlockGradients(runs[0]).parts(first), first):
            resumption.keep(runs, BACKWARD, place)
            self._back(place, part, steps, stage)
        stage.end()

    def _back(
        self, place: int, part: PartGradients, steps: Sequence[Step], stage: Progress
    ) -> None:
        left = [kind for kind in self.wanted.backward if not self.parts.has(kind, place)]
        space = SumSpace(self.parts.activations)
        sums = BackwardSums(self.wanted, left, self.samples, space)
        weights: dict[str, Tensor] = {}
        for i, gradients in part.in_terms():
            if part.path:
                stage.advance(1, part.path)
            if left:
                weights = weights or self._theta(gradients)
                sums.add(steps[i], self._measured(gradients), weights)
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

    def __init__(
        self, wanted: Wanted, kinds: Collection[str], samples: Samples, space: SumSpace
    ) -> None:
        count = len(samples.items)
        if wanted.per == "token":
            count = sum(counted_labels(sample.labels) for sample in samples.items)
        self._squares = SquareSums(count, space) if "fisher" in kinds else None
        means = GradientSums(len(samples.items), wanted.singles, space)
        self._means = means if "gradients" in kinds else None
        self._grouped = GroupedSums(self._squares, self._means)

    def add(
        self, step: Step, gradients: Mapping[str, WeightGradient], weights: Mapping[str, Tensor]
    ) -> None:
        """Add the gradients of a step's scalar, by stored names."""
        assert step.scalar is not None
        # The loss of an item is the mean over its predictions.
        factor = -1.0 / step.predictions if step.scalar.is_summed else None
        for name, value in gradients.items():
            own = ScalarGradient(value, step.batch.items[0], step.scalar.is_squared, factor)
            self._grouped.add(name, own, weights)

    def keep(self, parts: KeptParts, place: int, weights: Mapping[str, Tensor]) -> None:
        """Put what was summed up where it is kept."""
        self._grouped.finish(weights)
        if self._squares is not None:
            parts.put("fisher", place, self._squares.take())
        if self._means is not None:
            parts.put("gradients", place, self._means.take(weights))
