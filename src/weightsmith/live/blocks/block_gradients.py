"""Gradients block by block: what a block computed is computed again when its turn comes, from what it was given.

    with BlockRun(model, ask, batches, with_gradients=True) as run:     # `ask` gives a loss, []
        run.run()
        for part in BlockGradients(run).parts():
            for batch, gradients in part.batches():
                ...                                 # of one batch, by names in memory

Gradients of a batch are those of the whole network. Where code between blocks computes with what several blocks read (a
residual sum outside of them), they differ by rounding; else they are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

import torch

from weightsmith.errors import UsageError
from weightsmith.live.blocks.block_run import BlockRun
from weightsmith.live.blocks.block_structure import Part
from weightsmith.live.blocks.kept_outputs import KeptOutputs

Gradients = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class PartGradients:
    """The gradients of the weights of one part (its `path`, or "" for weights outside of all parts).

    Those of a tensor that several parts share come with the part that is called first, all contributions summed.
    `NameMap.to_files` has them by the names of the files.
    """

    path: str
    _steps: Iterator[tuple[int, Gradients]]

    def batches(self) -> Iterator[tuple[int, Gradients]]:
        """The number of each batch, with its gradients, once."""
        return self._steps


class _Leaves:
    """What a replay computed with, as leaves of its graph that know what they are."""

    def __init__(self, kept: KeptOutputs) -> None:
        self._kept = kept
        self.found: dict[Hashable, tuple[torch.Tensor, torch.Tensor]] = {}

    def hand(self, key: Hashable, tensor: torch.Tensor) -> torch.Tensor:
        leaf = self._kept.as_leaf(key, tensor)
        if not leaf.requires_grad:
            return leaf
        # A node of its own: gradients that are known already are the first of its sum, as in the whole network.
        node = leaf.view_as(leaf)
        self.found[key] = leaf, node
        return node


class BlockGradients:
    """The way back through a run that kept everything; raises UsageError for one that did not come to its end."""

    def __init__(self, run: BlockRun) -> None:
        self._run, self._names = run, run.model.names
        self._calls = list(run.calls)
        self._batches = range(len(run.batches))
        if not all(("result", batch) in run.store for batch in self._batches):
            raise UsageError("Gradients need the whole run: run all blocks first.")
        self._first_calls = self._first_uses()

    def parts(self, first: int = 0) -> Iterator[PartGradients]:
        """Every part from the last to the first, and at the end the weights outside of them.

        `first` is how many of them a run that was restored has behind it.
        """
        for call in reversed(range(len(self._calls) - first)):
            part = self._calls[call]
            with self._run.holding(part):
                steps = self._through(part, call)
                yield PartGradients(part.path, steps)
                for _ in steps:
                    pass
        yield PartGradients("", self._rest())

    def _through(self, part: Part, call: int) -> Iterator[tuple[int, Gradients]]:
        for batch in self._batches:
            self._step_back(batch, call)
            yield batch, self._collected(batch, call, self._own(part))

    def _step_back(self, batch: int, call: int) -> None:
        leaves = _Leaves(self._run.kept)
        with torch.enable_grad():
            stepped = self._run.replay.step(batch, call, leaves.hand)
        roots: list[torch.Tensor] = []
        seeds: list[torch.Tensor | None] = []
        if stepped.result is not None:
            roots, seeds = [stepped.result], [None]
        else:
            for key, tensor in self._run.kept.tensors(batch, call, stepped.output):
                if (seed := self._run.store.pop(("gradient", key))) is not None:
                    roots.append(tensor)
                    seeds.append(seed)
        if roots:
            self._go_back(leaves, roots, seeds)

    def _go_back(
        self, leaves: _Leaves, roots: list[torch.Tensor], seeds: list[torch.Tensor | None]
    ) -> None:
        store = self._run.store
        for key, (_, node) in leaves.found.items():
            if (known := store.pop(("gradient", key))) is not None:
                roots.append(node)
                seeds.append(known)
        torch.autograd.backward(roots, seeds)
        for key, (leaf, _) in leaves.found.items():
            if leaf.grad is not None:
                store.put(("gradient", key), leaf.grad)

    def _collected(
        self, batch: int, call: int, own: Mapping[str, torch.nn.Parameter]
    ) -> dict[str, torch.Tensor]:
        """What a batch left at a part's weights, with what later parts left at the same tensors."""
        found: dict[str, torch.Tensor] = {}
        for name, parameter in {**own, **self._loose_by_name()}.items():
            gradient = self._with_earlier(batch, name, parameter)
            if gradient is None:
                continue
            if self._first_calls[name] == call:
                found[name] = gradient
            else:
                self._run.store.put(("weights", batch, name), gradient)
        return found

    def _with_earlier(
        self, batch: int, name: str, parameter: torch.nn.Parameter
    ) -> torch.Tensor | None:
        gradient, parameter.grad = parameter.grad, None
        earlier = self._run.store.pop(("weights", batch, name))
        if earlier is None or gradient is None:
            return gradient if earlier is None else earlier
        return earlier.add_(gradient)

    def _rest(self) -> Iterator[tuple[int, Gradients]]:
        for batch in self._batches:
            found = {}
            for name in self._loose_by_name():
                if (gradient := self._run.store.pop(("weights", batch, name))) is not None:
                    found[name] = gradient
            yield batch, found

    def _first_uses(self) -> dict[str, int]:
        """The first call that uses each tensor, -1 for those outside of parts."""
        first: dict[str, int] = dict.fromkeys(self._loose_by_name(), -1)
        for call in reversed(range(len(self._calls))):
            for name in self._run.model.residency.names_of(self._calls[call].module):
                owner = self._names.owners[name]
                first[owner] = min(first.get(owner, call), call)
        return first

    def _own(self, part: Part) -> dict[str, torch.nn.Parameter]:
        model = self._run.model
        return model.parameters(model.residency.names_of(part.module))

    def _loose_by_name(self) -> dict[str, torch.nn.Parameter]:
        return self._run.model.parameters(self._run.loose())
