"""The library's front door: merge, plan, verify and replay checkpoints, and merge tensors in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from weightsmith.checkpoints import anatomy_of
from weightsmith.engine.planning.plan import Plan
from weightsmith.engine.planning.plan_making import DEFAULT_MEMORY, make_plan
from weightsmith.engine.records.manifest import Manifest
from weightsmith.engine.records.verify import Verification, replay_output, verify_output
from weightsmith.engine.running.memory_checks import (
    require_arguments,
    require_finite_inputs,
    require_finite_result,
)
from weightsmith.engine.running.memory_statistics import InMemory
from weightsmith.engine.running.run import run
from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.graph import EqualMagnitudes, Site, Value, source
from weightsmith.methods import modifiers, registry
from weightsmith.progress import Progress
from weightsmith.recipes import Expression, Recipe, Values, checkpoint, coarsest
from weightsmith.tensors import DType, Kind, Place
from weightsmith.wording import literal

if TYPE_CHECKING:
    from torch import Tensor

    from weightsmith.engine.records.rollback import RolledBack

RecipeLike = Recipe | Expression | Mapping[str, Any] | str | Path


def as_recipe(recipe: RecipeLike) -> Recipe:
    """A recipe from a path, YAML text, mapping or expression."""
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Expression):
        return Recipe.from_expression(recipe)
    return Recipe.load(recipe)


def open(  # noqa: A001 - weightsmith.open is the public name
    path: str | Path, statistics: str | Path | Sequence[str | Path] = ()
) -> Expression:
    """A checkpoint as an operand, with files of what was measured on it for methods that weigh by that.

    `open(a) + 0.5 * (open(b) - open(base))` is an expression that `merge` takes as a recipe.
    """
    return checkpoint(path, statistics)


def plan(recipe: RecipeLike, **options: Any) -> Plan:
    """What merging `recipe` will read, compute and write, from headers alone (options as for `merge`)."""
    return make_plan(as_recipe(recipe), **options)


def merge(
    recipe: RecipeLike,
    out: str | Path,
    *,
    values: Values | Literal["start"] | None = None,
    memory_bytes: int = DEFAULT_MEMORY,
    threads: int | None = None,
    device: str = "cpu",
    backend: str = "auto",
    force: bool = False,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Merge checkpoints by a recipe into the new folder `out` and return its manifest.

    `values` are those of free numbers by name, "start" for the ones that they start from; what is on record is the
    recipe with them. An interrupted merge is continued by the same call. `memory_bytes` bounds anonymous memory
    (default 256 MiB), `threads` defaults to the number of cores. Raises a WeightsmithError whose sentence says what to
    do.
    """
    made = make_plan(
        as_recipe(recipe),
        values=values,
        threads=threads,
        memory_bytes=memory_bytes,
        device=device,
        backend=backend,
    )
    return run(made, Path(out), force=force, fresh=fresh, progress=progress)


def verify(
    folder: str | Path, *, recompute: int = 0, inputs: Mapping[str, Path] | None = None
) -> Verification:
    """Compare an output folder with its manifest (see `records.verify.verify_output`)."""
    return verify_output(Path(folder), recompute=recompute, inputs=inputs)


def replay(folder: str | Path, new: str | Path, **options: Any) -> Manifest:
    """Run the merge on record in `folder` again into `new`, bit for bit (see `records.verify.replay_output`)."""
    return replay_output(Path(folder), Path(new), **options)


