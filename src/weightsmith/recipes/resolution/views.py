"""Where tensors come from: checkpoints and the results of recipes, seen in the same way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from weightsmith.checkpoints import Checkpoint
from weightsmith.recipes.resolution.formula import Leaf, OutputTensor


@dataclass(slots=True)
class View:
    """Tensors by name.

    `checkpoint` gives configuration and tokenizer, and `config_label` is its label: for a recipe's result, those of
    its config source.
    """

    label: str
    items: dict[str, OutputTensor]
    checkpoint: Checkpoint
    config_label: str
    ties: tuple[frozenset[str], ...] = ()
    is_recipe: bool = False
    _layers: dict[str, dict[int, dict[str, OutputTensor]]] | None = field(
        default=None, init=False, repr=False
    )
    _ends: dict[str, int] | None = field(default=None, init=False, repr=False)

    @property
    def stacks(self) -> dict[str, dict[int, dict[str, OutputTensor]]]:
        """Prefix of each stack -> layer -> the rest of the name -> tensor."""
        if self._layers is None:
            self._layers = {}
            for item in self.items.values():
                place = item.place
                if place.stack is not None and place.layer is not None:
                    layers = self._layers.setdefault(place.stack, {})
                    layers.setdefault(place.layer, {})[place.rest] = item
        return self._layers

    @property
    def main_stack(self) -> str | None:
        """The prefix of the stack that layer ranges mean: the checkpoint's main one, else the one with most tensors."""
        main = self.checkpoint.main_stack
        if main is not None and main.prefix in self._last_layers:
            return main.prefix
        counts = Counter(i.place.stack for i in self.items.values() if i.place.stack is not None)
        return max(counts, key=counts.__getitem__, default=None)

    @property
    def layer_count(self) -> int:
        """Number of layers of the main stack, 0 without one; blocks that only predict further tokens are none."""
        main = self.main_stack
        return 0 if main is None else self._last_layers[main] + 1 - self.further_layers

    @property
    def further_layers(self) -> int:
        """Number of blocks behind the layers of the main stack that only predict further tokens."""
        main, own = self.main_stack, self.checkpoint.main_stack
        if main is None or own is None or own.prefix != main:
            return 0
        return self.checkpoint.further_layers if self._last_layers[main] + 1 == own.count else 0

    @property
    def _last_layers(self) -> dict[str, int]:
        """The highest layer of each stack; the tensors of a view never change."""
        if self._ends is None:
            self._ends = {}
            for item in self.items.values():
                stack, layer = item.place.stack, item.place.layer
                if stack is not None and layer is not None:
                    self._ends[stack] = max(layer, self._ends.get(stack, 0))
        return self._ends

    def only(self, names: Iterable[str]) -> View:
        """The same source with fewer tensors."""
        wanted = set(names)
        return replace(self, items={n: i for n, i in self.items.items() if n in wanted})


def layer_name(prefix: str, layer: int, rest: str) -> str:
    """The name of a tensor in a layer of a stack."""
    return ".".join(part for part in (prefix, str(layer), rest) if part)


def view_of(checkpoint: Checkpoint, label: str) -> View:
    """The tensors of a checkpoint, each as a leaf."""
    places, counts_as = checkpoint.places, checkpoint.stored_as
    tensors = {
        name: OutputTensor(
            places[name], Leaf(label, name), counts_as.get(name, tensor.dtype), tensor.shape
        )
        for name, tensor in checkpoint.tensors.items()
    }
    return View(label, tensors, checkpoint, label, checkpoint.ties)
