"""What a method is to the rest of the system: a name, typed parameters, and one function over the value graph.

A method is a frozen dataclass whose fields are its parameters and whose `combine` is the paper's formula:

    @method("task_arithmetic", paper="Ilharco et al., ICLR 2023, arXiv:2212.04089", base=Base.REQUIRED)
    @dataclass(frozen=True, slots=True)
    class TaskArithmetic:
        weight: tuple[float, ...] = per_expert(1.0, doc="coefficient of each task vector")
        scale: float = shared(1.0, key="lambda", doc="coefficient of the sum")

        def combine(self, base: Value, experts: Sequence[Value], site: Site) -> Value:
            deltas = [expert - base for expert in experts]
            return base + linear_combination(deltas, self.weight) * self.scale

Values that differ between paper and tools are parameters with names; a *preset* is a named set of other
defaults.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from weightsmith.errors import RecipeError
from weightsmith.graph import Scalar, Site, Value
from weightsmith.methods.parts import method_index as index
from weightsmith.wording import literal


class Base(enum.Enum):
    """What a method does with the base checkpoint."""

    REQUIRED = "required"
    OPTIONAL = "optional"
    IGNORED = "ignored"


class MeasuredOn(enum.Enum):
    """On which weights the statistics of a method were measured.

    Those of each expert, over its own data; those of the base, once; or those of the base over the data of each expert,
    which is then one file for each.
    """

    EXPERTS = "each expert"
    BASE = "the base"
    BASE_BY_EXPERT = "the base, over the data of each expert"


class _Required:
    """The default of a parameter that has none."""

    def __repr__(self) -> str:
        return "required"


REQUIRED: Any = _Required()
PAPER = "paper"
# Presets that every method has: one without mergekit's preset does the same there as in its paper.
GENERAL_PRESETS = (PAPER, "mergekit")
# Sums over more experts than anybody has stay finite.
LARGEST_NUMBER = 1e100
# The kind of statistics that are numbers of a whole model.
METRICS = "metrics"
_METADATA_KEY = "weightsmith"


class Combine(Protocol):
    """What every method implements."""

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value: ...


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method, as recipes see it."""

    name: str
    key: str
    kind: type
    default: Any
    per_expert: bool
    doc: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False
    switch: Mapping[str, str] = field(default_factory=dict)

    def check(self, given: Any, where: str, preset: str = PAPER) -> Any:
        """Convert a value from a recipe to this parameter's type.

        A parameter with a *switch* is a choice that is also written as true or false: false is "none", and what
        true means depends on the preset. Raises RecipeError for a wrong type, a NaN, a number of an expert of
        which a sum would overflow, or a value outside the bounds. A free number was checked where it was written.
        """
        if given is None and self.optional:
            return None
        if self.kind is bool:
            return self._check_bool(given, where)
        if self.kind is str:
            return self._check_choice(self._switched(given, preset), where)
        if isinstance(given, Scalar):
            return given
        if isinstance(given, bool) or not isinstance(given, (int, float)):
            raise RecipeError(f"{where}: {self.key} must be a number, not {literal(given)}.")
        number = _as_float(given)
        if not math.isfinite(number):
            raise RecipeError(f"{where}: {self.key} must be finite, not {literal(given)}.")
        if self.per_expert and abs(number) > LARGEST_NUMBER:
            raise RecipeError(
                f"{where}: {self.key} must be of a size up to {LARGEST_NUMBER:g}, but is {literal(given)}."
            )
        if self.kind is int:
            if number != int(number):
                raise RecipeError(
                    f"{where}: {self.key} must be a whole number, not {literal(given)}."
                )
            number = int(given)
        if (self.low is not None and number < self.low) or (
            self.high is not None and number > self.high
        ):
            raise RecipeError(
                f"{where}: {self.key} must lie in {self.bounds}, but is {literal(given)}."
            )
        return number

    def built(self, given: Any, where: str, preset: str = PAPER) -> Any:
        """As `check`, to build a method with: what counts something is known then, or NumberNotKnown."""
        checked = self.check(given, where, preset)
        return int(checked) if self.kind is int and isinstance(checked, Scalar) else checked

    @property
    def bounds(self) -> str:
        """The allowed interval in words, empty if there is none."""
        if self.low is None and self.high is None:
            return ""
        low = "-inf" if self.low is None else f"{self.low:g}"
        high = "inf" if self.high is None else f"{self.high:g}"
        return f"[{low}, {high}]"

    def _check_bool(self, given: Any, where: str) -> bool:
        if isinstance(given, bool):
            return given
        if isinstance(given, (int, float)) and given in (0, 1):
            return bool(given)
        raise RecipeError(f"{where}: {self.key} must be true or false, not {literal(given)}.")

    def _switched(self, given: Any, preset: str) -> Any:
        if not self.switch or not isinstance(given, (bool, int, float)) or given not in (0, 1):
            return given
        return self.switch.get(preset, self.switch[PAPER]) if given else "none"

    def _check_choice(self, given: Any, where: str) -> str:
        if self.choices and given not in self.choices:
            raise RecipeError(
                f"{where}: {self.key} must be one of {', '.join(self.choices)}, not {literal(given)}."
            )
        return str(given)


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