def rollback(
    folder: str | Path,
    new: str | Path,
    without: str,
    *,
    by: Literal["replay", "subtraction"] | None = None,
    inputs: Mapping[str, Path] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> RolledBack:
    """Make in `new` what the merge in `folder` would have been without one of its models.

    `without` is the model as the manifest has it, or the last part of that; `by` defaults to a replay where all other
    inputs are found, else to a subtraction. `options` are as for `plan` (see `rollback.rollback`).
    """
    from weightsmith.engine.records.rollback import Way
    from weightsmith.engine.records.rollback import roll_back as roll_back

    try:
        way = None if by is None else Way(by)
    except ValueError:
        ways = " or ".join(way.value for way in Way)
        raise UsageError(f"A model is taken out by {ways}, not by {literal(by)}.") from None
    return roll_back(
        Path(folder), Path(new), without, by=way, inputs=inputs, progress=progress, **options
    )


def merge_state_dicts(
    method: str,
    experts: Sequence[Mapping[str, Tensor]],
    *,
    base: Mapping[str, Tensor] | None = None,
    parameters: Mapping[str, Any] | None = None,
    per_expert: Sequence[Mapping[str, Any]] | None = None,
    preset: str = "paper",
    seed: int = 0,
    labels: Sequence[str] = (),
    modify: Sequence[str | Mapping[str, Mapping[str, Any]]] = (),
    statistics: Sequence[Mapping[str, Tensor | Sequence[Tensor]]] = (),
    statistics_kind: str | None = None,
    nonfinite: str = "error",
    equal_magnitudes: str = "hash",
) -> dict[str, Tensor]:
    """Merge tensors in memory with any method; gradients flow through to the experts and the base.

    Every tensor is computed in float32 (float64 if an input is) and returned in the dtype of the base, or of
    the first expert. Roles (embedding, head, input-first matrices...) are inferred from names and shapes as in a file.
    Integer and bool tensors are taken from the base, or must agree. `labels` name the experts
    for random masks (default: by position). `modify` lists modifiers of the experts as a recipe does, such as
    `["coordinate_median"]` or `[{"clip": {"limit": 2}}]`. `statistics` maps, for each expert (once, for
    what is measured on the base), names of tensors to what was measured there: a tensor of the weight's shape (a Gram
    matrix for kind gram), or one per sample for kind gradients; `statistics_kind` defaults to the kind that the method
    or modifier prefers. As in a recipe, NaN and infinity in an input or in a result are refused unless `nonfinite` is
    "propagate". Names that share their memory in every state dict, as those of a tied head do in `model.state_dict()`,
    are one tensor that is merged once, under the name of the embedding if it is one of them. `equal_magnitudes` decides
    what thresholds over the model take of equals, as the recipe's key does. Raises CompatibilityError for different
    names or shapes, UsageError for arguments of another form, and NonFiniteError.
    """
    require_arguments(method, experts, base, parameters, per_expert, modify, seed, preset, labels)
    order = _equal_magnitudes(equal_magnitudes)
    if nonfinite not in ("error", "propagate"):
        raise UsageError(f"nonfinite is 'error' or 'propagate', not {nonfinite!r}.")
    from weightsmith.graph import evaluate_model

    spec = registry.get(method)
    known = (*registry.GENERAL_PRESETS, *spec.presets)
    if preset not in known:
        raise UsageError(
            f"{method} has no preset {preset!r}; give one of {', '.join(dict.fromkeys(known))}."
        )
    built = spec.build(
        parameters or {},
        per_expert or [{} for _ in experts],
        preset=preset,
        where="merge_state_dicts",
    )
    steps = [_modifier_spec(step, base) for step in modify]
    chain = [own.build(given, where="merge_state_dicts") for own, given in steps]
    _check_base(spec, base, measured=bool(chain))
    reference = base if base is not None else experts[0]
    inputs = [*([base] if base is not None else []), *experts]
    _check_alike(inputs)
    floats = {name for name, tensor in reference.items() if tensor.is_floating_point()}
    specs = [own for own, _ in steps]
    measured = InMemory([spec, *specs], statistics, statistics_kind, len(experts), floats)
    places = _places(reference)
    leaders = _leaders(inputs, places)
    outputs: dict[str, Value] = {}
    sources: dict[str, Sequence[Tensor]] = {}
    for name, tensor in reference.items():
        if tensor.is_floating_point() and leaders.get(name, name) == name:
            nodes = [source(i) for i in range(len(inputs))]
            found = measured.at(name, tuple(tensor.shape), len(inputs))
            site = Site(
                places[name],
                tuple(tensor.shape),
                seed=seed,
                labels=tuple(labels),
                statistics=found if measured.is_for(spec) else (),
                stored=coarsest(tuple([_dtype(state[name]) for state in experts])),
            )
            origin = nodes[0] if base is not None else None
            own = nodes[len(inputs) - len(experts) : len(inputs)]
            of_modifiers = [found if measured.is_for(one) else () for one in specs]
            changed = modifiers.modified(chain, origin, own, site, of_modifiers)
            has_base = spec.base is not registry.Base.IGNORED
            outputs[name] = built.combine(origin if has_base else None, changed, site)
            sources[name] = [*(state[name] for state in inputs), *measured.tensors(name)]
    if nonfinite == "error":
        require_finite_inputs(inputs, outputs)
    merged = {
        n: t.to(reference[n].dtype)
        for n, t in evaluate_model(outputs, sources, equal_magnitudes=order).items()
    }
    if nonfinite == "error":
        require_finite_result(merged)
    result = {n: _own(t, sources[n]) for n, t in merged.items()}
    names = {n: leaders.get(n, n) for n in reference}
    return {
        n: result[first] if first in result else _agreed(n, inputs, base)
        for n, first in names.items()
    }


def _equal_magnitudes(given: str) -> EqualMagnitudes:
    try:
        return EqualMagnitudes(given)
    except ValueError:
        known = ", ".join(repr(rule.value) for rule in EqualMagnitudes)
        raise UsageError(f"equal_magnitudes is one of {known}, not {given!r}.") from None


def _leaders(states: Sequence[Mapping[str, Tensor]], places: Mapping[str, Place]) -> dict[str, str]:
    """For each name of a tied tensor the one under which it is merged."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in states[0].items():
        if tensor.numel() and tensor.is_floating_point():
            groups.setdefault(tuple(_memory(state[name]) for state in states), []).append(name)
    leaders = {}
    for names in groups.values():
        embeddings = [name for name in names if places[name].kind is Kind.EMBEDDING]
        leaders.update(dict.fromkeys(names, (*embeddings, names[0])[0]))
    return leaders


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """What tells the memory of a tensor, and how it is laid out there, from any other's."""
    return tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _dtype(tensor: Tensor) -> DType:
    return DType.parse(str(tensor.dtype))


def _own(merged: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """A copy where a method hands on an input, so that changing the result changes no model."""
    own = merged.untyped_storage().data_ptr()
    is_shared = any(own == tensor.untyped_storage().data_ptr() for tensor in sources)
    return merged.clone() if is_shared else merged


@dataclass(frozen=True, slots=True)
class _Held:
    dtype: DType
    shape: tuple[int, ...]


def _places(state: Mapping[str, Tensor]) -> dict[str, Place]:
    """As in a checkpoint of these names without configuration."""
    held = {
        name: _Held(
            DType.FLOAT32 if tensor.is_floating_point() else DType.INT64, tuple(tensor.shape)
        )
        for name, tensor in state.items()
    }
    return anatomy_of(held, None).places


def _modifier_spec(
    step: str | Mapping[str, Mapping[str, Any]], base: object
) -> tuple[modifiers.ModifierSpec, Mapping[str, Any]]:
    """A modifier and its parameters."""
    named = {step: {}} if isinstance(step, str) else step
    if len(named) != 1:
        raise UsageError(f"A step of modify is one modifier with its parameters, not {step!r}.")
    ((name, parameters),) = named.items()
    spec = modifiers.get(name)
    if spec.base is registry.Base.REQUIRED and base is None:
        raise UsageError(f"Modifier {name} needs a base: pass base=STATE_DICT.")
    return spec, parameters or {}


def _check_base(spec: registry.MethodSpec, base: object, *, measured: bool) -> None:
    if spec.base is registry.Base.REQUIRED and base is None:
        raise UsageError(f"Method {spec.name} needs a base: pass base=STATE_DICT.")
    if spec.base is registry.Base.IGNORED and base is not None and not measured:
        raise UsageError(
            f"Method {spec.name} has no base: pass that state dict as an expert, or leave it out."
        )


def _check_alike(states: Sequence[Mapping[str, Tensor]]) -> None:
    first = states[0]
    for position, state in enumerate(states[1:], start=1):
        different = sorted(set(first) ^ set(state))
        if different:
            raise CompatibilityError(
                f"State dicts 0 and {position} do not both hold {different[0]!r}; pass matching ones."
            )
        for name, tensor in first.items():
            if tensor.shape != state[name].shape:
                raise CompatibilityError(
                    f"{name!r} has shape {tuple(tensor.shape)} in state dict 0 and "
                    f"{tuple(state[name].shape)} in {position}; pass matching ones."
                )


def _agreed(
    name: str, states: Sequence[Mapping[str, Tensor]], base: Mapping[str, Tensor] | None
) -> Tensor:
    first = states[0][name]
    if base is None and any(not first.equal(state[name]) for state in states[1:]):
        raise CompatibilityError(
            f"{name!r} holds {first.dtype} values that differ between the state dicts; pass a base to keep."
        )
    return first.clone()
