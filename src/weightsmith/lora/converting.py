"""One adapter in another dialect: the same change of the same weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from weightsmith.adapters import Adapter, Form, Update, fitted_updates, is_embedding, open_adapter
from weightsmith.checkpoints import Checkpoint
from weightsmith.deltas import LowRankChange, Matrix, read_matrix
from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.findings import Finding
from weightsmith.lora.adapter_writing import Dialect, check_output, write_adapter
from weightsmith.lora.algebra import concatenated, norm, truncated
from weightsmith.lora.factor_fitting import rounded
from weightsmith.lora.low_rank_adapters import (
    Array,
    Factors,
    LowRankAdapter,
    low_rank_adapter,
    without_copy,
)
from weightsmith.lora.names_in_memory import Renaming, between, renamed_base
from weightsmith.tensors import DType, Kind, narrow, promote, shown


@dataclass(frozen=True, slots=True)
class ConvertedTensor:
    """What became of one change: `error` is ||lost|| / ||change||, by a cut or by rounding; 0 for what was kept."""

    target: str
    form: Form
    rank: int
    error: float


@dataclass(frozen=True, slots=True)
class Conversion:
    """The changes of an adapter that has been written in another dialect, and the type of its factors.

    `whole` are the tensors that are replaced or added as they are; `findings` those of the adapter that was read.
    """

    dialect: Dialect
    dtype: DType
    tensors: tuple[ConvertedTensor, ...]
    whole: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def error(self) -> float:
        """The largest share of a change that was lost."""
        return max((tensor.error for tensor in self.tensors), default=0.0)

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "dialect": self.dialect,
            "dtype": str(self.dtype),
            "lost": self.error,
            "tensors": [
                {"tensor": t.target, "form": t.form.value, "rank": t.rank, "lost": t.error}
                for t in self.tensors
            ],
            "findings": [finding.to_mapping() for finding in self.findings],
        }


@dataclass(frozen=True, slots=True, eq=False)
class _Taken:
    """An adapter's updates under the names that are written, and the base under these names."""

    adapter: Adapter
    base: Checkpoint | None


def convert(
    source: str | Path,
    out: str | Path,
    dialect: Dialect,
    *,
    base: Checkpoint | None = None,
    initial: str | Path | None = None,
    rank: int | None = None,
    energy: float | None = None,
    dtype: DType | None = None,
    component: str | None = None,
    force: bool = False,
) -> Conversion:
    """Write the adapter at `source`, of any dialect that `open_adapter` reads, to `out` in `dialect`.

    LoRA and LoCon keep their factors, in their own dtype (or `dtype`), with the scale as alpha. LoHa, LoKr and full
    changes become LoRA of the rank that they have (LoHa's is r1 r2 at most), or are cut by singular values to `rank` or
    `energy` (see `algebra.kept_rank`). DoRA's magnitudes are kept. `base` is the model that the adapter is for: it is
    needed for the dotted names of what a kohya file flattened, for trained rows of an embedding, and where a dialect
    keeps whole tensors otherwise. `initial` is as in `open_adapter`. `component` is the part of a pipeline that is
    taken of an adapter of several, and the part that modules without one are in for diffusers.

    Raises UsageError for bounds with nothing to cut, and what `open_adapter`, `fitted_updates` and `write_adapter`
    raise.
    """
    adapter = open_adapter(source, initial=initial)
    reads = (*adapter.inputs, *(() if base is None else base.inputs))
    check_output(out, dialect, force=force, reads=reads)
    taken = _taken(adapter, dialect, base, component)
    bounded = (rank, energy) != (None, None)
    if bounded and not any(_is_product(u) for u in taken.adapter.updates.values()):
        raise UsageError(
            f"Adapter {shown(adapter.source)} is plain LoRA, which converting keeps as it is; resize it to change its "
            "rank."
        )
    loaded, magnitudes = _loaded(taken, dialect, bounded=bounded)
    kept = dtype or _dtype(taken.adapter.updates, loaded)
    written, errors = _cut(replace(loaded, dtype=kept), taken.adapter, rank, energy)
    write_adapter(
        written,
        out,
        dialect,
        base=taken.base,
        force=force,
        reads=reads,
        magnitudes=magnitudes,
        component=component,
        task=adapter.config.get("task_type"),
    )
    forms = {u.target: u.form for u in taken.adapter.updates.values()}
    tensors = [
        ConvertedTensor(key, forms[f.target], f.change.rank, errors.get(key, 0.0))
        for key, f in sorted(written.factors.items())
    ]
    whole = tuple(sorted([*written.replaced, *written.added]))
    return Conversion(dialect, kept, tuple(tensors), whole, adapter.findings)


def _is_product(update: Update) -> bool:
    """Whether a change is stored as something else than factors, a vector, or a tensor that replaces another."""
    is_matrix = update.shape is None or len(update.shape) > 1
    return is_matrix and update.form not in (Form.LORA, Form.REPLACED, Form.ROWS)


def _taken(
    adapter: Adapter, dialect: Dialect, base: Checkpoint | None, component: str | None
) -> _Taken:
    if base is None:
        updates = _of_component(adapter, dialect, component)
        named = {u.target if dialect == "peft" else u.key: u for u in updates}
        return _Taken(_renamed(adapter, named), None)
    found = fitted_updates(
        base, adapter, component=component if component in _components(adapter) else None
    )
    names = {}
    for name, update in found.items():
        own = name if adapter.flattened else update.target
        names[name] = (
            own if dialect == "peft" or update.component is None else f"{update.component}.{own}"
        )
    renaming = between(names) or Renaming()
    named = {renaming(name): update for name, update in found.items()}
    return _Taken(_renamed(adapter, named), renamed_base(base, renaming))


