"""A merge with free numbers that runs: what a change of their values touches is put into a network, built once."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from weightsmith.engine import FreeMerge, MaskTensors, Plan
from weightsmith.live.live_model import LiveModel, load_model
from weightsmith.live.merged_tensors import MergedTensor, NetworkStore
from weightsmith.live.model_source import ModelSource, check_config
from weightsmith.live.residency import requiring_gradients
from weightsmith.live.tensor_reading import as_lazy
from weightsmith.progress import Progress
from weightsmith.recipes import Values, complete
from weightsmith.tensors import LazyTensor, MemoryTensor, checkpoint_digest

if TYPE_CHECKING:
    from torch import Tensor

    Asks = Callable[[LiveModel], Tensor] | Iterable[Callable[[LiveModel], Tensor]]


class LiveMerge:
    """The network of a merge with free numbers or masks, whose weights are those of a merge with `values`.

    `model` is a `LiveModel`: it has the bytes that a merge into a folder, loaded, would have. What a change of values
    touches is computed into the memory of the network, with no file and no second copy; only tensors that the network
    stacks, splits or ties by their bytes wait in memory until all of their kind are there, and all that changes does
    where the recipe has assertions, which are checked before anything is overwritten.

    With `filled=False` nothing is computed before it is read, for runs block by block. Raises what `FreeMerge` and
    `load_model` raise, and UsageError for a result without a config.json.
    """

    def __init__(
        self,
        plan: Plan,
        values: Values | Literal["start"] = "start",
        *,
        device: str = "cpu",
        dtype: str = "float32",
        filled: bool = True,
        progress: Progress | None = None,
    ) -> None:
        self._merge, self._plan = FreeMerge(plan), plan
        assert plan.free is not None
        assert plan.companions is not None
        self.numbers, self.masks = self._merge.numbers, self._merge.masks
        self.values: Mapping[str, float] = complete(self.numbers, values)
        name = f"recipe {plan.free.recipe.digest()[:19]}"
        check_config(name, plan.companions.config)
        self._made: MemoryTensor | None = None
        self._tensors = {
            placement.name: MergedTensor(placement, self._make)
            for shard in plan.layout.shards
            for placement in shard.placements
        }
        config, files = plan.companions.config or {}, plan.companions.files
        source = ModelSource(name, self._tensors, config, files)
        self._digests: dict[str, str] = {}
        self.model: LiveModel = load_model(source, device=device, dtype=dtype, filled=False)
        if filled:
            self.set(self.values, progress)

    @property
    def differentiable(self) -> tuple[str, ...]:
        """The numbers that have gradients at the present values; see `FreeMerge.differentiable`."""
        return self._merge.differentiable(self.values)

    @property
    def digest(self) -> str:
        """The digest of the weights, which is that of the checkpoint that a merge would write."""
        return checkpoint_digest({name: self._digests[name] for name in self._tensors})

    def set(
        self,
        values: Values | Literal["start"],
        progress: Progress | None = None,
        *,
        masks: Mapping[str, MaskTensors | str | Path] | None = None,
    ) -> tuple[str, ...]:
        """Give the network the weights for values of all free numbers; returns the tensors that were computed.

        `masks` are numbers of free masks by their names, as `FreeMerge.set_mask` takes them; masks and tensors that
        are left out stay as they are. Raises RecipeError for values that do not fit, what `set_mask` raises, and what a
        merge raises. Where values, masks or assertions are refused, the network and the masks stay as they were; where
        a merge breaks off, the network does not run until the next call.
        """
        with self._merge.given_masks.restored_on_error():
            for name, tensors in (masks or {}).items():
                self._merge.set_mask(name, tensors)
            return self._set(values, progress)

    def set_mask(
        self, name: str, tensors: MaskTensors | str | Path, progress: Progress | None = None
    ) -> tuple[str, ...]:
        """As `set`, with the present values and numbers of one free mask."""
        return self.set(self.values, progress, masks={name: tensors})

    def _set(self, values: Values | Literal["start"], progress: Progress | None) -> tuple[str, ...]:
        given = complete(self.numbers, values)
        # Assertions are about what is stored, before it is rounded to what the network computes in.
        rooms = {} if self._plan.resolved.assertions else self.model.rooms()
        store = NetworkStore(self._plan.layout, rooms)
        try:
            digests = self._merge.write(given, store, progress)
            self.values, self._made = given, None
            self._place(store)
        except BaseException:
            # Other tensors than before may be there: all are computed next time.
            self._merge.forget()
            if store.overwritten:
                self.model.abandon()
            raise
        self._digests |= digests
        return tuple(digests)

    def _place(self, store: NetworkStore) -> None:
        """Have everything that was computed in the network: what was written into it, and what the store holds."""
        held = store.tensors
        beside = {f for name in held for f in self.model.names.made_with(name)} - held.keys()
        held |= self._merge.tensors_for(self.values, beside) if beside else {}
        try:
            for name, tensor in held.items():
                self._tensors[name].held = tensor
            self.model.settle(store.overwritten, held)
        finally:
            for name in held:
                self._tensors[name].held = None

    def _make(self, name: str) -> MemoryTensor:
        if self._made is None or self._made.name != name:
            (self._made,) = self._merge.tensors_for(self.values, [name]).values()
        return self._made

    def gradient(
        self, ask: Asks, of: Collection[str] | None = None
    ) -> tuple[float, dict[str, float]]:
        """A loss [] that `ask` takes of the model, and its gradient with respect to free numbers (all, or `of` some).

        Of several asks it is the sum of their losses, taken back one after the other: memory has the graph of one, and
        the models are read once. The network's own gradients are as large as its weights, and gone afterwards. See
        `FreeMerge.gradient` for what is raised.
        """
        loss, found = self._weight_gradients(ask)
        return loss, self._merge.gradient(self.values, found, of)

    def mask_gradient(
        self, ask: Asks, of: Collection[str] | None = None
    ) -> tuple[float, dict[str, dict[str, LazyTensor]]]:
        """A loss [], and its gradient with respect to free masks (all, or `of` some); see `gradient`.

        float32 in the shapes of the masks, by mask and tensor; see `FreeMerge.mask_gradient` for what is raised.
        """
        loss, found = self._weight_gradients(ask)
        return loss, self._merge.mask_gradient(self.values, found, of)

    def _weight_gradients(self, ask: Asks) -> tuple[float, dict[str, LazyTensor]]:
        """The sum of losses, and its gradient with respect to stored tensors that have a part in it."""
        import torch

        model = self.model
        weights = model.parameters(model.residency.placed)
        losses = []
        with torch.enable_grad(), requiring_gradients(weights.values()):
            try:
                for one in [ask] if callable(ask) else ask:
                    loss = one(model)
                    torch.autograd.backward(loss)
                    losses.append(float(loss.detach()))
                found = {n: weight.grad for n, weight in weights.items() if weight.grad is not None}
            finally:
                for weight in weights.values():
                    weight.grad = None
        used = {file for name in found for file in model.names.files_of(name)}
        # What has no part in the loss may be stored with something that has one.
        found |= {
            name: torch.zeros_like(weight)
            for name, weight in weights.items()
            if name not in found and not used.isdisjoint(model.names.files_of(name))
        }
        stored = {name: g.contiguous() for name, g in model.names.to_files(found).items()}
        return math.fsum(losses), as_lazy(stored)
