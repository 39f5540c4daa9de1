"""What every merge method promises, whatever it computes.

    documented         a title, a source with its year, a formula, a sentence on every parameter
    defaults           defaults lie within their own bounds, and presets name parameters that there are
    copies             copies of one model merge to that model, bit for bit
    degenerate         zeros, opposites and copies give finite numbers of the same shape
    magnitudes         tiny and huge weights stay finite
    float64            what is merged in float64 stays float64
    statistics         two statistics of the model of one name are one number

Each is asked under every preset, with the least and the most experts (at most four), with a base and without where
both are allowed, and where shapes matter in `SHAPES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weightsmith.errors import RecipeError
from weightsmith.graph import (
    Node,
    Scalar,
    Site,
    Threshold,
    Value,
    shared_graph,
    source,
    statistic_of,
    value,
    walk,
)
from weightsmith.methods import PAPER, REQUIRED, Base, MethodSpec, registry
from weightsmith.tensors import Place
from weightsmith.testing.array_merges import merge_arrays

SHAPES: Sequence[tuple[int, ...]] = (
    *((), (0,), (1,), (5,)),
    *((3, 4), (3, 0), (0, 3), (4, 1), (1, 6)),
    *((2, 3, 4), (2, 3, 3, 2)),
)
_SITE = Site(Place("layers.1.w", layer=1, layers=3, stack="layers"), (4, 6), labels=("a", "b", "c"))


@dataclass(frozen=True)
class Promise:
    """One promise of one method; a call raises AssertionError, with what is broken, where it is not kept."""

    method: str
    name: str
    _check: Callable[[_Subject], None] = field(repr=False)
    _subject: _Subject = field(repr=False)

    def __call__(self) -> None:
        """Check it."""
        self._check(self._subject)

    def __str__(self) -> str:
        shape = self._subject.shape
        return "-".join((self.method, self.name, *([] if shape is None else [str(shape)])))


def check_method(
    name: str,
    parameters: Mapping[str, Any] | None = None,
    *,
    experts: Sequence[int] | None = None,
) -> None:
    """Raise AssertionError, with a sentence that says what is broken, unless the method called `name` keeps them all.

    Its module must have been imported. Parameters without a default are 0.5, `parameters` are given to every merge,
    and `experts` are the numbers of experts to try (else the least, and the most or four).
    """
    for promise in promises(name, parameters, experts=experts):
        promise()


def promises(
    name: str,
    parameters: Mapping[str, Any] | None = None,
    *,
    experts: Sequence[int] | None = None,
) -> list[Promise]:
    """The promises of a method one by one, as for pytest's `parametrize` with `ids=str`; see `check_method`."""
    spec = registry.get(name)
    least, most = spec.experts
    counts = tuple(experts or sorted({least, most or max(least, 4)}))
    subject = _Subject(spec, parameters or {}, counts)
    found = [Promise(name, title, check, subject) for title, check in _OF_METHODS.items()]
    for title, check in _OF_SHAPES.items():
        for shape in SHAPES:
            shaped = _Subject(spec, parameters or {}, counts, shape)
            found.append(Promise(name, title, check, shaped))
    return found


@dataclass(frozen=True)
class _Merge:
    """One way to merge: a preset, a number of experts, whether there is a base, and parameters."""

    method: str
    preset: str
    experts: int
    has_base: bool
    shared: Mapping[str, Any]

    def of(self, base: Any, experts: Sequence[Any]) -> Any:
        """What these arrays merge to."""
        base = base if self.has_base else None
        return merge_arrays(
            self.method, base, experts[: self.experts], shared=self.shared, preset=self.preset
        )

    def __str__(self) -> str:
        base = "a base" if self.has_base else "no base"
        return (
            f"Method {self.method} with preset {self.preset}, {self.experts} expert(s) and {base}"
        )


@dataclass(frozen=True)
class _Subject:
    """A method, what is given to it, and the shape of its tensor where that matters."""

    spec: MethodSpec
    parameters: Mapping[str, Any]
    experts: Sequence[int]
    shape: tuple[int, ...] | None = None

    @property
    def presets(self) -> list[str]:
        """All of them, the paper's first."""
        return [PAPER, *self.spec.presets]

    def merges(self) -> Iterator[_Merge]:
        """Every way to merge."""
        has_base = {
            Base.REQUIRED: (True,),
            Base.IGNORED: (False,),
            Base.OPTIONAL: (True, False),
        }[self.spec.base]
        for preset in self.presets:
            needed = [k for k, default in self.spec.defaults(preset).items() if default is REQUIRED]
            shared = {**dict.fromkeys(needed, 0.5), **self.parameters}
            for n in self.experts:
                for has in has_base:
                    yield _Merge(self.spec.name, preset, n, has, shared)


