"""Gradients with respect to free masks, element by element, from dL/dtheta of each merged tensor.

A merged tensor is gone through tile by tile, and what comes out goes into a file without a name at once: memory depends
neither on the size of the masks nor on the number of experts. Where a merge is linear in a mask this is
dL/dm = dL/dtheta * (what the merge takes the task vector times) * tau; torch pulls back whatever it is. Matrix methods
are done with their tensors in memory whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from weightsmith.engine.running.free_gradients import Dependents, in_memory, pulled_back
from weightsmith.engine.running.scheduler import Rounds
from weightsmith.engine.running.scratch import Scratch, ScratchTensor
from weightsmith.engine.running.tensor_job import TensorJob
from weightsmith.graph import Scalar, Value
from weightsmith.recipes import MaskNumbers
from weightsmith.tensors import Broadcast, DType, LazyTensor, StandIn, read_range

# Elements that are set to 0 together.
_AT_ONCE = 1 << 18


class MaskGradients:
    """dL/dm of the tensors of masks, which merged tensors add to; nothing but 0 where none did."""

    def __init__(self, masks: Sequence[MaskNumbers]) -> None:
        self._scratch = Scratch()
        self._found: dict[str, dict[str, _Sum]] = {}
        self._of: dict[int, _Sum] = {}
        for mask in masks:
            own = self._found[mask.name] = {}
            for name, tensor in mask.tensors.items():
                own[name] = _Sum(self._scratch, name, mask.shapes[name], tensor)
                self._of[id(tensor)] = own[name]

    def tensors(self) -> dict[str, dict[str, LazyTensor]]:
        """float32 gradients in the shapes of the masks, by mask and tensor."""
        return {
            mask: {name: one.finished() for name, one in own.items()}
            for mask, own in self._found.items()
        }

    def rounds(self, job: TensorJob, loss: LazyTensor) -> Rounds:
        """Add the part of one merged tensor, whose statistics of the model are known.

        Raises GradientError where these depend on masks.
        """
        indices = [i for i, one in enumerate(job.sources) if id(one) in self._of]
        output = job.outputs[0]
        assert isinstance(output, Value)
        if not indices:
            return
        below = Dependents(output, indices)
        below.refuse(job.name)
        sums = [self._of[id(job.sources[i])] for i in indices]
        if below.is_streamed:
            yield from job.resolve()
            self._stream(job, below, loss, indices, sums)
            return
        from weightsmith.graph import pull_sources

        sources, known, held = yield from in_memory(job, below, loss)
        gradients = pull_sources(output, sources, held, known, indices)
        for one, gradient in zip(sums, gradients, strict=True):
            one.add(0, gradient.double().reshape(-1).numpy())

    def _stream(
        self,
        job: TensorJob,
        below: Dependents,
        loss: LazyTensor,
        indices: Sequence[int],
        sums: Sequence[_Sum],
    ) -> None:
        pull, found, tiles = pulled_back(job, below, loss)
        weights: dict[Scalar, float] = {}
        for node in below.reductions:
            if found.get(node):
                assert isinstance(node, Scalar)
                weights[node] = found[node]
        parts = [part for reduction in weights for part in reduction.inputs]
        tiles_read = tiles.of([below.output, *parts])
        for start, gradients in pull.of_sources(below.output, weights, tiles_read, indices):
            for one, gradient in zip(sums, gradients, strict=True):
                one.add(start, gradient)


class _Sum:
    """The gradient of one tensor of a mask: in a file where it has one number for each weight, else in memory."""

    def __init__(self, scratch: Scratch, name: str, shape: tuple[int, ...], mask: StandIn) -> None:
        self.tensor: ScratchTensor = scratch.room(name, DType.FLOAT32, shape)
        # Elements before this have a gradient already.
        self._end = 0
        self._small: NDArray[np.float64] | None = None
        self._places = Broadcast(name, mask.shape, self.tensor).places
        if shape != mask.shape:
            self._small = np.zeros(self.tensor.numel)

    def add(self, start: int, gradient: NDArray[np.float64]) -> None:
        """Add the gradient of the weights from `start` on."""
        if self._small is not None:
            places = self._places(start, start + gradient.size)
            self._small += np.bincount(places, gradient, self._small.size)
            return
        end = start + gradient.size
        # What was written before is of another merged tensor that reads the same mask.
        if start < self._end:
            gradient = gradient + read_range(self.tensor, start, end)
        self.tensor.write(start, gradient.astype(np.float32).data)
        self._end = max(self._end, end)

    def finished(self) -> LazyTensor:
        """The gradient, rounded once."""
        if self._small is not None:
            self.tensor.write(0, self._small.astype(np.float32).data)
            return self.tensor
        for start in range(self._end, self.tensor.numel, _AT_ONCE):
            count = min(_AT_ONCE, self.tensor.numel - start)
            self.tensor.write(start, np.zeros(count, np.float32).data)
        return self.tensor
