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

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields

import torch

from weightsmith.errors import UsageError
from weightsmith.live.blocks.activations import ActivationStore
from weightsmith.live.blocks.block_run import BlockRun
from weightsmith.live.blocks.block_structure import Part
from weightsmith.live.blocks.kept_outputs import KeptOutputs
from weightsmith.live.gradient_catching import gradients_of
from weightsmith.live.weight_gradients import Looked, Product, Term, WeightGradient, Whole

Gradients = Mapping[str, torch.Tensor]
WeightGradients = Mapping[str, WeightGradient]


@dataclass(frozen=True, slots=True, eq=False)
class PartGradients:
    """The gradients of the weights of one part (its `path`, or "" for weights outside of all parts).

    Those of a tensor that several parts share come with the part that is called first, all contributions summed.
    `NameMap.to_files` has them by the names of the files.
    """

    path: str
    _steps: Iterator[tuple[int, WeightGradients]]

    def batches(self) -> Iterator[tuple[int, Gradients]]:
        """The number of each batch, with its gradients, once."""
        for batch, gradients in self._steps:
            yield batch, {name: gradient.dense() for name, gradient in gradients.items()}

    def in_terms(self) -> Iterator[tuple[int, WeightGradients]]:
        """The same as what they are made of, which takes less memory and time; `gradients_by_files` names them."""
        return self._steps


class _LeftTerms:
    """What later parts left at tensors that earlier ones have too, in the store of the run.

    What there is shows in the keys of the store, which is all that a run that goes on has.
    """

    def __init__(self, store: ActivationStore) -> None:
        self._store = store

    def add(self, batch: int, name: str, shape: tuple[int, ...], terms: Sequence[Term]) -> None:
        """Keep terms behind those that are there, or all as one array if that is smaller."""
        kept = WeightGradient(shape, [*self.take(batch, name), *terms]).compact().terms
        for i, term in enumerate(kept):
            for j, tensor in enumerate(term.tensors):
                self._store.put(_left_key(batch, name, i, type(term), j), tensor)

    def take(self, batch: int, name: str) -> list[Term]:
        """The terms of a batch at a tensor, which are then forgotten."""
        found: list[Term] = []
        while (kind := self._kind(batch, name, len(found))) is not None:
            found.append(kind(*self._popped(batch, name, len(found), kind)))
        return found

    def _kind(self, batch: int, name: str, term: int) -> type[Term] | None:
        kinds: tuple[type[Term], ...] = (Whole, Product, Looked)
        return next((k for k in kinds if _left_key(batch, name, term, k, 0) in self._store), None)

    def _popped(self, batch: int, name: str, term: int, kind: type[Term]) -> Iterator[torch.Tensor]:
        for j in range(len(fields(kind))):
            tensor = self._store.pop(_left_key(batch, name, term, kind, j))
            assert tensor is not None
            yield tensor


def _left_key(batch: int, name: str, term: int, kind: type[Term], part: int) -> Hashable:
    return "weights", batch, name, term, kind.__name__, part


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
        self._left = _LeftTerms(run.store)
        self._again = self._computed_again()

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

    def _through(self, part: Part, call: int) -> Iterator[tuple[int, WeightGradients]]:
        shared = {n: p for n, p in self._own(part).items() if self._is_again(n, call)}
        with self._run.holding(self._calls[-1]) if shared else nullcontext():
            for batch in self._batches:
                later = self._of_head(batch, shared) if shared else {}
                self._step_back(batch, call)
                yield batch, self._collected(batch, call, self._own(part), later)

    def _is_again(self, name: str, call: int) -> bool:
        return name in self._again and self._first_calls[name] == call

    def _of_head(
        self, batch: int, shared: Mapping[str, torch.nn.Parameter]
    ) -> dict[str, list[Term]]:
        """What the last part leaves at tensors that an earlier one has too.

        The way back begins there, so it is computed again from what was kept: a head's gradient of a long text is
        larger than its weights, and would wait in a file for each batch.
        """
        with torch.enable_grad():
            result = self._run.replay.step(batch, len(self._calls) - 1).result
        assert result is not None
        others = torch.autograd.grad(result, list(shared.values()), allow_unused=True)
        catcher = self._run.catcher
        found = {n: catcher.take(n, other) for n, other in zip(shared, others, strict=True)}
        catcher.forget()
        return found

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
        self,
        batch: int,
        call: int,
        own: Mapping[str, torch.nn.Parameter],
        later: Mapping[str, list[Term]],
    ) -> WeightGradients:
        """What a batch left at a part's weights, with what later parts left at the same tensors."""
        found: dict[str, list[Term]] = {}
        parameters = {**own, **self._loose_by_name()}
        for name, parameter in parameters.items():
            terms = self._run.catcher.take(name, parameter.grad)
            parameter.grad = None
            if self._first_calls[name] == call:
                found[name] = [*later.get(name, ()), *self._left.take(batch, name), *terms]
            elif terms and not (name in self._again and call + 1 == len(self._calls)):
                self._left.add(batch, name, tuple(parameter.shape), terms)
        return gradients_of(found, parameters)

    def _rest(self) -> Iterator[tuple[int, WeightGradients]]:
        loose = self._loose_by_name()
        for batch in self._batches:
            yield batch, gradients_of({n: self._left.take(batch, n) for n in loose}, loose)

    def _first_uses(self) -> dict[str, int]:
        """The first call that uses each tensor, -1 for those outside of parts."""
        first: dict[str, int] = dict.fromkeys(self._loose_by_name(), -1)
        for call in reversed(range(len(self._calls))):
            for name in self._run.model.residency.names_of(self._calls[call].module):
                owner = self._names.owners[name]
                first[owner] = min(first.get(owner, call), call)
        return first

    def _computed_again(self) -> frozenset[str]:
        """Tensors of the last part that another one has, which is called first."""
        last = self._calls[-1].module
        owners = {self._names.owners[name] for name in self._run.model.residency.names_of(last)}
        first = {name: self._first_calls[name] for name in owners}
        parts = {name: self._calls[call].module for name, call in first.items() if call >= 0}
        return frozenset(name for name, module in parts.items() if module is not last)

    def _own(self, part: Part) -> dict[str, torch.nn.Parameter]:
        model = self._run.model
        return model.parameters(model.residency.names_of(part.module))

    def _loose_by_name(self) -> dict[str, torch.nn.Parameter]:
        return self._run.model.parameters(self._run.loose())
