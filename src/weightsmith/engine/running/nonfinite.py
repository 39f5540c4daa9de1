"""NaN and infinity in inputs: named by checkpoint, tensor and element, wherever they come to light.

The pass that writes a tensor counts them in the sources that it reads. A matrix method reads others, and statistics
of the whole model carry them from one tensor to all; only then are the inputs looked through once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from weightsmith.engine.running.measuring import count_nonfinite
from weightsmith.engine.running.unlocated import Unlocated
from weightsmith.errors import NonFiniteError
from weightsmith.recipes import distinct_leaves
from weightsmith.tensors import DType, LazyTensor

if TYPE_CHECKING:
    from weightsmith.engine.planning.plan import Plan
    from weightsmith.engine.planning.planned_tensors import PlannedTensor
    from weightsmith.engine.running.job_facts import Finished, JobSettings
    from weightsmith.engine.running.scheduler import Job, Scheduler
    from weightsmith.recipes import Leaf


def check_finite(plan: Plan, tensor: PlannedTensor, finished: Finished) -> None:
    """Raise NonFiniteError for a NaN or infinity in an input or in the output, unless the recipe lets it pass."""
    if plan.resolved.nonfinite == "propagate":
        return
    leaves = distinct_leaves(tensor.output.formula)
    for leaf, (number, first) in zip(leaves, finished.nonfinite_sources, strict=False):
        if number:
            raise NonFiniteError(_found(plan.leaf(leaf), number, first, may_pass=True))
    number, first = finished.nonfinite
    if number:
        name = tensor.output.name
        raise Unlocated(
            f"Output tensor {name!r} would hold {number} NaN or infinite value(s), the first at element {first}, "
            f"though its inputs are finite: the result overflows {tensor.output.dtype}; use a wider `dtype`, smaller "
            f"weights, or {_clamped(tensor.output.dtype)}.",
            name,
            may_pass=True,
        )


def _clamped(dtype: DType) -> str:
    """The step after which a dtype does not overflow."""
    step = "`then: [clamp]`" if dtype is DType.FLOAT16 else "`then: [{clamp: {limit: ...}}]`"
    return f"{step}, which takes the largest number for what is beyond it"


@contextmanager
def located(plan: Plan, settings: JobSettings, scheduler: Scheduler) -> Iterator[None]:
    """Turn an `Unlocated` error into one that names the input with a NaN or infinity, if any of those read has one."""
    try:
        yield
    except Unlocated as error:
        for leaf in _suspects(plan, error.tensor):
            stored = plan.leaf(leaf)
            number, first = _counted(stored, settings, scheduler)
            if number:
                message = _found(stored, number, first, may_pass=error.may_pass)
                raise NonFiniteError(message) from error
        raise NonFiniteError(str(error)) from error


def _suspects(plan: Plan, name: str) -> Iterable[Leaf]:
    """What the tensor is made of; then, if statistics of the model reach it, what the others of the model are."""
    own = next(t for t in plan.tensors if t.output.name == name)
    reached = [t for t in plan.tensors if t.work.model_scope] if own.work.model_scope else []
    return dict.fromkeys(
        leaf for t in (own, *reached) for leaf in distinct_leaves(t.output.formula)
    )


def _counted(tensor: LazyTensor, settings: JobSettings, scheduler: Scheduler) -> tuple[int, int]:
    found: list[tuple[int, int]] = []

    def job() -> Job:
        found.append((yield from count_nonfinite(tensor, settings)))

    scheduler.run([job()])
    return found[0]


def _found(tensor: LazyTensor, number: int, first: int, *, may_pass: bool) -> str:
    other = (
        "set `nonfinite: propagate` in the recipe to let them through"
        if may_pass
        else "merge this tensor by a method that lets them through"
    )
    return (
        f"{tensor.location} holds {number} NaN or infinite value(s), the first at element {first}; mend the "
        f"checkpoint, or {other}."
    )
