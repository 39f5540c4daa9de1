"""Adapters made of other adapters and of fine-tunes, from paths to paths: what Python and the command line call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from weightsmith.adapters import Adapter, open_adapter, open_model
from weightsmith.checkpoints import Checkpoint
from weightsmith.engine.adapter_recipes import combination
from weightsmith.engine.outputs.adapter_output import AdapterFolder
from weightsmith.engine.planning.plan_making import make_plan
from weightsmith.engine.records.manifest import Manifest
from weightsmith.engine.running.run import run
from weightsmith.errors import UsageError
from weightsmith.findings import Finding, Severity
from weightsmith.lora import (
    Choices,
    Conversion,
    Dialect,
    ExtractionReport,
    RankBound,
    check_output,
    convert,
    extract,
    write_adapter,
)
from weightsmith.lora import adapter_facts as facts
from weightsmith.progress import Progress
from weightsmith.recipes import Recipe
from weightsmith.tensors import DType, shown, thread_count


@dataclass(frozen=True, slots=True, eq=False)
class Combined:
    """An adapter that was made of others and lies at `path`.

    `lost` has the share of its norm that truncation took from a change, by tensor; `manifest` is its record.
    """

    path: Path
    lost: Mapping[str, float]
    findings: Sequence[Finding]
    manifest: Manifest


def combine_adapters(
    adapters: Sequence[str | Path],
    out: str | Path,
    *,
    method: str = "linear",
    weights: Sequence[float] | None = None,
    parameters: Mapping[str, Any] | None = None,
    space: str = "dense",
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    base: str | Path | None = None,
    dialect: Dialect | None = None,
    dtype: str | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> Combined:
    """Make one adapter of several of one base, by what they change and never by their factors, and write it to `out`.

    `method` is linear, task_arithmetic, cat, svd, lego, magnitude_prune, knots, core_space, metrics_weighted or any
    method of recipes; `weights` (default 1 / N, or 1 for methods that sum) and `parameters` are its own, the latter
    with a list where a number for each adapter is meant. `space` is what a nonlinear method works on: dense, knots or
    core. `base` is needed where adapters hold whole tensors, have DoRA's magnitudes or names without dots. Sums with
    fixed coefficients are exact and cut only where `rank`, `energy` or `error` is given; what is computed dense is cut
    to the largest rank of the adapters unless one of them is. `dialect` and `dtype` default to the inputs'.

    Whatever the method, a recipe is run: a folder has it and its manifest beside the weights, a file whose name ends in
    .safetensors in its metadata. Raises what planning and merging raise, and UsageError for requests without a meaning.
    """
    if isinstance(adapters, (str, Path)):
        raise UsageError(f"adapters is a list of paths, not {shown(adapters)}.")
    paths = [str(path) for path in adapters]
    opened = [open_adapter(path) for path in paths]
    document = combination(
        paths,
        method,
        weights,
        parameters or {},
        space=space,
        bound=RankBound(rank, energy, error),
        dialect=dialect_for(opened[0], dialect) if opened else None,
        base=base,
        dtype=dtype,
        seed=seed,
    )
    return _made(document, opened, out, force, progress)


def _made(
    document: dict[str, Any],
    opened: Sequence[Adapter],
    out: str | Path,
    force: bool,
    progress: Progress | None,
) -> Combined:
    """Run a recipe of adapters of a model; raises CheckpointError where its base is an adapter, which recipes allow."""
    if "base_model" in document:
        open_model(document["base_model"])
    plan = make_plan(Recipe.load(document))
    if not isinstance(plan.output, AdapterFolder):
        first = document["models"][0]["model"]["model"]["path"]
        raise UsageError(
            f"{shown(first)} has no factors by which it is known as an adapter; convert it to the dialect peft first."
        )
    manifest = run(plan, Path(out), force=force, progress=progress)
    findings = [finding for adapter in opened for finding in adapter.findings]
    # What the plan notes of factors and ranks, `lost` says of the result.
    findings += [found for found in plan.findings if found.severity is not Severity.NOTE]
    return Combined(Path(out), manifest.lost, findings, manifest)


def extract_adapter(
    finetune: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    budget_bytes: int | None = None,
    choices: Choices | None = None,
    dialect: Dialect = "peft",
    dtype: str = "float32",
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ExtractionReport:
    """Make an adapter of what a fine-tune changed, write it to `out`, and return what it holds and loses by tensor.

    One of `rank`, `energy`, `error` and `budget_bytes` is needed; see `adapters.extraction.extract`, which also says
    what is raised. `threads` defaults to the number of cores and does not change the result.
    """
    tuned, original = open_model(finetune), open_model(base)
    reads = (*tuned.inputs, *original.inputs)
    place = check_output(out, dialect, force=force, reads=reads)
    adapter, report = extract(
        tuned,
        original,
        rank=rank,
        energy=energy,
        error=error,
        budget_bytes=budget_bytes,
        choices=choices,
        dtype=DType.parse(dtype),
        threads=thread_count(threads),
        progress=progress,
    )
    write_adapter(adapter, place, dialect, base=original, force=force, reads=reads)
    return report


def resize_adapter(
    adapter: str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    base: str | Path | None = None,
    dialect: Dialect | None = None,
    dtype: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Combined:
    """Write an adapter with the leading singular directions of each change, the best approximation of its rank.

    One of `rank`, `energy` and `error` is needed; with several each must hold, but `rank` is never exceeded. `base`,
    `dialect` and `dtype` are as for `combine_adapters`. Raises UsageError without a bound, and what reading and writing
    adapters raise.
    """
    bound = RankBound(rank, energy, error)
    if bound.is_open:
        raise UsageError(
            "Nothing says how much of the adapter to keep; give a rank, energy or error."
        )
    opened = open_adapter(adapter)
    to = dialect_for(opened, dialect)
    document = combination(
        [str(adapter)], "linear", None, {}, bound=bound, dialect=to, base=base, dtype=dtype
    )
    return _made(document, [opened], out, force, progress)


def convert_adapter(
    adapter: str | Path,
    out: str | Path,
    dialect: Dialect,
    *,
    base: str | Path | None = None,
    initial: str | Path | None = None,
    rank: int | None = None,
    energy: float | None = None,
    dtype: str | None = None,
    component: str | None = None,
    force: bool = False,
) -> Conversion:
    """Write an adapter in another dialect: the same change of the same weights (see `adapters.converting.convert`)."""
    return convert(
        adapter,
        out,
        dialect,
        base=None if base is None else open_model(base),
        initial=initial,
        rank=rank,
        energy=energy,
        dtype=None if dtype is None else DType.parse(dtype),
        component=component,
        force=force,
    )


def inspect_adapter(
    adapter: str | Path, base: str | Path | None = None, *, component: str | None = None
) -> facts.AdapterFacts:
    """Form, rank, scale and size of every change of an adapter; with `base` also beside the base's tensors."""
    model = None if base is None else open_model(base)
    return facts.inspect_adapter(str(adapter), model, component=component)


def inputs_of(adapters: Sequence[Adapter], base: Checkpoint | None) -> tuple[Path, ...]:
    """Every place that adapters, and the base that is given with them, are read from."""
    places = (place for adapter in adapters for place in adapter.inputs)
    return (*places, *(() if base is None else base.inputs))


def dialect_for(adapter: Adapter, asked: Dialect | None) -> Dialect:
    """What is written: what is asked for, else the input's dialect (LyCORIS files are kohya's)."""
    own = adapter.dialect if adapter.dialect in get_args(Dialect) else "kohya"
    return asked or cast("Dialect", own)
