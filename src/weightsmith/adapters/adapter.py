"""An adapter, whatever dialect it was written in: for each tensor of its base, the change that it makes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from weightsmith.adapters.effects import Effect, TargetTensor
from weightsmith.checkpoints import not_saved
from weightsmith.deltas import Change, Rewriting
from weightsmith.errors import CompatibilityError
from weightsmith.findings import Finding
from weightsmith.tensors import LazyTensor, shown, stored_in


class Form(str, Enum):
    """How a change is stored."""

    LORA = "lora"
    LOHA = "loha"
    LOKR = "lokr"
    FULL = "full"
    REPLACED = "replaced"
    ROWS = "rows"
    IA3 = "ia3"
    OFT = "oft"
    BOFT = "boft"
    VERA = "vera"
    HIRA = "hira"
    MISS = "miss"
    RANDLORA = "randlora"
    FOURIERFT = "fourierft"
    SHIRA = "shira"
    DELORA = "delora"


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """What an adapter does to one tensor of its base.

    `target` is the tensor's name as far as the adapter tells it (see `attaching` for how it is found in a base).
    `load` reads the factors and gives the change with its scale in it, seen in the orientation in which the base stores
    the tensor; it is None for a tensor that is replaced. `shape` is the tensor's shape, None where the factors do not
    tell it. `rank` and `alpha` are as they are written, `scale` what the product of the factors is multiplied with.

    A `replacement` takes the base's place before the change is made; where the form is ROWS it has only the base's rows
    `rows`. `magnitude` is that of DoRA, `by_column` as `ChangedTensor` has it. `component` is the part of a pipeline
    that the tensor is in (`unet`, `text_encoder`), None where the adapter names none.

    Where the change follows from more than the factors, `effect` works it out for the base's tensor, and until then
    there is no `load`. Where it depends on the numbers of the base, `rewrite` gives what becomes of its rows, and
    `load` is the difference that this makes. An `optional` update is left out where the base has no such tensor.
    """

    target: str
    form: Form
    sources: tuple[LazyTensor, ...]
    load: Callable[[], Change] | None = None
    shape: tuple[int, ...] | None = None
    rank: int | None = None
    alpha: float | None = None
    scale: float = 1.0
    magnitude: LazyTensor | None = None
    input_first: bool = False
    replacement: LazyTensor | None = None
    rows: tuple[int, ...] | None = None
    by_column: bool = False
    component: str | None = None
    effect: Callable[[TargetTensor], Effect] | None = None
    rewrite: Callable[[], Rewriting] | None = None
    optional: bool = False

    @property
    def key(self) -> str:
        """What an adapter keeps the update under: the target, behind its component if it names one."""
        return self.target if self.component is None else f"{self.component}.{self.target}"

    @property
    def stored(self) -> tuple[LazyTensor, ...]:
        """Everything that the adapter stores of it."""
        more = (t for t in (self.magnitude, self.replacement) if t is not None)
        return (*self.sources, *more)


def listed(components: Iterable[str | None]) -> str:
    """Parts of a pipeline as messages have them."""
    return ", ".join("tensors of no component" if c is None else shown(c) for c in components)


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """What the headers and the configuration of an adapter say; factors are read when they are asked for.

    `dialect` is `peft`, `kohya`, `diffusers` or `lycoris`; `updates` are by `Update.key`. `flattened`: targets have `_`
    where a base has `.`. `config` is adapter_config.json, or the metadata of a single file; `base_reference` the base
    that it names, if any. `initial` is where it lies as it was before training, if it is a change against that.
    """

    path: Path
    source: str
    dialect: str
    updates: Mapping[str, Update]
    config: Mapping[str, Any] = field(default_factory=dict)
    base_reference: str | None = None
    flattened: bool = False
    initial: Path | None = None

    def of_component(self, component: str) -> Adapter:
        """What it does to one part of a pipeline; raises CompatibilityError where that is nothing."""
        updates = {key: u for key, u in self.updates.items() if u.component == component}
        if not updates:
            known = dict.fromkeys(u.component for u in self.updates.values())
            raise CompatibilityError(
                f"Adapter {shown(self.source)} has nothing for {shown(component)}, but changes {listed(known)}: name "
                "one of these."
            )
        return replace(self, updates=updates)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every folder and file that it is read from, the real places of weight files that are links among them."""
        files = stored_in(tensor for update in self.updates.values() for tensor in update.stored)
        known = (self.path, *(() if self.initial is None else (self.initial,)))
        return tuple(dict.fromkeys((*known, *(Path(os.path.realpath(file)) for file in files))))

    @property
    def unsaved(self) -> tuple[str, ...]:
        """The modules that PEFT's `modules_to_save` names and of which nothing is stored; not all need be there."""
        named = self.config.get("modules_to_save")
        names = [n for n in named if isinstance(n, str)] if isinstance(named, list) else []
        stored = [f".{update.target}." for update in self.updates.values()]
        return tuple(name for name in names if not any(f".{name}." in target for target in stored))

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What should be known before another adapter is made of it."""
        if not self.unsaved:
            return ()
        then = "so neither has what is made of it"
        return (not_saved(self.name, self.unsaved, self.source, then),)

    @property
    def name(self) -> str:
        """A name without the user's folders."""
        return self.path.name