def _components(adapter: Adapter) -> list[str | None]:
    return list(dict.fromkeys(update.component for update in adapter.updates.values()))


def _of_component(adapter: Adapter, dialect: Dialect, component: str | None) -> list[Update]:
    if adapter.flattened and dialect != "kohya":
        raise CompatibilityError(
            f"The names in {shown(adapter.source)} are flat, with '_' for '.', and only the model that it is for tells "
            "what they were; give it (--base)."
        )
    if adapter.config.get("ensure_weight_tying"):
        raise CompatibilityError(
            f"Adapter {shown(adapter.source)} changes an embedding together with what is tied to it, which only the "
            "model that it is for tells; give it (--base)."
        )
    found = _components(adapter)
    wanted = [
        u for u in adapter.updates.values() if component in (None, u.component) or found == [None]
    ]
    if not wanted or (dialect == "peft" and len({u.component for u in wanted}) > 1):
        listed = ", ".join(shown(str(name)) for name in found)
        raise CompatibilityError(
            f"Adapter {shown(adapter.source)} changes {listed}; name the one of them that is to be written (component)."
        )
    return wanted


def _renamed(adapter: Adapter, updates: Mapping[str, Update]) -> Adapter:
    named = {name: replace(u, target=name, component=None) for name, u in updates.items()}
    return replace(adapter, updates=named)


def _loaded(
    taken: _Taken, dialect: Dialect, *, bounded: bool
) -> tuple[LowRankAdapter, dict[str, Matrix]]:
    """The factors without magnitudes, tensors that are replaced or added whole, and the magnitudes."""
    plain: dict[str, Update] = {}
    added: dict[str, Array] = {}
    magnitudes: dict[str, Matrix] = {}
    for target, given in taken.adapter.updates.items():
        update = without_copy(given, taken.base)
        if update.form is Form.FULL and dialect == "kohya" and not bounded:
            assert update.load is not None
            assert update.shape is not None
            change = update.load()
            added[target] = narrow(
                change.rows(0, change.shape[0]).reshape(update.shape), DType.FLOAT32
            )
            continue
        if update.magnitude is not None and update.replacement is None:
            magnitudes[target] = _magnitude(update)
            sources = tuple(s for s in update.sources if s is not update.magnitude)
            update = replace(update, magnitude=None, sources=sources)
        plain[target] = update
    loaded = low_rank_adapter(replace(taken.adapter, updates=plain), taken.base)
    factors = {key: _as_stored(f, taken.base) for key, f in loaded.factors.items()}
    return replace(loaded, factors=factors, added={**loaded.added, **added}), magnitudes


def _magnitude(update: Update) -> Matrix:
    """A vector of one number for each output, or a row of one for each input."""
    assert update.magnitude is not None
    given = read_matrix(update.magnitude).reshape(-1)
    is_by_output = update.by_column == (update.input_first or is_embedding(update))
    return given if is_by_output else given[None, :]


def _as_stored(factors: Factors, base: Checkpoint | None) -> Factors:
    """The factors with the shape and kind of the base's tensor, of which a file may leave out axes of length 1."""
    stored = None if base is None else base.tensors.get(factors.target)
    if stored is None or base is None or factors.part is not None:
        return factors
    role = base.places.get(factors.target)
    kind = "conv" if len(stored.shape) > 2 else factors.kind
    if role is not None and role.kind is Kind.EMBEDDING:
        kind = "embedding"
    return replace(factors, shape=stored.shape, kind=kind)


def _cut(
    loaded: LowRankAdapter, adapter: Adapter, rank: int | None, energy: float | None
) -> tuple[LowRankAdapter, dict[str, float]]:
    """Changes that were no LoRA cut to `rank` and `energy`, and what of each is lost, by the cut and by rounding."""
    factors, errors = dict(loaded.factors), {}
    for key, given in loaded.factors.items():
        if (rank, energy) != (None, None) and _is_product(adapter.updates[given.target]):
            change, errors[key] = truncated(given.change, rank=rank, energy=energy)
            factors[key] = replace(given, change=change)
        errors[key] = math.hypot(errors.get(key, 0.0), _rounding(factors[key].change, loaded.dtype))
    return replace(loaded, factors=factors), errors


def _rounding(change: LowRankChange, dtype: DType) -> float:
    """The share of a change that is lost when its factors are stored in `dtype`."""
    stored = rounded(change, dtype)
    if np.array_equal(stored.left, change.left) and np.array_equal(stored.right, change.right):
        return 0.0
    size = norm(change)
    lost = concatenated([(1.0, change), (-1.0, stored)])
    return norm(lost) / size if size else 0.0


def _dtype(updates: Mapping[str, Update], loaded: LowRankAdapter) -> DType:
    """The widest type of the factors that are kept; those of other forms are computed, and stored in float32."""
    factored = {factors.target for factors in loaded.factors.values()}
    counted = [update for name, update in updates.items() if name in factored or not factored]
    kept = [
        source.dtype
        for u in counted
        for source in u.sources
        if source is not u.magnitude and source is not u.replacement
    ]
    if not kept or any(_is_product(updates[name]) for name in factored):
        return DType.FLOAT32
    found = promote(kept)
    return found if found in (DType.BFLOAT16, DType.FLOAT16) else DType.FLOAT32
