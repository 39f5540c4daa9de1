"""The recipe's `assert:` clauses, checked on the written tensors before the output is sealed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from weightsmith.engine.planning.plan import Plan, Store
from weightsmith.engine.planning.trace import Tracer
from weightsmith.engine.running.job_facts import JobSettings
from weightsmith.engine.running.measuring import count_differing, measure_group
from weightsmith.engine.running.scheduler import Job, Scheduler
from weightsmith.errors import AssertionFailed
from weightsmith.graph import Scalar, Value, count, dot, source
from weightsmith.progress import Progress
from weightsmith.recipes import Assertion, Formula, OutputTensor, distinct_leaves
from weightsmith.tensors import LazyTensor


def check_assertions(
    plan: Plan,
    shards: Store,
    scheduler: Scheduler,
    progress: Progress,
    only: Collection[str] | None = None,
) -> None:
    """Raise AssertionFailed with every clause and tensor that does not hold; of tensors, `only` those if given."""
    if not plan.resolved.assertions:
        return
    progress.say("checking assertions")
    settings = JobSettings(plan.backend.load(), plan.tile_elements)
    outputs = {tensor.output.name: tensor.output for tensor in plan.tensors}
    failures: list[str] = []
    for clause in plan.resolved.assertions:
        jobs = []
        for position, name in enumerate(clause.tensors):
            if only is not None and name not in only:
                continue
            reference = clause.references[position] if clause.references else None
            jobs.append(_check(clause, outputs[name], reference, plan, shards, settings, failures))
        scheduler.run(jobs)
    if failures:
        shown = "; ".join(sorted(failures)[:10])
        more = f"; and {len(failures) - 10} more" if len(failures) > 10 else ""
        raise AssertionFailed(
            f"The merge is not finished, because an assertion of the recipe fails: {shown}{more}."
        )


def _check(
    clause: Assertion,
    tensor: OutputTensor,
    reference: Formula | None,
    plan: Plan,
    shards: Store,
    settings: JobSettings,
    failures: list[str],
) -> Job:
    sources: list[LazyTensor] = [shards.stored(tensor.name)]
    expected: Value | None = None
    if reference is not None:
        leaves = distinct_leaves(reference)
        offset = {leaf: i + 1 for i, leaf in enumerate(leaves)}
        sources += [plan.leaf(leaf) for leaf in leaves]
        problem = _mismatch(sources)
        if not problem and not tensor.dtype.is_float:
            differing = yield from count_differing(sources[0], sources[1], settings)
            problem = _problem(clause, [differing])
        if problem or not tensor.dtype.is_float:
            if problem:
                failures.append(_failure(clause, tensor, problem))
            return
        expected = Tracer().formula_value(reference, tensor, lambda leaf: source(offset[leaf]))
    asked = _measurements(clause, source(0), expected)
    measured = yield from measure_group(sources, asked, settings)
    problem = _problem(clause, list(measured.values.values()))
    if problem:
        failures.append(_failure(clause, tensor, problem))


def _failure(clause: Assertion, tensor: OutputTensor, problem: str) -> str:
    return f"`{clause.text}`: tensor {tensor.name!r} {problem}"


def _mismatch(tensors: Sequence[LazyTensor]) -> str:
    """Why a written tensor cannot be compared with those of its reference; empty if it can."""
    written = tensors[0]
    for other in tensors[1:]:
        if other.shape != written.shape:
            return f"has shape {written.shape}, its reference {other.shape}"
        if other.dtype is not written.dtype and not (
            other.dtype.is_float and written.dtype.is_float
        ):
            return f"has dtype {written.dtype}, its reference {other.dtype}"
    return ""


def _measurements(
    clause: Assertion, written: Value, expected: Value | None
) -> Mapping[str, Scalar]:
    if clause.kind == "finite":
        return {"nonfinite": count(~((written - written).equals(0.0)))}
    assert expected is not None
    if clause.kind == "equal":
        return {"differing": count(~written.equals(expected))}
    return {"written": dot(written, written), "expected": dot(expected, expected)}


def _problem(clause: Assertion, measured: Sequence[float]) -> str:
    if clause.kind == "finite":
        return f"has {measured[0]:.0f} NaN or infinite value(s)" if measured[0] else ""
    if clause.kind == "equal":
        return f"differs in {measured[0]:.0f} element(s)" if measured[0] else ""
    written, expected = (m**0.5 for m in measured)
    ratio = written / expected if expected else (1.0 if written == 0 else float("inf"))
    if clause.low <= ratio <= clause.high:
        return ""
    return f"has {ratio:.6g} times the norm of its reference, outside [{clause.low:g}, {clause.high:g}]"
