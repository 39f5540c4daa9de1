"""What happens to the experts before a method sees them: modifiers, which compose with every method.

A modifier is a frozen dataclass whose fields are its parameters and whose `modify` turns experts into as many others:

    @modifier("clip", title="Norm clipping", paper="Sun et al., 2019, arXiv:1911.07963", base=Base.OPTIONAL)
    @dataclass(frozen=True, slots=True)
    class Clip:
        limit: float = shared(1.0, low=0.0, doc="...")

        def modify(self, base: Value | None, experts: Sequence[Value], site: Site) -> list[Value]: ...

The base is the recipe's, also where the method itself has none. `site.statistics` are those that the modifier takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from weightsmith.errors import RecipeError
from weightsmith.graph import Operand, Site, Statistic, Value
from weightsmith.methods.parts import method_index as index
from weightsmith.methods.parts import registry
from weightsmith.methods.parts.registry import (
    REQUIRED,
    Base,
    MeasuredOn,
    Parameter,
    declared_parameters,
)
from weightsmith.naming import nearest


class Modify(Protocol):
    """What every modifier implements."""

    def modify(
        self, base: Value | None, experts: Sequence[Value], site: Site
    ) -> Sequence[Value]: ...


@dataclass(frozen=True, slots=True)
class ModifierSpec:
    """A registered modifier. Each parameter has one value for all experts.

    `statistics` and `measured_on` are what they are of a method (`MethodSpec`).
    """

    name: str
    title: str
    paper: str
    base: Base
    parameters: Mapping[str, Parameter]
    implementation: type[Any]
    statistics: tuple[str, ...] = ()
    measured_on: MeasuredOn = MeasuredOn.EXPERTS

    @property
    def noun(self) -> str:
        """What it is called in messages."""
        return "modifier"

    @property
    def doc(self) -> str:
        """The docstring: formula, defaults, source."""
        return (self.implementation.__doc__ or "").strip()

    def build(self, given: Mapping[str, Any], *, where: str = "recipe") -> Modify:
        """Make the modifier; raises RecipeError for an unknown, missing or invalid parameter."""
        for key in given:
            if key not in self.parameters:
                known = ", ".join(self.parameters) or "none"
                raise RecipeError(
                    f"{where}: modifier {self.name} has no parameter {key!r}; it has {known}."
                )
        fields: dict[str, Any] = {}
        for key, parameter in self.parameters.items():
            value = given.get(key, parameter.default)
            if value is REQUIRED:
                raise RecipeError(f"{where}: modifier {self.name} needs the parameter {key!r}.")
            fields[parameter.name] = parameter.built(value, where)
        built: Modify = self.implementation(**fields)
        return built


_REGISTRY: dict[str, ModifierSpec] = {}
_T = TypeVar("_T", bound=type)


def modifier(
    name: str,
    *,
    title: str,
    paper: str,
    base: Base,
    statistics: tuple[str, ...] = (),
    measured_on: MeasuredOn = MeasuredOn.EXPERTS,
) -> Callable[[_T], _T]:
    """Register a frozen dataclass as a modifier; raises UsageError where another module has one of that name."""

    def register(implementation: _T) -> _T:
        known = _REGISTRY.get(name)
        owner = None if known is None else known.implementation.__module__
        index.require_free(name, "modifier", implementation.__module__, owner)
        parameters = declared_parameters(implementation)
        _REGISTRY[name] = ModifierSpec(
            name, title, paper, base, parameters, implementation, statistics, measured_on
        )
        return implementation

    return register


def names() -> list[str]:
    """Names of all modifiers, sorted; none is imported for it."""
    return sorted({*_REGISTRY, *index.modules_of("modifier")})


def get(name: str) -> ModifierSpec:
    """The modifier called `name`, whose module is imported; raises RecipeError with the nearest name otherwise."""
    if name not in _REGISTRY:
        index.load(name, "modifier")
    if name not in _REGISTRY:
        known = names()
        near = nearest(name, known)
        if near is not None:
            advice = f"did you mean {near}?"
        elif name in registry.names():
            advice = f"{name} is a merge method; known modifiers are {', '.join(known)}."
        else:
            advice = f"known are {', '.join(known)}."
        raise RecipeError(f"There is no modifier called {name!r}; {advice}")
    return _REGISTRY[name]


def modified(
    chain: Sequence[Modify],
    base: Value | None,
    experts: Sequence[Value],
    site: Site,
    statistics: Sequence[tuple[Statistic, ...]] = (),
) -> list[Value]:
    """The experts after all modifiers, one after the other; `statistics` has those of each modifier, or of none."""
    result = list(experts)
    for step, one in enumerate(chain):
        own = replace(
            site,
            merge=f"{site.merge}/modify[{step}]",
            statistics=statistics[step] if statistics else (),
        )
        result = list(one.modify(base, result, own))
    return result


class Displaced(Value):
    """An expert given by its task vector: where its base is subtracted again, nothing is rounded.

    `whole` is the expert itself; nothing but that difference tells the two apart.
    """

    __slots__ = ("base", "delta")

    def __init__(self, whole: Value, base: Value, delta: Value) -> None:
        super().__init__(whole.op, whole.inputs, whole.attributes, whole.is_mask)
        self.base = base
        self.delta = delta

    def __sub__(self, other: Operand) -> Value:
        return self.delta if other is self.base else super().__sub__(other)


def displaced(base: Value | None, delta: Value, whole: Value | None = None) -> Value:
    """The expert at base + delta, or delta itself without a base; `whole` is the sum where it is known better."""
    if base is None:
        return delta if whole is None else whole
    return Displaced(base + delta if whole is None else whole, base, delta)


def deltas_of(base: Value | None, experts: Sequence[Value]) -> list[Value]:
    """Task vectors, or the experts themselves where there is no base."""
    return list(experts) if base is None else [expert - base for expert in experts]
