"""The oracles that there are: one module of `rules` per method, one of `rules.modifiers` per modifier.

A module `rules/FOLDER/NAME.py`, in a folder called like that of the method, has a function NAME(family, parameters) and

    VARIANTS            parameter sets; `preset`, `experts` (how many) and `base` (False: without) are not the method's
    EXPERTS             how many experts a variant has that does not say so (3)
    STATISTICS          the kind of statistics that the experts come with where a variant has no `statistics` (none)
    TOLERANCE           largest error in float64 as a share of the largest change (1e-12)
    TOLERANCE_FLOAT32   the same where the work precision is float32 (2e-6)
    EQUAL               variants that are tried with many equal magnitudes, for methods that compare them ([])
    EXACT               parameters that count what rounding of stored weights may have made ({})
    STRUCTURED          how many variants, from the first, are tried in structures and from files (all)
    SKIPS               structures that mean nothing to the method, with the reason ({})
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from weightsmith.methods.parts import registry

from .families import Family, Tensors
from .measured import measured

ROOT = Path(__file__).parent
RULES = ROOT / "rules"
Variant = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """An oracle and what is tried with it."""

    name: str
    function: Callable[[Family, dict[str, Any]], Any]
    variants: tuple[Variant, ...]
    experts: int = 3
    statistics: str | None = None
    tolerance: float = 1e-12
    tolerance_float32: float = 2e-6
    equal: tuple[Variant, ...] = ()
    exact: Mapping[str, Any] = field(default_factory=dict)
    structured: int | None = None
    skips: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, family: Family, variant: Variant) -> Tensors:
        """What the method makes of a family."""
        return self.function(family, dict(variant))

    def count(self, variant: Variant) -> int:
        """The number of experts of a variant."""
        return variant.get("experts", self.experts)

    def kind(self, variant: Variant) -> str | None:
        """The kind of statistics that the experts of a variant come with."""
        return variant.get("statistics", self.statistics)

    def exactly(self, variant: Variant) -> Variant:
        """A variant that takes rounded weights for exact ones, as the oracles do."""
        return {**self.exact, **variant}

    def tried(self, structure: str) -> tuple[Variant, ...]:
        """The variants that are tried in a structure."""
        return self.variants if structure == "memory" else self.variants[: self.structured]

    def cut(self, family: Family, variant: Variant) -> Family:
        """The family with as many experts as a variant has, and with what was measured on them."""
        kind = self.kind(variant)
        with_all = family if kind is None else measured(family, kind)
        cut = with_all.first(self.count(variant))
        return cut if not self.of_base else replace(cut, statistics=cut.statistics[:1])

    @property
    def of_base(self) -> bool:
        """Whether what was measured is one file, of the base."""
        return registry.get(self.name).measured_on is registry.MeasuredOn.BASE


def load(folders: Iterable[Path]) -> dict[str, Rule]:
    """The oracles of folders by name."""
    found = {}
    paths = (path for folder in folders for path in folder.glob("*.py"))
    for path in sorted(paths, key=lambda path: path.stem):
        module = importlib.import_module(f".rules.{path.parent.name}.{path.stem}", __package__)
        found[path.stem] = Rule(
            path.stem,
            getattr(module, path.stem),
            tuple(module.VARIANTS),
            getattr(module, "EXPERTS", 3),
            getattr(module, "STATISTICS", None),
            getattr(module, "TOLERANCE", 1e-12),
            getattr(module, "TOLERANCE_FLOAT32", 2e-6),
            tuple(getattr(module, "EQUAL", ())),
            getattr(module, "EXACT", {}),
            getattr(module, "STRUCTURED", None),
            getattr(module, "SKIPS", {}),
        )
    return found


_APART = {"modifiers", "shared", "__pycache__"}
ORACLES = load(f for f in RULES.iterdir() if f.is_dir() and f.name not in _APART)
MODIFIERS = load([RULES / "modifiers"])


def label(variant: Variant) -> str:
    """A variant in words, as a part of a test's name."""
    words = [f"{key}={_value(value)}" for key, value in variant.items()]
    return ",".join(words) or "defaults"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "(" + " ".join(map(str, value)) + ")"
    return str(value)