def shared(
    default: Any,
    *,
    doc: str,
    key: str | None = None,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    optional: bool = False,
    switch: Mapping[str, str] | None = None,
) -> Any:
    """Declare a parameter with one value for the whole merge (of one tensor).

    `switch` lets a choice be written as true or false: it maps a preset to the choice that true stands for
    ("paper" is used for presets it does not name); false stands for "none".
    """
    return _parameter_field(default, False, doc, key, low, high, choices, optional, switch)


def per_expert(
    default: Any,
    *,
    doc: str,
    key: str | None = None,
    low: float | None = None,
    high: float | None = None,
    optional: bool = False,
) -> Any:
    """Declare a parameter with one value for each expert; the field holds a tuple in the order of the experts."""
    return _parameter_field(default, True, doc, key, low, high, (), optional, None)


def _parameter_field(
    default: Any,
    is_per_expert: bool,
    doc: str,
    key: str | None,
    low: float | None,
    high: float | None,
    choices: tuple[str, ...],
    optional: bool,
    switch: Mapping[str, str] | None,
) -> Any:
    facts = {
        "default": default,
        "per_expert": is_per_expert,
        "doc": doc,
        "key": key,
        "low": low,
        "high": high,
        "choices": choices,
        "optional": optional,
        "switch": switch or {},
    }
    return field(metadata={_METADATA_KEY: facts})


