"""Where tensors come from: checkpoints and the results of recipes, seen in the same way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from weightsmith.checkpoints import Checkpoint, Kind
from weightsmith.recipes.resolution.formula import Formula, Leaf, Place
from weightsmith.tensors import DType, record


@record
@dataclass(frozen=True, slots=True)
class Item:
    """One tensor that can be merged, or that a merge gave.

    `dtype` is what it counts as; a leaf that is computed while it is read may be wider (`Checkpoint.stored_as`).
    `layer` is its block's number in the stack `block` of `layers` blocks, and `depth` the position of the block in
    [0, 1], 0 outside the stacks. `input_first`: a matrix stored as (inputs, outputs).
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    formula: Formula
    kind: Kind
    layer: int | None = None
    layers: int = 0
    block: str | None = None
    depth: float = 0.0
    tied_to: str | None = None
    input_first: bool = False


@dataclass(slots=True)
class View:
    """Tensors by name.

    `checkpoint` gives configuration and tokenizer, and `config_source` is its label: for a recipe's result, those of
    its donor.
    """

    label: str
    items: dict[str, Item]
    checkpoint: Checkpoint
    config_source: str
    ties: tuple[frozenset[str], ...] = ()
    is_recipe: bool = False
    _layers: dict[str, dict[int, dict[str, Item]]] | None = field(default=None, repr=False)

    @property
    def stacks(self) -> dict[str, dict[int, dict[str, Item]]]:
        """Prefix of each stack -> layer -> the rest of the name -> tensor."""
        if self._layers is None:
            self._layers = {}
            for item in self.items.values():
                if item.block is not None and item.layer is not None:
                    layers = self._layers.setdefault(item.block, {})
                    layers.setdefault(item.layer, {})[rest_of(item)] = item
        return self._layers

    @property
    def main_stack(self) -> str | None:
        """The prefix of the stack that layer ranges mean: the checkpoint's main one, else the one with most tensors."""
        stacks = self.stacks
        main = self.checkpoint.main_stack
        if main is not None and main.prefix in stacks:
            return main.prefix
        return max(stacks, key=lambda prefix: sum(map(len, stacks[prefix].values())), default=None)

    @property
    def layer_count(self) -> int:
        """Number of layers of the main stack, 0 without one."""
        main = self.main_stack
        return 0 if main is None else max(self.stacks[main]) + 1

    def only(self, names: Iterable[str]) -> View:
        """The same source with fewer tensors."""
        wanted = set(names)
        return replace(
            self, items={n: i for n, i in self.items.items() if n in wanted}, _layers=None
        )


def item_place(item: Item) -> Place:
    """Where a tensor of a recipe's result is merged."""
    return Place(
        item.name,
        item.shape,
        item.kind.value,
        item.layer,
        item.layers,
        item.block,
        item.input_first,
    )


def rest_of(item: Item) -> str:
    """A layer tensor's name after its layer number."""
    start = len(item.block) + 1 if item.block else 0
    return item.name[start:].partition(".")[2]


def layer_name(prefix: str, layer: int, rest: str) -> str:
    """The name of a tensor in a layer of a stack."""
    return ".".join(part for part in (prefix, str(layer), rest) if part)


def depth_of(layer: int, layers: int) -> float:
    """Position of one of `layers` blocks in [0, 1]; a single block is at 1, as in mergekit."""
    return layer / (layers - 1) if layers > 1 else 1.0


def view_of(checkpoint: Checkpoint, label: str) -> View:
    """The tensors of a checkpoint, each as a leaf."""
    depths = checkpoint.depths()
    roles = checkpoint.roles
    items = {}
    for name, tensor in checkpoint.tensors.items():
        role = roles[name]
        layer, block = role.layer, role.block
        dtype = checkpoint.dtype_of(name)
        if layer is None or block is None or (block, layer) not in depths:
            items[name] = Item(name, dtype, tensor.shape, Leaf(label, name), role.kind)
            continue
        position, count = depths[block, layer]
        items[name] = Item(
            name,
            dtype,
            tensor.shape,
            Leaf(label, name),
            role.kind,
            layer,
            count,
            block,
            depth_of(position, count),
            input_first=role.input_first,
        )
    return View(label, items, checkpoint, label, checkpoint.ties)
