"""Statistics that a caller holds in memory, as the method or modifier that goes by them sees them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from weightsmith.checkpoints import listed, misfit
from weightsmith.engine.running.memory_checks import comparable
from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.graph import Statistic, source
from weightsmith.methods import MeasuredOn, MethodSpec, ModifierSpec
from weightsmith.tensors import DType

if TYPE_CHECKING:
    from torch import Tensor

    Measured = Mapping[str, Tensor | Sequence[Tensor]]


class InMemory:
    """What was measured on each expert, or once on the base, by the names of its tensors.

    `steps` are the method and the modifiers, `names` those of the float tensors, which are merged. Raises UsageError
    where one of the steps needs statistics that are not given, where more than one needs some, and where none takes
    what is given; CompatibilityError for statistics of other tensors, or of none.
    """

    def __init__(
        self,
        steps: Sequence[MethodSpec | ModifierSpec],
        given: Sequence[Measured],
        kind: str | None,
        experts: int,
        names: Collection[str],
    ) -> None:
        self._taking = [step for step in steps if _kinds(step)]
        if len(self._taking) > 1:
            named = " and ".join(f"{step.noun} {step.name}" for step in self._taking)
            raise UsageError(
                f"{named} go by statistics each, but one set of them can be passed; merge files by a recipe."
            )
        spec = self._taking[0] if self._taking else steps[0]
        kinds = _kinds(spec)
        count = 1 if spec.measured_on is MeasuredOn.BASE else experts
        called = f"{spec.noun.capitalize()} {spec.name}"
        if kinds and len(given) != count:
            wanted = f"each of the {experts} experts" if count == experts else "the base"
            raise UsageError(
                f"{called} needs statistics of kind {' or '.join(kinds)}: pass statistics=, one mapping for "
                f"{wanted}, not {len(given)}."
            )
        if given and (kind or next(iter(kinds), None)) not in kinds:
            takes = " or ".join(kinds) or "none"
            raise UsageError(f"{called} takes no statistics of kind {kind!r}: it takes {takes}.")
        for i, measured in enumerate(given):
            unknown = [name for name in measured if name not in names]
            if unknown:
                raise CompatibilityError(
                    f"The statistics of expert {i} are of tensors that it lacks, or of integers: {listed(unknown)}; "
                    "give them the names that the state dict has."
                )
            if not measured:
                raise CompatibilityError(
                    f"The statistics of expert {i} are of no tensor; pass what {spec.noun} {spec.name} is to weigh "
                    "it by."
                )
        self._kind = kind or next(iter(kinds), "")
        self._given = given

    def is_for(self, step: MethodSpec | ModifierSpec) -> bool:
        """Whether this step goes by them."""
        return step in self._taking

    def tensors(self, name: str) -> list[Tensor]:
        """Everything that was measured at a tensor, expert by expert."""
        found = [_listed(measured[name]) for measured in self._given if name in measured]
        return [tensor for tensors in found for tensor in tensors]

    def at(self, name: str, shape: tuple[int, ...], first: int) -> tuple[Statistic, ...]:
        """The statistics at a tensor, their values being the sources from number `first` on.

        Raises CompatibilityError where only some experts have one, and for wrong shapes or numbers.
        """
        having = [name in measured for measured in self._given]
        if not any(having):
            return ()
        if not all(having):
            raise CompatibilityError(
                f"The statistics of expert {having.index(False)} lack {name!r}, which others have; pass matching ones."
            )
        found = []
        for i, measured in enumerate(self._given):
            tensors = _listed(measured[name])
            what = f"The statistic of {name!r} of expert {i}"
            if not tensors or (len(tensors) > 1 and self._kind != "gradients"):
                wanted = "one tensor per sample" if self._kind == "gradients" else "one tensor"
                raise CompatibilityError(f"{what} is a list of {len(tensors)}; pass {wanted}.")
            for tensor in tensors:
                self._check(tensor, shape, what)
            values = tuple(source(first + k) for k in range(len(tensors)))
            stored = DType.parse(str(tensors[0].dtype))
            found.append(Statistic(self._kind, values, tuple(tensors[0].shape), stored))
            first += len(tensors)
        return tuple(found)

    def _check(self, tensor: Tensor, shape: tuple[int, ...], what: str) -> None:
        wrong = misfit(shape, [tuple(tensor.shape)], self._kind)
        if wrong:
            raise CompatibilityError(f"{what} {wrong}; pass one that fits.")
        if not tensor.is_floating_point():
            raise CompatibilityError(f"{what} holds {tensor.dtype}, not floats; convert it.")
        numbers = comparable(tensor)
        if not bool(numbers.isfinite().all()):
            raise CompatibilityError(f"{what} holds NaN or infinity; collect it again.")
        if self._kind in ("fisher", "adam") and bool((numbers < 0).any()):
            raise CompatibilityError(
                f"{what} holds a negative number, which no mean of squares can be; collect it again."
            )


def _kinds(step: MethodSpec | ModifierSpec) -> list[str]:
    return [kind for kind in step.statistics if kind != "metrics"]


def _listed(given: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return given if isinstance(given, (list, tuple)) else [given]  # type: ignore[list-item]