@dataclass(frozen=True, slots=True)
class FormerPreset:
    """A preset under the name that it had in an earlier version: its name now, and what was wrong with the other."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """A registered method.

    `statistics` are the kinds of stored statistics that it takes, the preferred first, of the weights that
    `measured_on` says; `KIND:WORD` is what a file has under a word (`channels:input_square`). `cost` is its time for a
    matrix of m x n numbers and N experts, `generalises` the methods that are special cases of it. `step` is empty
    where a step of `then:` gives the method what was merged as its only expert; else it holds the parameters under
    which the experts of the merge follow behind. With `step_unless` they only do so, and must be there, where the step
    does not give that parameter. `former_presets` are by the names that are understood still, `about_presets` says of
    a preset whose rule it is.
    """

    name: str
    title: str
    paper: str
    base: Base
    experts: tuple[int, int | None]
    parameters: Mapping[str, Parameter]
    presets: Mapping[str, Mapping[str, Any]]
    implementation: type[Any]
    statistics: tuple[str, ...] = ()
    measured_on: MeasuredOn = MeasuredOn.EXPERTS
    cost: str = ""
    generalises: tuple[str, ...] = ()
    step: Mapping[str, Any] = field(default_factory=dict)
    step_unless: str = ""
    former_presets: Mapping[str, FormerPreset] = field(default_factory=dict)
    about_presets: Mapping[str, str] = field(default_factory=dict)

    @property
    def noun(self) -> str:
        """What it is called in messages."""
        return "method"

    @property
    def doc(self) -> str:
        """The docstring: formula, shapes, defaults, source."""
        return (self.implementation.__doc__ or "").strip()

    def defaults(self, preset: str = PAPER) -> dict[str, Any]:
        """Default of every parameter (by recipe key) under a preset; REQUIRED where there is none."""
        former = self.former_presets.get(preset)
        overrides = self.presets.get(preset if former is None else former.name, {})
        return {key: overrides.get(key, p.default) for key, p in self.parameters.items()}

    def build(
        self,
        shared_values: Mapping[str, Any],
        expert_values: Sequence[Mapping[str, Any]],
        *,
        preset: str = PAPER,
        where: str = "recipe",
    ) -> Combine:
        """Make the method with its parameters: given values, else the preset's defaults.

        Raises RecipeError for an unknown, missing or invalid parameter, or a wrong number of experts.
        """
        self.check_expert_count(len(expert_values), where)
        for key in [*shared_values, *(k for values in expert_values for k in values)]:
            if key not in self.parameters:
                raise RecipeError(
                    f"{where}: method {self.name} has no parameter {key!r}; it has {self._known()}."
                )
        defaults = self.defaults(preset)
        fields: dict[str, Any] = {}
        for key, parameter in self.parameters.items():
            if parameter.per_expert:
                fallback = shared_values.get(key, defaults[key])
                given = [values.get(key, fallback) for values in expert_values]
                fields[parameter.name] = tuple(
                    self._checked(parameter, g, where, preset) for g in given
                )
            else:
                given_or_default = shared_values.get(key, defaults[key])
                fields[parameter.name] = self._checked(parameter, given_or_default, where, preset)
        built: Combine = self.implementation(**fields)
        return built

    def check_expert_count(self, n: int, where: str) -> None:
        """Raise RecipeError unless the method can merge `n` experts."""
        low, high = self.experts
        if n < low or (high is not None and n > high):
            wanted = (
                f"exactly {low}"
                if low == high
                else f"at least {low}"
                if high is None
                else f"{low} to {high}"
            )
            raise RecipeError(
                f"{where}: method {self.name} merges {wanted} expert(s), but {n} were given."
            )

    def _checked(self, parameter: Parameter, given: Any, where: str, preset: str) -> Any:
        if given is REQUIRED:
            raise RecipeError(f"{where}: method {self.name} needs the parameter {parameter.key!r}.")
        return parameter.built(given, where, preset)

    def _known(self) -> str:
        return ", ".join(self.parameters) or "none"


_REGISTRY: dict[str, MethodSpec] = {}
_T = TypeVar("_T", bound=type)
_KINDS = {"float": float, "int": int, "bool": bool, "str": str}


def method(
    name: str,
    *,
    title: str,
    paper: str,
    base: Base,
    experts: tuple[int, int | None] = (1, None),
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    statistics: tuple[str, ...] = (),
    measured_on: MeasuredOn = MeasuredOn.EXPERTS,
    cost: str = "",
    generalises: tuple[str, ...] = (),
    step: Mapping[str, Any] | None = None,
    step_unless: str = "",
    former_presets: Mapping[str, FormerPreset] | None = None,
    about_presets: Mapping[str, str] | None = None,
) -> Callable[[_T], _T]:
    """Register a frozen dataclass as a method; presets map parameter keys to other defaults (see `MethodSpec`).

    Raises UsageError where another module has a method of that name.
    """

    def register(implementation: _T) -> _T:
        known = _REGISTRY.get(name)
        owner = None if known is None else known.implementation.__module__
        index.require_free(name, "method", implementation.__module__, owner)
        _REGISTRY[name] = MethodSpec(
            name=name,
            title=title,
            paper=paper,
            base=base,
            experts=experts,
            parameters=declared_parameters(implementation),
            presets=presets or {},
            implementation=implementation,
            statistics=statistics,
            measured_on=measured_on,
            cost=cost,
            generalises=generalises,
            step=step or {},
            step_unless=step_unless,
            former_presets=former_presets or {},
            about_presets=about_presets or {},
        )
        return implementation

    return register


def declared_parameters(implementation: type[Any]) -> dict[str, Parameter]:
    """The parameters that a dataclass declares with `shared` and `per_expert`, by their keys in recipes."""
    found = [_parameter(declared) for declared in dataclasses.fields(implementation)]
    return {parameter.key: parameter for parameter in found}


def _parameter(declared: dataclasses.Field[Any]) -> Parameter:
    facts = declared.metadata[_METADATA_KEY]
    annotation = str(declared.type)
    kind = next(k for word, k in _KINDS.items() if word in annotation)
    return Parameter(
        name=declared.name,
        key=facts["key"] or declared.name,
        kind=kind,
        default=facts["default"],
        per_expert=facts["per_expert"],
        doc=facts["doc"],
        low=facts["low"],
        high=facts["high"],
        choices=facts["choices"],
        optional=facts["optional"],
        switch=facts["switch"],
    )


def names() -> list[str]:
    """Names of all methods, sorted; none is imported for it."""
    return sorted({*_REGISTRY, *index.modules_of("method")})


def get(name: str) -> MethodSpec:
    """The method called `name`, whose module is imported; raises RecipeError with the nearest names otherwise."""
    if name not in _REGISTRY:
        index.load(name, "method")
    if name not in _REGISTRY:
        import difflib

        known = names()
        near = difflib.get_close_matches(name, known, n=3)
        hint = (
            f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(known)}."
        )
        raise RecipeError(f"There is no merge method called {name!r}{hint}")
    return _REGISTRY[name]
