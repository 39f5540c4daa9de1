"""Adapters made of other adapters and of fine-tunes, from paths to paths: what Python and the command line call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

from weightsmith.adapters import facts
from weightsmith.adapters.adapter import Adapter
from weightsmith.adapters.as_changes import load_changes
from weightsmith.adapters.bounds import Bound
from weightsmith.adapters.combining import combine
from weightsmith.adapters.converting import Conversion, convert
from weightsmith.adapters.extraction import extract
from weightsmith.adapters.extraction_report import ExtractionReport
from weightsmith.adapters.lego import Lego
from weightsmith.adapters.opening import open_model
from weightsmith.adapters.reading import open_adapter
from weightsmith.adapters.storing import SUFFIX
from weightsmith.adapters.treatments import Choices
from weightsmith.adapters.writing import Dialect, check_output, write_adapter
from weightsmith.checkpoints import Checkpoint
from weightsmith.engine.adapter_combination import (
    combine_loaded,
    has_recipe,
    parameters_by_adapter,
)
from weightsmith.engine.manifest import Manifest
from weightsmith.engine.plan import make_plan
from weightsmith.engine.progress import Progress
from weightsmith.engine.run import run
from weightsmith.engine.threads import thread_count
from weightsmith.errors import UsageError
from weightsmith.findings import Finding, Severity
from weightsmith.methods import registry
from weightsmith.recipes import Recipe
from weightsmith.recipes.sections import distinct_labels
from weightsmith.tensors.dtypes import DType
from weightsmith.wording import shown


@dataclass(frozen=True, slots=True, eq=False)
class Combined:
    """An adapter that was made of others and lies at `path`.

    `lost` has the share of its norm that truncation took from a change, by tensor, and `manifest` the record of what a
    recipe can say.
    """

    path: Path
    lost: Mapping[str, float]
    findings: Sequence[Finding] = ()
    manifest: Manifest | None = None


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

    What a recipe can say is run as one, into a folder with recipe and manifest, unless `out` is a file. Raises what
    planning and merging raise, and UsageError for requests without a meaning.
    """
    if isinstance(adapters, (str, Path)):
        raise UsageError(f"adapters is a list of paths, not {shown(adapters)}.")
    if not adapters:
        raise UsageError("There is nothing to combine: name at least one adapter.")
    paths = [str(path) for path in adapters]
    opened = [open_adapter(path) for path in paths]
    known = [finding for adapter in opened for finding in adapter.findings]
    place, to = Path(out), dialect_for(opened[0], dialect)
    bound, given = Bound(rank, energy, error), dict(parameters or {})
    if space == "dense" and has_recipe(method) and place.suffix != SUFFIX:
        document = _document(paths, method, weights, given, base, dtype, seed)
        form = {"rank": rank, "energy": energy, "error": error, "dialect": to}
        document["adapter"] = {key: value for key, value in form.items() if value is not None}
        plan = make_plan(Recipe.load(document))
        manifest = run(plan, place, force=force, progress=progress)
        # What its notes say of factors and ranks, `lost` says of the result.
        known += [f for f in plan.findings if f.severity is not Severity.NOTE]
        return Combined(place, manifest.lost, known, manifest)
    model = None if base is None else open_model(base)
    reads = inputs_of(opened, model)
    place = check_output(place, to, force=force, reads=reads)
    is_lego = method == "lego"
    made, report = combine_loaded(
        [load_changes(adapter, model) for adapter in opened],
        method,
        weights,
        space=space,
        parameters=given,
        seed=seed,
        # The rank of LEGO is the number of its clusters.
        bound=None if bound.is_open or is_lego else bound,
        lego=Lego(rank=rank) if is_lego else None,
        base=model,
        # As a recipe labels its models, so that random masks are the same.
        labels=distinct_labels([adapter.name for adapter in opened]),
    )
    typed = replace(made, dtype=made.dtype if dtype is None else DType.parse(dtype))
    write_adapter(typed, place, to, base=model, force=force, reads=reads)
    found = (*known, *report.findings)
    return Combined(place, {t.key: t.lost for t in report.tensors}, found)


def _document(
    paths: Sequence[str],
    method: str,
    weights: Sequence[float] | None,
    parameters: Mapping[str, Any],
    base: str | Path | None,
    dtype: str | None,
    seed: int,
) -> dict[str, Any]:
    """The recipe of adapters that says the same."""
    each, shared = parameters_by_adapter(registry.get(method), parameters, weights, len(paths))
    models = [
        {"model": {"model": {"path": path}}, "parameters": own}
        for path, own in zip(paths, each, strict=True)
    ]
    document: dict[str, Any] = {
        "weightsmith": 1,
        "merge_method": method,
        "models": models,
        "parameters": shared,
        "seed": seed,
    }
    if base is not None:
        document["base_model"] = str(base)
    if dtype is not None:
        document["dtype"] = dtype
    return document


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
    progress: Callable[[str], None] | None = None,
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
) -> Combined:
    """Write an adapter with the leading singular directions of each change, the best approximation of its rank.

    One of `rank`, `energy` and `error` is needed; with several each must hold, but `rank` is never exceeded. `base`,
    `dialect` and `dtype` are as for `combine_adapters`. Raises UsageError without a bound, and what reading and writing
    adapters raise.
    """
    bound = Bound(rank, energy, error)
    if bound.is_open:
        raise UsageError(
            "Nothing says how much of the adapter to keep; give a rank, energy or error."
        )
    opened = open_adapter(adapter)
    to = dialect_for(opened, dialect)
    model = None if base is None else open_model(base)
    reads = inputs_of([opened], model)
    place = check_output(Path(out), to, force=force, reads=reads)
    made, report = combine(
        [load_changes(opened, model)],
        "linear",
        [1.0],
        bound=bound,
        base=model,
        labels=[str(adapter)],
    )
    typed = replace(made, dtype=made.dtype if dtype is None else DType.parse(dtype))
    write_adapter(typed, place, to, base=model, force=force, reads=reads)
    found = (*opened.findings, *report.findings)
    return Combined(Path(out), {t.key: t.lost for t in report.tensors}, found)


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