def _documented(subject: _Subject) -> None:
    spec = subject.spec
    _require(bool(spec.title), f"Method {spec.name} has no title.")
    _require(
        any(c.isdigit() for c in spec.paper),
        f"Method {spec.name} names no source with its year: {spec.paper!r}.",
    )
    _require(
        "=" in spec.doc and len(spec.doc) > 80,
        f"The docstring of method {spec.name} has no formula, or little beside it.",
    )
    for key, parameter in spec.parameters.items():
        _require(bool(parameter.doc), f"Parameter {key} of method {spec.name} has no `doc`.")


def _defaults(subject: _Subject) -> None:
    spec = subject.spec
    for preset, overrides in spec.presets.items():
        unknown = sorted(set(overrides) - set(spec.parameters))
        _require(
            not unknown,
            f"Preset {preset} of method {spec.name} names parameters that it lacks: {unknown}.",
        )
    unknown = sorted(set(spec.about_presets) - set(spec.presets))
    _require(not unknown, f"Method {spec.name} explains presets that it lacks: {unknown}.")
    for preset in subject.presets:
        for key, default in spec.defaults(preset).items():
            if default is not REQUIRED:
                try:
                    spec.parameters[key].check(default, f"preset {preset}", preset)
                except RecipeError as error:
                    raise AssertionError(
                        f"A default of method {spec.name} is refused: {error}"
                    ) from error


def _copies(subject: _Subject) -> None:
    model = np.random.default_rng(1).normal(size=subject.shape).astype(np.float32)
    for how in subject.merges():
        merged = how.of(model, [model] * how.experts)
        same = merged.shape == model.shape and merged.tobytes() == model.tobytes()
        _require(
            same,
            f"{how}: copies of one model of shape {subject.shape} do not merge to that model bit for bit.",
        )


def _degenerate(subject: _Subject) -> None:
    some = np.random.default_rng(2).normal(size=subject.shape).astype(np.float32)
    zero = np.zeros_like(some)
    near = some + np.float32(1e-7)
    families = {
        "zeros": [zero, zero, zero, zero],
        "copies beside zeros": [some, zero, some, zero],
        "opposites": [some, -some, some, -some],
        "nearly equal ones": [some, near, zero, near],
    }
    for how in subject.merges():
        for title, experts in families.items():
            for base in (zero, some) if how.has_base else (None,):
                merged = how.of(base, experts)
                what = f"{title} of shape {subject.shape}"
                _require(
                    merged.shape == some.shape, f"{how}: {what} merge to shape {merged.shape}."
                )
                _require(np.isfinite(merged).all(), f"{how}: {what} do not give finite numbers.")


def _magnitudes(subject: _Subject) -> None:
    rng = np.random.default_rng(3)
    for size in (1e-30, 1e15):
        base, *experts = (rng.normal(size=(5, 3, 4)) * size).astype(np.float32)
        for how in subject.merges():
            merged = how.of(base, experts)
            _require(
                np.isfinite(merged).all(),
                f"{how}: weights of about {size:g} do not give finite numbers.",
            )


def _float64(subject: _Subject) -> None:
    base, *experts = np.random.default_rng(4).normal(size=(5, 3, 4))
    for how in subject.merges():
        dtype = how.of(base, experts).dtype
        _require(dtype == np.float64, f"{how}: float64 inputs are merged to {dtype}.")


def _statistics(subject: _Subject) -> None:
    """Two numbers of one name would be joined over the tensors of a model, silently."""
    for how in subject.merges():
        for variant in _variants(subject.spec):
            given = {**variant, **how.shared}
            experts = [source(1 + i) for i in range(how.experts)]
            try:
                built = subject.spec.build(given, [{}] * how.experts, preset=how.preset)
                graph = built.combine(source(0) if how.has_base else None, experts, _SITE)
            except RecipeError:
                continue
            known: dict[Any, Node] = {}
            for node in walk([graph]):
                statistic = statistic_of(node)
                if statistic is not None:
                    first = known.setdefault(statistic, node)
                    _require(
                        _twin(node) is _twin(first),
                        f"{how} and {variant}: two statistics of the model are called {statistic}.",
                    )


def _variants(spec: MethodSpec) -> Iterator[dict[str, Any]]:
    """The defaults; each choice, and the middle of each share, by itself."""
    yield {}
    for key, parameter in spec.parameters.items():
        if not parameter.per_expert:
            yield from ({key: choice} for choice in parameter.choices)
            if parameter.kind is float and (parameter.low, parameter.high) == (0.0, 1.0):
                yield {key: 0.5}


def _twin(node: Node) -> Node:
    """The first graph that is built as the number's is."""
    measured = node.magnitude if isinstance(node, Threshold) else node
    assert isinstance(measured, (Value, Scalar))
    root = value(measured)
    return shared_graph(root)[root]


def _require(is_kept: bool | np.bool_, sentence: str) -> None:
    if not is_kept:
        raise AssertionError(sentence)


_OF_METHODS: Mapping[str, Callable[[_Subject], None]] = {
    "documented": _documented,
    "defaults": _defaults,
    "magnitudes": _magnitudes,
    "float64": _float64,
    "statistics": _statistics,
}
_OF_SHAPES: Mapping[str, Callable[[_Subject], None]] = {
    "copies": _copies,
    "degenerate": _degenerate,
}
